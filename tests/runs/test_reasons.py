"""Why a run is in its state is a value: its words may change, and runs of versions that saved words alone are read."""

import json

import pytest

from engine.runs.history.events import StatusData
from engine.runs.history.log import EventWriter, last_event
from engine.runs.run import RunState
from engine.runs.supervision.transitions import resumes_automatically
from tests.runs.supervision import config_for, move_to_an_earlier_boot
from ui.backend.run_reader import RunReader
from ui.views.run_table import render_queue

RESUMES = {"resume_after_restart": True}
OLD_SIGTERM = "The worker was asked to end from outside (SIGTERM) after step 3 and could not save."


def resumes_by_itself(run, state: RunState | None = None) -> bool:
    move_to_an_earlier_boot(run)
    return resumes_automatically(run.folder, state or run.folder.read_state())


@pytest.mark.parametrize(
    ("state", "reason", "resumes"),
    [
        ("interrupted", "machine_restarted", True),
        ("interrupted", "sigterm", True),
        ("stopped", "sigterm", True),
        ("interrupted", "unknown", False),
        ("stopped", "sigint", False),
    ],
)
def test_what_resumes_after_a_restart_depends_on_the_reason_and_not_on_its_words(store, state, reason, resumes):
    run = store.create(config_for(run=RESUMES))
    words = "The machine was restarted (SIGTERM)." if not resumes else "Other words."

    assert resumes_by_itself(run, RunState(state=state, attempt=1, reason=reason, cause=words)) == resumes


@pytest.mark.parametrize("stopped_by", ["sigterm", "request"])
def test_the_last_event_names_who_stopped_the_worker_whatever_its_words(store, stopped_by):
    run = store.create(config_for(run=RESUMES))
    with EventWriter(run.folder.events, 1) as events:
        events.append(StatusData(phase="stopped", message="Other words.", stopped_by=stopped_by))

    assert run.folder.read_state().reason == {"sigterm": "sigterm", "request": "stopped_on_request"}[stopped_by]
    assert resumes_by_itself(run) == (stopped_by == "sigterm")


@pytest.mark.parametrize("reason", ["memory", "device_in_use"])
def test_a_run_may_be_let_start_where_memory_is_the_reason_whatever_its_words(store, reason):
    run = store.create(config_for())
    run.folder.write_state(RunState(reason=reason, cause="Other words."))
    reader = RunReader(store)

    assert reader.observe(run.id).waits_for_memory == (reason == "memory")
    assert ("anyway:" in render_queue([reader.summary(run.id)])) == (reason == "memory")


@pytest.mark.parametrize(
    ("state", "cause", "reason"),
    [
        ("interrupted", "The machine was restarted after step 3.", "machine_restarted"),
        ("interrupted", OLD_SIGTERM, "sigterm"),
        ("stopped", "The system asked to end (SIGTERM). Saved after step 3 of 9.", "sigterm"),
        ("queued", "Waits for memory: it needs 9.0 GiB, and the CPU has 2.0 of 16.0 GiB free.", "memory"),
        ("queued", "Waits: GPU 0 is in use for chat (qwen).", None),
        ("stopped", "Stopped on request after step 3.", None),
    ],
)
def test_a_state_of_an_older_version_keeps_its_words_and_gets_its_reason(store, state, cause, reason):
    run = store.create(config_for())
    run.folder.state.write_text(json.dumps({"state": state, "cause": cause, "attempt": 1}))

    read = run.folder.read_state()

    assert (read.state, read.cause, read.reason) == (state, cause, reason)


@pytest.mark.parametrize(
    ("message", "stopped_by"),
    [
        ("The system asked to end (SIGTERM). Saved after step 3 of 9.", "sigterm"),
        ("The system asked to end (SIGINT). Saved after step 3 of 9.", "sigint"),
        ("Stopped on request. Saved after step 3 of 9.", "request"),
        ("Cancelled.", "cancel"),
    ],
)
def test_a_log_of_an_older_version_still_says_who_stopped_the_worker(store, message, stopped_by):
    run = store.create(config_for())
    data = {"phase": "stopped", "message": message}
    run.folder.events.write_text(
        json.dumps({"seq": 1, "attempt": 1, "time": 5.0, "kind": "status", "data": data}) + "\n"
    )

    last = last_event(run.folder.events)

    assert last is not None
    assert isinstance(last.data, StatusData)
    assert (last.data.message, last.data.stopped_by) == (message, stopped_by)
