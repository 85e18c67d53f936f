"""Starting runs and sweeps from the form, once and with reasons."""

import threading
import time
from types import SimpleNamespace

import pytest

from engine.errors import DatasetError, Problem
from engine.runs.provenance import read_provenance
from tests.invented_runs import a_config
from tests.ui.changes import Changes
from tests.ui.data_tab_visitor import wait_for
from tests.ui.drafts import values_of
from ui.backend.dataset_checks import CheckQuestion
from ui.build import build_app
from ui.draft import read_draft
from ui.tabs.start import StartPart, render_reason, start_key, why_not
from ui.tabs.train import FOLLOW, TrainTab

PAGE = SimpleNamespace(session_hash="page-1")


@pytest.fixture
def tab(laid_out) -> TrainTab:
    return laid_out(TrainTab)


def begin(tab: TrainTab, token: str, copied_from: str, *values) -> Changes:
    return Changes(tab.start, tab.start.begin(token, copied_from, *values))


def begin_sweep(tab: TrainTab, token: str, copied_from: str, *values) -> Changes:
    return Changes(tab.start, tab.start.begin_sweep(token, copied_from, *values))


def chosen(tab: TrainTab, shown: Changes) -> str:
    return shown._updates[tab._page.chosen_run]


def waited_for(tab: TrainTab, shown: Changes) -> Changes:
    """What the timer finds in the end."""
    deadline = time.monotonic() + 300
    while shown.timer["active"]:
        assert time.monotonic() < deadline, "the start did not come to an end"
        time.sleep(0.01)
        shown = Changes(tab.start, tab.start.look(shown.pending))
    return shown


def start_run(tab: TrainTab, token: str, config) -> Changes:
    return waited_for(tab, begin(tab, token, "", *values_of(tab, config)))


def test_a_complete_draft_starts_a_run_and_the_page_follows_it(tab):
    changes = start_run(tab, "token", a_config(training__max_steps=3))

    run = tab._page.services.runs.get(chosen(tab, changes))
    assert changes.problems == ""
    assert tab._after_start(changes.goes_to)[tab.view] == FOLLOW
    assert changes.token != "token"
    assert run.folder.read_config().training.max_steps == 3


def test_a_look_that_was_on_its_way_when_the_run_was_queued_changes_nothing_about_where_the_page_goes(tab):
    start_run(tab, "token", a_config(training__max_steps=3))

    assert tab.start.goes_to not in tab.start.look("")


def test_the_same_draft_sent_twice_starts_one_run(tab):
    config = a_config(training__max_steps=3)

    first, second = start_run(tab, "token", config), start_run(tab, "token", config)

    assert chosen(tab, first) == chosen(tab, second)
    assert len(tab._page.services.runs.ids()) == 1


def test_a_run_remembers_which_one_its_settings_were_copied_from(tab):
    original = chosen(tab, start_run(tab, "token", a_config(training__max_steps=3)))
    values = values_of(tab, a_config(training__max_steps=4))
    runs = tab._page.services.runs

    copy = chosen(tab, waited_for(tab, begin(tab, "token", original, *values)))
    orphan = chosen(tab, waited_for(tab, begin(tab, "later", "20250101-000000-000-abcd", *values)))
    waited_for(tab, begin_sweep(tab, "token", original, "1e-4, 5e-4", "", True, *values))

    assert read_provenance(runs.get(copy).folder).copied_from == original
    assert read_provenance(runs.get(orphan).folder).copied_from is None
    swept = [run for run in runs.list() if run.id not in (original, copy, orphan)]
    assert [read_provenance(run.folder).copied_from for run in swept] == [original] * 2


def test_a_changed_draft_or_a_later_start_is_another_run(tab):
    ids = {
        chosen(tab, start_run(tab, "token", a_config(training__max_steps=3))),
        chosen(tab, start_run(tab, "token", a_config(training__max_steps=4))),
        chosen(tab, start_run(tab, "later", a_config(training__max_steps=3))),
    }

    assert len(ids) == 3
    assert start_key("a", [a_config()]) != start_key("b", [a_config()])


def test_problems_are_shown_in_place_and_nothing_starts(tab):
    values = dict(zip(tab._page.form.names, values_of(tab, a_config()), strict=True))
    values |= {"training.learning_rate": 7.0, "adapter.r": 0}

    changes = begin(tab, "token", "", *values.values())

    assert "2 settings need your attention" in changes.problems
    assert "training.learning_rate" in changes.problems
    assert not tab._page.services.runs.ids()
    assert tab._page.chosen_run not in changes._updates  # the chosen run stays
    assert changes.timer["active"] is False


