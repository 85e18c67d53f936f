"""The bar at the bottom of every tab: one next step, for any draft."""

import threading
from types import SimpleNamespace

import gradio as gr
import pytest

from loratory.engine.runs.control import resume_is_requested
from loratory.ui.build import NextStepBar, StartHere
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page
from loratory.ui.tabs.train import FOLLOW, SET_UP, TrainTab
from loratory.ui.views.draft import render_bar
from tests.invented_runs import InventedRun, a_config, write_run


@pytest.fixture
def bar(services) -> NextStepBar:
    with Blocks():
        page = Page(services)
        with gr.Tabs() as page.tabs, gr.Tab("Train", id="train"):
            train = TrainTab(page)
        train.follow.lay_out_side()
        bar, card = NextStepBar(page, train), StartHere(page)
        page.form.complete()
        bar.redraw_after(train.wire())
        card.wire(train)
        bar.wire()
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


def test_what_is_missing_comes_first_or_on_an_empty_page_the_active_run(bar, services):
    empty: dict = {"model": {}, "dataset": {}}
    assert step_of(bar, empty) == ("Choose a model", "model")

    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=3))

    assert step_of(bar, empty) == ("Follow", f"follow:{run.id}")
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
    assert f'data-field="{name}">Correct 1 setting</button>' in render_bar(draft, step)


def test_fits_is_about_memory_and_a_rate_far_above_the_usual_is_named_next_to_it(bar):
    draft = draft_of(bar, complete(training__learning_rate=1.0))

    html = render_bar(draft, bar.step(draft))

    assert "Fits in memory." in html
    assert 'class="alarm" data-field="training.learning_rate">high learning rate</button>' in html


@pytest.mark.parametrize(
    ("state", "text"), [("running", "Follow"), ("queued", "Follow"), ("completed", "Open in Chat")]
)
def test_a_run_with_these_settings_is_the_next_step_instead_of_a_second_one(bar, services, state, text):
    run = write_run(services.runs, a_config(run__name="named by hand"), InventedRun(state=state))

    assert step_of(bar, complete()) == (text, f"{text.split()[-1].lower()}:{run.id}")
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
    assert step_of(bar, complete())[0] == "Open in Chat"


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
    for pick in ("chat:../../etc", "follow:", "nowhere", "", "model/../lab"):
        assert opened(pick) == gr.skip()


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
    card = StartHere.__new__(StartHere)
    card.page = bar.page

    assert "quickstart-cpu" in card.render(draft_of(bar, {}))
    assert card.render(draft_of(bar, {"model": complete()["model"]})) == ""
    write_run(services.runs, a_config(), InventedRun())
    assert card.render(draft_of(bar, {})) == ""
