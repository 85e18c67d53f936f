"""Why a run is in its state is a value: its words may change."""

import pytest

from loratory.engine.runs.control import request_stop
from loratory.engine.runs.run import RunState
from loratory.engine.supervision.states import resumes_automatically, with_progress
from loratory.ui.backend.run_reader import RunReader
from loratory.ui.views.run_table import render_queue
from tests.supervision.fake_runs import config_for, move_to_an_earlier_boot

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
        ("stopped", "cancelled", False),
    ],
)
def test_what_resumes_after_a_restart_depends_on_the_reason_and_not_on_its_words(store, state, reason, resumes):
    run = store.create(config_for(run=RESUMES))
    cause = "The machine was restarted (SIGTERM)." if not resumes else "Other words."

    assert resumes_by_itself(run, RunState(state=state, attempt=1, reason=reason, cause=cause)) == resumes


@pytest.mark.parametrize("reason", ["preempted", "node_failed", "job_time_limit", "job_cancelled"])
def test_a_preempted_run_resumes_and_one_that_a_person_cancelled_there_does_not(store, reason):
    run = store.create(config_for())

    assert resumes_automatically(run.folder, RunState(state="interrupted", attempt=1, reason=reason)) == (
        reason != "job_cancelled"
    )
    request_stop(run)
    assert not resumes_automatically(run.folder, RunState(state="interrupted", attempt=1, reason=reason))


def test_three_attempts_in_a_row_without_a_newer_checkpoint_are_enough(store):
    folder, preemption = store.create(config_for()).folder, {"state": "interrupted", "reason": "preempted"}
    before, resumed = RunState(attempt=0), []
    for step in (None, 5, 5, 5, 5):
        after = RunState.model_validate({**preemption, "attempt": before.attempt + 1, "resumable_step": step})
        before = with_progress(before, after)
        resumed.append(resumes_automatically(folder, before))

    assert resumed == [True, True, True, True, False]
    assert "3 attempts in a row saved no newer checkpoint" in before.advice


@pytest.mark.parametrize("host", ["", "another-host"], ids=["this machine", "another one"])
def test_a_sigterm_on_another_host_is_a_cancel_there_and_no_restart_of_this_machine(store, host):
    run = store.create(config_for(run=RESUMES))
    move_to_an_earlier_boot(run)
    worker = run.folder.read_worker()
    run.folder.process.write_text(worker.model_copy(update={"host": host or worker.host}).model_dump_json())

    assert resumes_automatically(run.folder, RunState(state="stopped", attempt=1, reason="sigterm")) == (not host)


@pytest.mark.parametrize("reason", ["memory", "device_in_use"])
def test_a_run_may_be_let_start_where_memory_is_the_reason_regardless_of_its_words(store, reason):
    run = store.create(config_for())
    run.folder.write_state(RunState(reason=reason, cause="Other words."))
    reader = RunReader(store)

    assert reader.observe(run.id).waits_for_memory == (reason == "memory")
    assert ("anyway:" in render_queue([reader.summary(run.id)])) == (reason == "memory")
