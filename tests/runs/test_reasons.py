"""Why a run is in its state is a value: its words may change."""

import pytest

from engine.runs.history.events import StatusData
from engine.runs.history.log import EventWriter
from engine.runs.run import RunState
from engine.runs.supervision.states import resumes_automatically
from tests.runs.supervision import config_for, move_to_an_earlier_boot
from ui.backend.run_reader import RunReader
from ui.views.run_table import render_queue

RESUMES = {"resume_after_restart": True}


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
