"""A long history is parsed once; whatever is wrong with what was kept of it, the log has the last word."""

import numpy as np
import pytest

from engine.runs.history import reader as reader_module
from engine.runs.history.events import EvalData, ResumedData, StepData
from engine.runs.history.log import EventWriter
from engine.runs.history.reader import HistoryReader, cached_history_path, read_history
from engine.runs.run import RunState
from engine.runs.store import RunStore
from tests.runs.supervision import config_for


@pytest.fixture
def run(home, monkeypatch):
    """A run of fifty steps whose history is long enough to be kept."""
    monkeypatch.setattr(reader_module, "_WORTHWHILE_BYTES", 1000)
    run = RunStore(home, "ann").create(config_for("A run"))
    write_steps(run, 1, 50)
    return run


def write_steps(run, first: int, last: int, attempt: int = 1) -> None:
    with EventWriter(run.folder.events, attempt) as log:
        for step in range(first, last + 1):
            log.append(
                StepData(step=step, epoch=1, loss=1 / step, learning_rate=1e-4, tokens=step, tokens_per_second=9.0)
            )


def forbid_parsing(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a line was parsed that had been read before")

    monkeypatch.setattr("engine.runs.history.reader.parse_event", refuse)
    monkeypatch.setattr("engine.runs.history.reader.rows_of_plain_steps", refuse)


def test_another_reader_begins_where_the_first_one_stood(run, monkeypatch):
    with EventWriter(run.folder.events, 1) as log:
        log.append(EvalData(step=50, eval_loss=float("nan"), eval_tokens=1, rows=1, seconds=1.0))
    first = HistoryReader.of_run(run).update()
    forbid_parsing(monkeypatch)

    again = HistoryReader.of_run(run).update()

    assert again.next_offset == first.next_offset
    assert np.array_equal(again.steps.losses, first.steps.losses)
    assert [point.step for point in again.evals] == [50]
    assert np.isnan(again.evals[0].eval_loss)


def test_what_was_written_since_is_read_on_and_a_resume_supersedes_what_was_kept(run):
    HistoryReader.of_run(run).update()
    with EventWriter(run.folder.events, 2) as log:
        log.append(ResumedData(step=40))
    write_steps(run, 41, 45, attempt=2)

    again = HistoryReader.of_run(run).update()

    assert again.last_step == 45
    assert len(again.steps) == 45
    assert again.attempt == 2


@pytest.mark.parametrize("damage", ["log cut short", "log rewritten", "cache torn", "cache of another program"])
def test_a_cache_that_does_not_fit_its_log_is_not_believed(run, damage):
    HistoryReader.of_run(run).update()
    path, log = cached_history_path(run), run.folder.events
    text = log.read_bytes()
    match damage:
        case "log cut short":
            log.write_bytes(b"".join(text.splitlines(keepends=True)[:30]))
        case "log rewritten":
            log.write_bytes(text.replace(b'"loss":0.02,', b'"loss":9.99,'))
        case "cache torn":
            path.write_bytes(path.read_bytes()[:-700])
        case _:
            path.write_bytes(b"something else")

    again = HistoryReader.of_run(run).update()

    assert np.array_equal(again.steps.losses, read_history(log).steps.losses)


def test_short_histories_are_not_kept_and_deleted_ones_leave_nothing(home, run):
    store = RunStore(home, "ann")
    short = store.create(config_for("Short"))
    write_steps(short, 1, 2)
    HistoryReader.of_run(short).update()
    HistoryReader.of_run(run).update()
    assert not cached_history_path(short).exists()
    assert cached_history_path(run).exists()

    run.folder.write_state(RunState(state="completed"))
    store.delete(run.id)

    assert not cached_history_path(run).exists()


def test_a_growing_log_is_not_saved_at_every_look(run, monkeypatch):
    reader = HistoryReader.of_run(run)
    reader.update()
    saves = []
    monkeypatch.setattr(np, "savez", lambda *_, **__: saves.append(1))
    write_steps(run, 51, 52)
    reader.update()
    assert not saves
    write_steps(run, 53, 90)
    reader.update()
    assert saves
