import signal

import pytest

from loratory.engine.runs.activity import Silence
from loratory.engine.runs.history.events import FailedData, StatusData
from loratory.engine.runs.job import JobEnd
from loratory.engine.supervision.diagnosis import Diagnosis, Evidence, diagnose, out_of_memory_kills


def evidence(
    finished_phase=None, message="", exit_code=None, machine_restarted=False, silent_seconds=0.0, limit_seconds=0.0, verdict=None,
    executors="", stopped_by=None, **known,
) -> Evidence:  # fmt: skip
    status = None
    if finished_phase is not None:
        status = StatusData(phase=finished_phase, message=message, stopped_by=stopped_by)
    silence = Silence(silent_seconds, limit_seconds, is_suspended=False)
    end = JobEnd(exit_code, machine_restarted=machine_restarted, verdict=verdict, cause=executors)
    return Evidence(end=end, status=status, silence=silence, **known)


FAILED = FailedData(cause="diverged", what="The loss is not a number.", fix="Lower the learning rate.")


def test_the_workers_own_words_come_first():
    assert diagnose(evidence(finished_phase="finished", exit_code=-9)).state == "completed"
    assert diagnose(evidence(finished_phase="stopped", exit_code=0, last_step=4)).state == "stopped"
    assert diagnose(evidence(finished_phase="finished", message="Done.", last_step=9, total_steps=9)).cause == ""
    early = diagnose(
        evidence(finished_phase="finished", message="It had stopped improving.", last_step=5, total_steps=9)
    )
    assert early == Diagnosis("completed", "finished", "It had stopped improving.", "")
    ending = diagnose(evidence(failed=FAILED, exit_code=1))
    assert ending == Diagnosis("failed", "worker_failed", "The loss is not a number.", "Lower the learning rate.")


def test_a_stop_and_a_cancel_say_what_can_be_used():
    message = "The system asked to end (SIGTERM). Saved after step 8 of 20."
    stop = diagnose(
        evidence(finished_phase="stopped", message=message, last_step=8, resumable_step=8, has_adapter=True)
    )
    assert (stop.state, stop.cause) == ("stopped", message)
    assert "saved and can be used" in stop.advice

    early = diagnose(evidence(finished_phase="stopped", message="Stopped on request. Nothing was trained yet."))
    assert early.advice == "Nothing was saved yet."

    cancel = diagnose(evidence(ended_by_us="cancel", cancel_requested=True, last_step=8, resumable_step=5))
    assert (cancel.state, cancel.cause) == ("stopped", "Cancelled after step 8.")
    assert cancel.advice == "The checkpoint of step 5 can be used, or resumed."


def test_a_stop_at_the_disk_limit_has_a_reason_of_its_own():
    message = "You use 1.5 GB of 2.6 GB, and there is no room for a checkpoint. Stopped after step 2 of 5."
    stop = diagnose(
        evidence(finished_phase="stopped", stopped_by="disk_limit", message=message, last_step=2, resumable_step=1)
    )

    assert (stop.state, stop.reason, stop.cause) == ("stopped", "disk_limit", message)
    assert stop.advice == (
        "Delete runs, uploads, exports, sets or own models that you no longer need. "
        "The checkpoint of step 1 can be used, or resumed."
    )


@pytest.mark.parametrize(
    ("known", "state"),
    [
        (evidence(cancel_requested=True, last_step=8), "stopped"),
        (evidence(cancel_requested=True, last_step=8, exit_code=-signal.SIGKILL), "stopped"),
        (evidence(cancel_requested=True, last_step=8, machine_restarted=True), "stopped"),
        (evidence(cancel_requested=True, last_step=8, exit_code=-signal.SIGSEGV), "failed"),
        (evidence(cancel_requested=True, last_step=8, exit_code=1), "failed"),
        (evidence(cancel_requested=True, last_step=8, ended_by_us="suspended"), "failed"),
        (evidence(cancel_requested=True, last_step=8, failed=FAILED), "failed"),
        (evidence(cancel_requested=True, last_step=8, finished_phase="finished"), "completed"),
    ],
)
def test_a_cancel_is_believed_where_nothing_else_explains_the_end(known, state):
    ending = diagnose(known)

    assert ending.state == state
    assert (ending.cause == "Cancelled after step 8.") == (state == "stopped")


