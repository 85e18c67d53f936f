"""The bar at the bottom of every tab: one next step, for any draft."""

import re
import threading
from types import SimpleNamespace

import gradio as gr
import pytest

from loratory.engine.errors import RunError
from loratory.engine.evaluation.blind_test import judgements_file
from loratory.engine.runs.control import resume_is_requested
from loratory.ui.backend.background import FunctionJob
from loratory.ui.build import NextStepBar, render_card
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page
from loratory.ui.tabs.train import FOLLOW, SET_UP, TrainTab
from tests.invented_runs import InventedRun, a_config, write_run


@pytest.fixture
def bar(services) -> NextStepBar:
    with Blocks():
        page = Page(services)
        with gr.Tabs() as page.tabs, gr.Tab("Train", id="train"):
            train = TrainTab(page)
        train.follow.lay_out_side()
        bar = NextStepBar(page, train)
        page.form.complete()
        bar.redraw_after(train.wire())
        bar.wire(gr.HTML(), gr.HTML())
        page.wire()
    services.shapes.learn(a_config().model)
    return bar


def draft_of(bar: NextStepBar, config: dict):
    page = bar.page
    return page.draft(page.form.updates(config))


def complete(**settings) -> dict:
    return a_config(**settings).model_dump(mode="json")


def step_of(bar: NextStepBar, config: dict):
    step = bar.step(draft_of(bar, config))
    return step.label, step.target


def test_a_first_visit_begins_with_the_quick_start_a_later_one_with_what_is_missing(bar, services):
    assert step_of(bar, {"model": {}, "dataset": {}}) == ("Load quick start", "#start-here button")
    write_run(services.runs, a_config(), InventedRun())
    assert step_of(bar, {"model": {}, "dataset": {}}) == ("Choose a model", "model")
    assert step_of(bar, {"model": {"id": "x/y"}, "dataset": {}}) == ("Choose a dataset", "data")
    assert step_of(bar, complete(adapter__r=4)) == ("Start training", "")


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("training", {"learning_rate": -1}),
        ("adapter", {"r": 0}),
        ("dataset", {"eval_fraction": 2}),
        ("run", {"devices": "the big one"}),
    ],
)
def test_a_wrong_setting_is_one_click_away_and_nothing_can_start(bar, section, wrong):
    whole = complete()
    draft = draft_of(bar, {**whole, section: {**whole[section], **wrong}})
    name = f"{section}.{next(iter(wrong))}"

    step = bar.step(draft)

    assert (step.label, step.starts) == ("Correct 1 setting", False)
    assert f'data-field="{name}">Correct 1 setting</button>' in bar.render(draft)


def test_a_rate_far_above_the_usual_is_named_next_to_the_memory(bar):
    html = bar.render(draft_of(bar, complete(training__learning_rate=1.0)))

    assert re.search(r"[\d.]+ of [\d.]+ GiB", html)
    assert 'class="alarm" data-field="training.learning_rate">high learning rate</button>' in html


@pytest.mark.parametrize(("state", "text"), [("running", "Follow"), ("queued", "Follow"), ("completed", "Chat")])
def test_a_run_with_these_settings_is_the_next_step_instead_of_a_second_one(bar, services, state, text):
    run = write_run(services.runs, a_config(run__name="named by hand"), InventedRun(state=state))

    assert step_of(bar, complete()) == (text, f"{text.lower()}:{run.id}")
    assert step_of(bar, complete(adapter__r=4)) == ("Start training", "")


def test_a_run_that_began_before_its_rows_were_counted_is_followed(bar, services):
    run = write_run(services.runs, a_config(training__warmup_steps=0.5), InventedRun(state="running"))
    reader = bar.page.reader

    assert reader.newest_of(a_config(), ["training.warmup_steps"]).id == run.id
    assert reader.newest_of(a_config()) is None


