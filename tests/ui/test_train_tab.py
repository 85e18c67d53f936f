"""Starting a run from the form, once and with reasons."""

from types import SimpleNamespace

import pytest

from engine.errors import Problem
from tests.invented_runs import InventedRun, a_config, write_run
from ui.draft import read_draft
from ui.tabs.train import FOLLOW, TrainTab, render_reason, start_key, why_not


@pytest.fixture
def tab(laid_out) -> TrainTab:
    return laid_out(TrainTab)


def values_of(tab: TrainTab, config) -> list:
    """What the browser sends for a configuration: with a known model, all-linear is every box ticked."""
    form = tab._page.form
    values = dict(zip(form.names, form.updates(config.model_dump(mode="json")), strict=True))
    shape = tab._page.services.shapes.get(config.model.id, None)
    if shape is not None:
        values["adapter.target_modules"] = list(shape.linear_names())
    return list(values.values())


def started(tab: TrainTab, token: str, config) -> tuple:
    return list(tab._start(token, *values_of(tab, config)))[-1]


def test_a_complete_draft_starts_a_run_and_the_page_follows_it(tab):
    problems, run_id, view, token, _ = started(tab, "token", a_config(training__max_steps=3))

    run = tab._page.services.runs.get(run_id)
    assert problems == ""
    assert view == FOLLOW
    assert token != "token"
    assert run.folder.read_config().training.max_steps == 3


def test_the_same_draft_sent_twice_starts_one_run(tab):
    config = a_config(training__max_steps=3)

    first, second = started(tab, "token", config), started(tab, "token", config)

    assert first[1] == second[1]
    assert len(tab._page.services.runs.ids()) == 1


def test_a_changed_draft_or_a_later_start_is_another_run(tab):
    ids = {
        started(tab, "token", a_config(training__max_steps=3))[1],
        started(tab, "token", a_config(training__max_steps=4))[1],
        started(tab, "later", a_config(training__max_steps=3))[1],
    }

    assert len(ids) == 3
    assert start_key("a", a_config()) != start_key("b", a_config())


def test_problems_are_shown_in_place_and_nothing_starts(tab):
    values = dict(zip(tab._page.form.names, values_of(tab, a_config()), strict=True))
    values |= {"training.learning_rate": 7.0, "adapter.r": 0}

    problems, *rest = list(tab._start("token", *values.values()))[-1]

    assert "2 settings need your attention" in problems
    assert "training.learning_rate" in problems
    assert not tab._page.services.runs.ids()
    assert rest[0] == {"__type__": "update"}  # the run that is looked at stays


def test_a_start_says_what_it_is_checking(tab):
    steps = list(tab._start("token", *values_of(tab, a_config(training__max_steps=3))))

    assert any("Checking the data." in str(step[0]) for step in steps[:-1])


def test_an_incomplete_draft_cannot_be_started_and_says_why(tab, services):
    form = tab._page.form
    empty = read_draft(services, form, form.updates({}))
    values = form.updates(a_config().model_dump(mode="json"))
    wrong = dict(zip(form.names, values, strict=True)) | {"training.num_train_epochs": -1}

    assert why_not(empty) == "Choose a model. Choose a dataset."
    draft = read_draft(services, form, list(wrong.values()))
    assert why_not(draft) == "One setting needs your attention."
    assert "training.num_train_epochs" in render_reason(draft)
    assert isinstance(draft.problems[0], Problem)


def test_what_can_never_fit_cannot_be_started(tab, services):
    config = a_config(training__max_length=100_000, training__per_device_train_batch_size=512)
    services.shapes.learn(config.model)

    reason = why_not(tab._page.draft(values_of(tab, config)))

    assert reason is not None
    assert "GiB" in reason


def test_the_first_visit_shows_the_run_that_is_under_way(tab, services):
    assert tab._arrive("", False)[0] != FOLLOW

    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=5))

    assert tab._arrive("", False) == (FOLLOW, True, run.id)
    assert tab._arrive("gone", False) == (FOLLOW, True, run.id)
    assert tab._arrive("", True)[0] != FOLLOW  # afterwards the person decides


def test_a_preset_fills_the_form(tab):
    mapping = tab._use_preset(SimpleNamespace(_data={"pick": "quickstart-cpu"}))

    assert mapping["dataset"]["source"] == "sample:loratory-faq"


def test_tokens_are_counted_once_and_the_plan_fills_itself(tab, services):
    values = values_of(tab, a_config(training__max_steps=-1))

    plans = list(tab._count(*values))

    assert "<b>117</b>" in plans[-1]
    assert list(tab._count(*values)) == [plans[-1]]


def test_an_earlier_run_like_this_one_gives_the_time(tab, services):
    config = a_config(run__name="faq before")
    services.shapes.learn(config.model)
    draft = tab._page.draft(values_of(tab, config))
    assert tab._known_speed(draft) is None

    write_run(services.runs, config, InventedRun())
    write_run(services.runs, a_config(model__quantization="nf4"), InventedRun())

    speed = tab._known_speed(draft)
    assert speed is not None
    assert speed.run_title == "faq before"