def test_a_start_reports_what_it_is_checking_and_holds_no_handler_meanwhile(tab, monkeypatch):
    launcher, goes_on = tab._page.services.launcher, threading.Event()
    start = launcher.start

    def slow(config, key, *, on_progress, **settings):
        on_progress("Checking the data: 12 rows.")
        assert goes_on.wait(300)
        return start(config, key, **settings)

    monkeypatch.setattr(launcher, "start", slow)
    changes = begin(tab, "token", "", *values_of(tab, a_config(training__max_steps=3)))
    assert changes.timer["active"]
    deadline = time.monotonic() + 300
    while "12 rows" not in tab.start.look(changes.pending)[tab.start.problems]:
        assert time.monotonic() < deadline
    goes_on.set()
    assert waited_for(tab, changes).problems == ""


def test_a_start_that_is_refused_reports_why_and_can_be_tried_again(tab, monkeypatch):
    def refuse(*_, **__):
        raise DatasetError("The file is gone.", "Choose another.")

    launcher = tab._page.services.launcher
    monkeypatch.setattr(launcher, "start", refuse)
    config = a_config(training__max_steps=3)
    changes = start_run(tab, "token", config)
    assert "The file is gone." in changes.problems
    assert changes.start["interactive"]
    monkeypatch.undo()
    assert chosen(tab, start_run(tab, "token", config)) in tab._page.services.runs.ids()


def test_a_start_is_compared_with_the_rows_that_the_page_counted(tab, monkeypatch):
    asked = []

    def refuse(*_, previewed, **__):
        asked.append(previewed)
        raise DatasetError("The file changed since the preview.", "Look at its rows on the Data tab.")

    services, config = tab._page.services, a_config(training__max_steps=3)
    monkeypatch.setattr(services.launcher, "start", refuse)
    question = CheckQuestion.of(config)
    check = services.checks.ask(question)
    wait_for(lambda: check.is_done)

    changes = start_run(tab, "token", config)

    assert asked == [check.report]
    assert check.report is not None
    assert "changed since the preview" in changes.problems
    assert services.checks.find(question) is None, "its rows are read again"


def test_a_sweep_files_a_run_for_every_combination_once_and_shows_them(tab):
    values = values_of(tab, a_config(training__max_steps=3, adapter__r=16, adapter__lora_alpha=32))

    for _ in range(2):
        changes = waited_for(tab, begin_sweep(tab, "token", "", "1e-4, 5e-4", "8,16,", True, *values))

    configs = [run.folder.read_config() for run in tab._page.services.runs.list()]
    assert sorted((c.training.learning_rate, c.adapter.r, c.adapter.lora_alpha) for c in configs) == [
        (1e-4, 8, 16), (1e-4, 16, 32), (5e-4, 8, 16), (5e-4, 16, 32),
    ]  # fmt: skip
    assert changes.goes_to.startswith("runs ")


@pytest.mark.parametrize(("rates", "ranks", "said"), [("", "", "has no values"), ("seven", "", "learning_rate"), ("", "0", "adapter.r")])  # fmt: skip
def test_a_sweep_that_cannot_work_reports_it_and_files_nothing(tab, rates, ranks, said):
    changes = begin_sweep(tab, "token", "", rates, ranks, True, *values_of(tab, a_config()))

    assert said in changes.problems
    assert not tab._page.services.runs.ids()


def test_an_incomplete_draft_cannot_be_started_and_reports_why(tab, services):
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


def test_a_refusal_leaves_with_the_draft_that_it_was_about(services):
    app = build_app(services)
    start = next(one.fn.__self__ for one in app.fns.values() if getattr(one.fn, "__func__", None) is StartPart.begin)
    (clearing,) = [one for one in app.fns.values() if one.targets == [(start._draft._id, "change")]]

    assert clearing.outputs == [start.problems]
    assert (clearing.fn, clearing.js) == (None, "() => ''")
    drafts = [start._page.draft(start._page.form.updates(a_config(dataset__source=name).model_dump(mode="json"))) for name in ("bad", "bad", "good")]  # fmt: skip
    keys = [dict(start._page._views)[start._draft](draft) for draft in drafts]
    assert keys[0] == keys[1] != keys[2]