def test_a_run_that_ended_since_the_list_was_read_is_no_longer_followed(bar, services, monkeypatch):
    # The list is kept for a second, which here never ends.
    monkeypatch.setattr("loratory.ui.backend.run_reader.time", SimpleNamespace(monotonic=lambda: 0.0))
    run = write_run(services.runs, a_config(), InventedRun(state="running"))
    assert step_of(bar, complete())[0] == "Follow"

    run.folder.write_state(run.folder.read_state().model_copy(update={"state": "completed"}))

    assert [row.state for row in bar.page.reader.summaries()] == ["running"]
    assert step_of(bar, complete())[0] == "Chat"


@pytest.mark.parametrize("state", ["failed", "stopped", "interrupted"])
def test_what_did_not_end_well_can_be_started_again(bar, services, state):
    write_run(services.runs, a_config(), InventedRun(state=state))

    assert step_of(bar, complete()) == ("Start training", "")


def test_a_stopped_run_with_a_checkpoint_is_resumed_instead_of_started_again(bar, services):
    run = write_run(services.runs, a_config(), InventedRun(state="stopped", steps=44, resumable_step=44))
    assert step_of(bar, complete()) == ("Resume", f"resume:{run.id}")

    opened = bar.open(gr.EventData(None, {"pick": f"resume:{run.id}"}))

    assert resume_is_requested(services.home, run)
    assert opened[bar.train.view] == FOLLOW
    assert step_of(bar, complete()) == ("Follow", f"follow:{run.id}")


def test_clicks_lead_to_tabs_and_to_runs_that_exist(bar, services):
    run = write_run(services.runs, a_config(), InventedRun(state="running"))
    page, train = bar.page, bar.train

    def opened(pick: str) -> dict:
        return bar.open(gr.EventData(None, {"pick": pick}))

    assert opened("data")[page.tabs].selected == "data"
    assert opened("train")[train.view] == SET_UP
    assert opened(f"follow:{run.id}")[train.view] == FOLLOW
    assert opened(f"chat:{run.id}")[page.chosen_run] == run.id
    for step, tab in (("chat", "chat"), ("blind", "chat"), ("measure", "chat"), ("export", "export")):
        updates = opened(f"{step}:{run.id}")
        assert (updates[page.tabs].selected, updates[page.wants_result].split()[0]) == (tab, step)
    for pick in ("chat:../../etc", "follow:", "nowhere", "", "model/../lab", "stop:../../etc"):
        assert opened(pick) == gr.skip()


def test_stop_saves_the_run_as_the_button_of_its_view_does(bar, services):
    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=3))
    assert f'data-pick="stop:{run.id}"' in bar.render_run(run.id)

    assert bar.open(gr.EventData(None, {"pick": f"stop:{run.id}"})) == gr.skip()

    assert run.folder.stop_request.exists()
    assert "stop:" not in bar.render_run(run.id)  # at once, although other pages share what is drawn


def test_steps_and_time_are_next_to_the_memory_once_they_are_known(bar, monkeypatch):
    monkeypatch.setattr("loratory.ui.views.draft.outlook", lambda *facts: ["160 steps", "≈ 7 min"])

    assert re.search(r">160 steps · ≈ 7 min · [\d.]+ of [\d.]+ GiB", bar.render(draft_of(bar, complete())))


@pytest.mark.parametrize(
    ("config", "lands"),
    [({"model": {}, "dataset": {}}, "model"), ({"model": {"id": "x/y"}, "dataset": {}}, "data"), (complete(), "train")],
)
def test_a_browser_without_an_address_lands_where_the_draft_is_or_on_the_active_run(bar, services, config, lands):
    draft = draft_of(bar, config)
    assert f'data-lands="{lands}"' in bar.render(draft)

    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=3))

    assert f'data-lands="train/{run.id}"' in bar.render(draft)


