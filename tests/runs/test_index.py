import json
import math
import os

import pytest

from loratory.engine.config.results import HELD_OUT_PROMPTS
from loratory.engine.evaluation.job import evaluation_file
from loratory.engine.runs.control import change_notes
from loratory.engine.runs.history.events import EvalData, MemoryData, StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.provenance import MemoryFigures, Provenance, run_title
from loratory.engine.runs.run import RunState
from loratory.engine.runs.summary import RunIndex, summarize
from loratory.engine.runs.test_scores import TestScore
from tests.event_log import write_log
from tests.fake_results import a_test_result, save_tests
from tests.supervision.fake_runs import config_for


def make_run(store, name="A run", steps=3, state="completed"):
    run = store.create(config_for(name), Provenance(predicted_memory=MemoryFigures(process_bytes=777)))
    with EventWriter(run.folder.events, 1) as events:
        events.append(StatusData(phase="training", total_steps=steps))
        events.append(EvalData(step=0, eval_loss=3.0, eval_tokens=1, rows=1, seconds=1))
        for step in range(1, steps + 1):
            events.append(
                StepData(step=step, epoch=1, loss=2.0, learning_rate=1e-4, tokens=step * 10, trained_tokens=step * 6,
                         tokens_per_second=10.0)
            )  # fmt: skip
        events.append(EvalData(step=steps, eval_loss=1.5, eval_tokens=1, rows=1, seconds=1))
        events.append(MemoryData(peak_process_bytes=999))
    run.folder.write_state(RunState(state=state, attempt=1, started=100.0, ended=160.0))
    return run


def test_a_summary_holds_the_figures_of_the_run(store):
    summary = summarize(make_run(store, "Evening run"))

    assert (summary.name, summary.state, summary.model, summary.method) == (
        "Evening run",
        "completed",
        "some/model",
        "LoRA",
    )
    assert (summary.steps, summary.total_steps, summary.trained_tokens) == (3, 3, 18)
    assert (summary.final_loss, summary.base_eval_loss, summary.eval_loss) == (2.0, 3.0, 1.5)
    assert (summary.best_eval_loss, summary.best_step) == (1.5, 3)
    assert (summary.peak_memory_bytes, summary.predicted_bytes) == (999, 777)
    assert summary.tokens_per_second == pytest.approx(10.0)
    assert summary.seconds == 60.0
    assert summary.size_bytes > 500


def test_a_run_without_a_name_is_called_by_model_method_and_data():
    assert run_title(config_for("")) == "model · LoRA · data.jsonl"


def test_a_run_whose_config_was_damaged_is_listed_all_the_same(store):
    run = make_run(store, "Evening run")
    run.folder.config.write_text("model: [")
    assert summarize(run).name == "Evening run"

    run.folder.provenance.unlink()
    assert summarize(run).name == "(configuration unreadable)"
    assert RunIndex(store).summaries()[0].steps == 3


def test_a_run_whose_provenance_was_lost_is_described_by_its_config(store):
    run = make_run(store, "Evening run")
    run.folder.provenance.write_text("{torn")

    assert (summarize(run).name, summarize(run).model) == ("Evening run", "some/model")


def test_rows_of_ended_runs_are_remembered_across_restarts_and_not_read_again(store, monkeypatch):
    make_run(store, "one")
    make_run(store, "two")
    assert [row.name for row in RunIndex(store).summaries()] == ["two", "one"]

    def refuse(*_args):
        raise AssertionError("drawn up although nothing had changed")

    monkeypatch.setattr("loratory.engine.runs.summary.summarize", refuse)
    assert [row.name for row in RunIndex(store).summaries()] == ["two", "one"]


def test_who_cannot_wait_gets_the_newest_runs_first_and_the_rest_with_later_looks(store, home):
    runs = [make_run(store, f"Run {number}", steps=1) for number in range(4)]
    index = RunIndex(store)

    first = index.glance(patience_seconds=-1.0)
    assert (first.rows, first.unread) == ([], 4)
    assert not (home.cache / "runs" / "ann.json").exists()  # a part of the runs is no list of them

    assert index.summary(runs[3]).name == "Run 3"
    assert [row.id for row in index.glance(patience_seconds=math.inf).rows] == [run.id for run in reversed(runs)]
    assert index.glance(patience_seconds=-1.0).unread == 0
    assert RunIndex(store).glance(patience_seconds=-1.0).unread == 0  # they are remembered


