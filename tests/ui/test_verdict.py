"""The verdict under a run's heading: a sentence, and one button that does what helps; how long each phase took."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from loratory.engine.errors import RunError
from loratory.engine.evaluation.job import BranchLoss, EvaluationResult, evaluation_file
from loratory.engine.runs.history.events import DataReportData, StatusData
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.page import request_view
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.tabs.train import TrainTab
from loratory.ui.views.run_view import render_heading, render_time
from tests.event_log import write_log
from tests.invented_runs import InventedRun, a_config, write_checkpoint, write_run
from tests.ui.changes import Changes

CURVES = Path(__file__).parents[1] / "runs" / "curves"


@pytest.fixture
def record(services):
    """Make a run with recorded curves."""

    def make(name: str, **settings):
        defaults = {
            "training__max_steps": -1,
            "training__num_train_epochs": 2,
            "training__early_stopping_patience": None,
        }
        config = a_config(**{**defaults, "dataset__eval_fraction": 0.15, **settings})
        run = write_run(services.runs, config, InventedRun())
        run.folder.events.write_bytes((CURVES / f"{name}.jsonl").read_bytes())
        return run

    return make


@pytest.fixture
def follow(laid_out):
    return laid_out(TrainTab).follow


def show(follow, run) -> Changes:
    return Changes(follow, follow.show(run.id, 0.9, False, False))


def advice(follow, run) -> Changes:
    return Changes(follow.page, follow.take_advice(run.id))


def test_a_run_that_learned_well_is_praised_without_a_button(follow, record):
    heading = show(follow, record("smollm2")).heading

    assert '<b class="yes">Learned well.</b> The held-out loss went from 4.55 to 2.90.' in heading
    assert 'data-pick="advice"' not in heading


def test_a_high_learning_rate_is_lowered_in_a_copy_of_the_settings(follow, record):
    run = record("rate_high", training__learning_rate=6e-4, run__name="too fast")

    heading, outcome = show(follow, run).heading, advice(follow, run)

    assert '<b class="alarm">Learning rate too high.</b> The held-out loss rose from 2.58' in heading
    assert heading.count('data-pick="advice"') == 1
    assert "Copy settings with learning rate 0.0002" in heading
    assert outcome.settings_copy["training"]["learning_rate"] == 2e-4
    assert outcome.settings_copy["training"]["num_train_epochs"] == 2
    assert outcome.settings_copy["run"]["name"] == ""
    assert outcome.copied_from == run.id
    assert outcome.tabs.selected == "method"


@pytest.mark.parametrize(
    ("name", "epochs", "label"),
    [("unconverged", 1, "Copy settings with epochs 2"), ("one_epoch", 3, "Copy settings with epochs 1")],
)
def test_another_length_is_a_copy_of_the_settings(follow, record, name, epochs, label):
    assert label in show(follow, record(name, training__num_train_epochs=epochs)).heading


def test_an_overfitted_run_opens_in_chat_with_its_best_checkpoint(follow, laid_out, record):
    run = record("overfits", training__save_total_limit=1000)
    write_checkpoint(run, 96)

    heading, outcome = show(follow, run).heading, advice(follow, run)
    chat = laid_out(ChatTab)
    choice = Changes(chat.choice, chat.propose(outcome.wants_result, run.id))

    assert "Use checkpoint of step 96" in heading
    assert (outcome.chosen_run, outcome.tabs.selected, outcome.settings_copy) == (run.id, "chat", {})
    assert (choice.run["value"], choice.checkpoint["value"]) == (run.id, "step-96")
    assert Changes(chat.choice, chat.propose(request_view("chat"), run.id)).checkpoint["value"] == FINAL
    assert Changes(chat.choice, chat.propose(request_view("chat", "../elsewhere"), run.id)).checkpoint["value"] == FINAL


def test_keeping_the_best_is_a_copy_where_its_checkpoint_was_deleted(follow, record):
    run = record("overfits", training__save_total_limit=1)

    assert "Copy settings with keep best<" in show(follow, run).heading
    assert advice(follow, run).settings_copy["training"]["load_best_model_at_end"] is True


def test_forgetting_comes_from_the_evaluation_of_the_run(follow, record):
    run = record("smollm2")
    losses = {"base": BranchLoss.from_loss(3.0, 100), "tuned": BranchLoss.from_loss(3.3, 100)}
    file = evaluation_file(run.folder.path, None)
    file.parent.mkdir()
    file.write_text(EvaluationResult(losses=losses, rows=9, scores={}, general_losses=losses).model_dump_json())

    heading = show(follow, run).heading

    assert '<b class="alarm">Forgot 10%.</b>' in heading
    assert "mix in general data" in heading
    assert 'data-pick="advice"' not in heading


def test_general_rows_are_mixed_in_with_one_click(follow, record):
    run = record("smollm2", dataset__mix={"sample:loratory-chat": 0.5})
    report = DataReportData(train_rows=319, eval_rows=35, dropped_rows=0, trained_tokens=80_000, masked_tokens=9)
    write_log(run.folder.events, report, StatusData(phase="finished"))
    losses = {"base": BranchLoss.from_loss(3.0, 100), "tuned": BranchLoss.from_loss(3.3, 100)}
    general = {"replay": "set:general-tiny", "replay_tokens": 40_000}
    file = evaluation_file(run.folder.path, None)
    file.parent.mkdir()
    file.write_text(
        EvaluationResult(losses=losses, rows=9, scores={}, general_losses=losses, **general).model_dump_json()
    )

    assert "Copy settings with general rows mixed in<" in show(follow, run).heading
    outcome = advice(follow, run)
    assert outcome.settings_copy["dataset"]["mix"] == {"sample:loratory-chat": 0.5, "set:general-tiny": 0.2}
    assert outcome.settings_copy["dataset"]["source"] == "sample:loratory-faq"
    assert outcome.copied_from == run.id


def test_a_run_of_someone_else_has_no_button_and_an_unknown_id_is_refused(follow, record):
    run = record("rate_high")

    assert "data-pick" not in render_heading(follow.page.reader.observe(run.id)), "the heading that is shared"
    with pytest.raises(RunError):
        follow.take_advice("20200101-000000-000-0000")


def test_the_time_is_a_bar_with_a_figure_for_each_phase(follow, record):
    html = show(follow, record("smollm2")).memory

    assert "<h3>Time</h3>" in html
    for title in ("Loading model", "Training", "Evaluating", "Saving"):
        assert f"<span>{title}</span>" in html
    assert html.count("flex-grow") == html.count('class="v"')


def test_a_run_that_waits_has_spent_no_time(follow, services):
    run = write_run(services.runs, a_config(), InventedRun(state="queued"))

    assert render_time(follow.page.reader.observe(run.id)) == ""


def test_a_star_in_the_heading_copies_no_settings(follow, record):
    run = record("smollm2")

    star = SimpleNamespace(_data={"pick": f"star:{run.id}"})
    assert follow._advise(star, run.id) == {follow.page.settings_copy: {}}