def test_an_empty_draft_lands_on_the_list_of_runs_once_there_are_some(bar, services):
    draft = draft_of(bar, {"model": {}, "dataset": {}})
    assert 'data-lands="model"' in bar.render(draft)

    write_run(services.runs, a_config(), InventedRun())

    assert 'data-lands="runs"' in bar.render(draft)


def test_an_address_chooses_its_run_and_leaves_the_tab_to_the_browser(bar, services):
    run, page = write_run(services.runs, a_config(), InventedRun()), bar.page

    def opened(path: str) -> dict:
        return bar.open(gr.EventData(None, {"pick": path}))

    for path, part, view in (
        ("train", page.wants_run, "follow"), ("chat", page.wants_result, "look"), ("export", page.wants_result, "export"),
        ("runs", page.wants_run, "details"),
    ):  # fmt: skip
        updates = opened(f"/{path}/{run.id}")
        assert (updates[page.chosen_run], updates[part].split()[0]) == (run.id, view)
        assert page.tabs not in updates
    assert opened("/train")[bar.train.view] == SET_UP
    for name in ("20260101-000000-000-abcd", "..", "%2e%2e", "ann/20260101-000000-000-abcd"):
        with pytest.raises(RunError, match="was not found"):
            opened(f"/runs/{name}")


def test_the_line_is_about_the_chosen_run_and_else_about_the_active_one(bar, services):
    done = write_run(services.runs, a_config(run__name="done <b>"), InventedRun())
    assert bar.render_run("") == bar.render_run("../../etc") == ""
    active = write_run(services.runs, a_config(run__name="active"), InventedRun(state="running", steps=3))

    for chosen, in_hand in ((done.id, done.id), (active.id, active.id), ("gone", active.id)):
        html = bar.render_run(chosen)
        assert f'class="in-hand" data-run="{in_hand}"' in html
        assert '<div class="active" title="active">' in html
        assert "done <b>" not in html


def test_a_step_under_way_says_so_and_is_not_offered_again(bar, services, monkeypatch):
    run, may_end = write_run(services.runs, a_config(), InventedRun()), threading.Event()
    run.folder.chat_mark.touch()
    judgements_file(run.folder.path, None).parent.mkdir(exist_ok=True)
    judgements_file(run.folder.path, None).touch()
    monkeypatch.setattr("loratory.ui.build.HEADER_SECONDS", 1e-6)  # of its cache
    assert "Measure now" in bar.render_run(run.id)

    work = services.results.measuring.start(run.id, "An evaluation", FunctionJob(lambda _: may_end.wait(20)))
    for fraction in (None, 0.41):  # of one phase of several: the bar would go back with each
        work.fraction = fraction
        html = bar.render_run(run.id)
        assert "<span>under way</span>" in html
        assert "41%" not in html
        assert f'class="go" data-pick="measure:{run.id}"' in html  # from another tab it leads there
        assert "Measure now" not in html
    may_end.set()
    assert work.done.wait(20)
    assert "Measure now" in bar.render_run(run.id)


def test_both_buttons_start_the_same_and_wait_together(bar, services, monkeypatch):
    start, launch, may_start = bar.train.start, services.launcher.start, threading.Event()
    monkeypatch.setattr(
        services.launcher, "start", lambda *arguments, **options: may_start.wait(60) and launch(*arguments, **options)
    )

    assert start._buttons == [start.start, bar.start]
    changes = start.begin("run", "token", "", "", "", *bar.page.form.updates(complete(training__max_steps=2)))
    may_start.set()
    assert changes[bar.start] == changes[start.start] == gr.update(value="Starting …", interactive=False)


def test_the_card_of_a_first_visit_loads_a_preset_and_goes_with_the_first_choice(bar, services):
    page = bar.page

    assert "quickstart-cpu" in render_card(page, draft_of(bar, {}))
    assert render_card(page, draft_of(bar, {"model": complete()["model"]})) == ""
    write_run(services.runs, a_config(), InventedRun())
    assert render_card(page, draft_of(bar, {})) == ""