def test_a_living_run_that_was_read_once_is_never_missing(store):
    run = make_run(store, state="running")
    index = RunIndex(store)
    index.summaries()

    assert [row.id for row in index.glance(patience_seconds=-1.0).rows] == [run.id]


def test_a_change_of_state_notes_or_events_shows(store):
    run = make_run(store, "one")
    index = RunIndex(store)
    index.summaries()

    change_notes(run.folder, name="Renamed", tags=("good",))
    assert index.summaries()[0].name == "Renamed"
    assert index.summary(run).tags == ("good",)
    run.folder.write_state(RunState(state="failed", cause="Broken after all."))
    assert index.summaries()[0].cause == "Broken after all."


def test_a_living_run_is_followed(store):
    run = make_run(store, state="running")
    index = RunIndex(store)
    assert index.summaries()[0].steps == 3
    write_log(
        run.folder.events, StepData(step=4, epoch=1, loss=1.25, learning_rate=1e-4, tokens=40, tokens_per_second=10.0)
    )

    assert (index.summaries()[0].steps, index.summaries()[0].final_loss) == (4, 1.25)


def test_deleted_runs_leave_the_list_and_the_cache(store, home):
    run = make_run(store, "one")
    other_run = make_run(store, "two")
    index = RunIndex(store)
    index.summaries()
    store.delete(run.id)

    assert [row.id for row in index.summaries()] == [other_run.id]
    assert list(json.loads((home.cache / "runs" / "ann.json").read_text())["runs"]) == [other_run.id]


@pytest.mark.parametrize("broken", [b"", b"{", b'{"version": 999, "runs": {}}', b"\0\0"])
def test_a_broken_cache_is_drawn_up_again(store, home, broken):
    make_run(store, "one")
    (home.cache / "runs").mkdir(parents=True)
    (home.cache / "runs" / "ann.json").write_bytes(broken)

    assert [row.name for row in RunIndex(store).summaries()] == ["one"]


def test_losses_that_are_not_numbers_do_not_break_the_list(store):
    run = make_run(store)
    write_log(
        run.folder.events,
        EvalData(step=4, eval_loss=float("nan"), eval_tokens=1, rows=1, seconds=1),
        StepData(step=4, epoch=1, loss=float("nan"), learning_rate=1e-4, tokens=40, tokens_per_second=10.0),
    )
    RunIndex(store).summaries()
    row = RunIndex(store).summaries()[0]

    assert row.final_loss is None
    assert row.best_eval_loss == 1.5


def test_the_newest_scores_of_test_sets_show_once_they_are_measured(store):
    run = make_run(store)
    index = RunIndex(store)
    assert index.summaries()[0].tests == {}

    save_tests(run.folder.path, a_test_result("sums.jsonl", tuned=0.5), a_test_result(HELD_OUT_PROMPTS))
    (score,) = index.summaries()[0].tests.items()
    assert score == ("sums.jsonl (Number)", TestScore(score=0.5, low=score[1].low, high=score[1].high))
    assert 0 <= score[1].low < 0.5 < score[1].high <= 1

    save_tests(run.folder.path, a_test_result("sums.jsonl", tuned=0.75), checkpoint="step-2")
    os.utime(evaluation_file(run.folder.path, None), (1, 1))  # so the clock of the file system does not matter
    newest = index.summaries()[0].tests["sums.jsonl (Number)"]
    assert (newest.score, newest.checkpoint) == (0.75, "step-2")
    assert newest.interval.endswith(", step-2")


def test_an_evaluation_that_is_damaged_shows_nothing(store):
    run = make_run(store)
    save_tests(run.folder.path, a_test_result())
    evaluation_file(run.folder.path, None).write_text("{torn")

    assert summarize(run).tests == {}