@pytest.mark.parametrize(
    ("known", "state", "text"),
    [
        (evidence(exit_code=-signal.SIGKILL), "failed", "killed from outside (SIGKILL)"),
        (evidence(exit_code=-signal.SIGKILL, out_of_memory_kills=1), "failed", "ran out of memory"),
        (evidence(exit_code=None, out_of_memory_kills=1), "failed", "ran out of memory"),
        (evidence(exit_code=-signal.SIGSEGV), "failed", "crashed in native code (SIGSEGV)"),
        (evidence(exit_code=-signal.SIGABRT), "failed", "crashed in native code (SIGABRT)"),
        (evidence(exit_code=-signal.SIGTERM), "interrupted", "terminated from outside (SIGTERM)"),
        (evidence(exit_code=-63), "failed", "signal 63"),
        (evidence(exit_code=0, last_step=3), "failed", "without reporting that it had finished"),
        (evidence(exit_code=7), "failed", "exit code 7 before the first step"),
        (evidence(exit_code=3, last_step=3), "failed", "exit code 3 after step 3 as another worker had this run"),
        (evidence(exit_code=None), "interrupted", "while no supervisor was running"),
        (evidence(machine_restarted=True, exit_code=None), "interrupted", "machine was restarted"),
        (evidence(ended_by_us="hung", silent_seconds=301, limit_seconds=300), "failed", "301 seconds"),
        (evidence(ended_by_us="suspended", silent_seconds=9, limit_seconds=8), "failed", "suspended"),
    ],
)
def test_what_the_worker_could_not_say_is_reported_by_the_system(known, state, text):
    ending = diagnose(known)

    assert ending.state == state
    assert text in ending.cause
    assert ending.advice


def test_the_next_step_names_the_checkpoint_to_resume_from():
    assert "resumed from step 40" in diagnose(evidence(exit_code=-11, resumable_step=40)).advice
    assert "starts over" in diagnose(evidence(exit_code=-11)).advice


@pytest.mark.parametrize(
    ("counters", "kills"),
    [("pgfault 7\noom_kill 3\noom_killer 9\n", 3), ("pgfault 7\n", None), (None, None)],
    ids=["counted", "an old kernel", "not Linux"],
)
def test_memory_kills_are_those_that_the_kernel_counted(monkeypatch, tmp_path, counters, kills):
    if counters is not None:
        (tmp_path / "vmstat").write_text(counters)
    monkeypatch.setattr("loratory.engine.supervision.diagnosis.Path", lambda path: tmp_path / path.rpartition("/")[2])

    assert out_of_memory_kills() == kills


@pytest.mark.parametrize(
    ("verdict", "exit_code", "state", "reason"),
    [
        ("out_of_memory", -9, "failed", "out_of_memory"),
        ("time_limit", -15, "interrupted", "job_time_limit"),
        ("node_failed", None, "interrupted", "node_failed"),
        ("preempted", -15, "interrupted", "preempted"),
        ("cancelled", -15, "stopped", "job_cancelled"),
        (None, -9, "failed", "killed"),
    ],
)
def test_an_executors_word_comes_before_what_this_machine_sees(verdict, exit_code, state, reason):
    ending = diagnose(
        evidence(
            verdict=verdict, exit_code=exit_code, executors="Job 7 on node2 is gone.", last_step=4, resumable_step=2
        )
        if verdict
        else evidence(exit_code=exit_code)
    )

    assert (ending.state, ending.reason) == (state, reason)
    if verdict is not None:
        assert ending.cause == "Job 7 on node2 is gone. It had reached step 4."
        assert "resumed from step 2" in ending.advice


def test_a_worker_that_saved_as_its_executor_asked_ends_for_the_executors_reason():
    saved = {"finished_phase": "stopped", "stopped_by": "sigterm", "last_step": 8, "resumable_step": 8}

    preemption = diagnose(evidence(verdict="preempted", exit_code=0, **saved))
    cancel = diagnose(evidence(verdict="cancelled", exit_code=0, **saved))

    assert (preemption.state, preemption.reason) == ("stopped", "preempted")
    assert (cancel.state, cancel.reason) == ("stopped", "job_cancelled")
    assert cancel.cause == "The job was cancelled there. It saved after step 8."
    assert diagnose(evidence(verdict="cancelled", cancel_requested=True, exit_code=-15)).reason == "cancelled"


def test_what_a_worker_knows_of_its_failure_is_better_than_its_executors_word():
    unexpected = FailedData(cause="unexpected", what="Connection reset.", fix="Try again.")

    assert diagnose(evidence(verdict="node_failed", failed=FAILED, exit_code=1)).reason == "worker_failed"
    assert diagnose(evidence(verdict="node_failed", failed=unexpected, exit_code=1)).reason == "node_failed"
