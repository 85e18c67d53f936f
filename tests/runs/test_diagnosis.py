import signal

import pytest

from engine.runs.history.events import FailedData
from engine.runs.supervision.diagnosis import Diagnosis, Evidence, diagnose, out_of_memory_kills

FAILED = FailedData(cause="diverged", what="The loss is not a number.", fix="Lower the learning rate.")


def test_the_workers_own_words_come_first():
    assert diagnose(Evidence(finished_phase="finished", exit_code=-9)).state == "completed"
    assert diagnose(Evidence(finished_phase="stopped", exit_code=0, last_step=4)).state == "stopped"
    assert diagnose(Evidence(finished_phase="finished", last_words="Done.", last_step=9, total_steps=9)).cause == ""
    early = diagnose(
        Evidence(finished_phase="finished", last_words="It had stopped improving.", last_step=5, total_steps=9)
    )
    assert early == Diagnosis("completed", "finished", "It had stopped improving.", "")
    ending = diagnose(Evidence(failed=FAILED, exit_code=1))
    assert ending == Diagnosis("failed", "worker_failed", "The loss is not a number.", "Lower the learning rate.")


def test_a_stop_and_a_cancel_say_what_can_be_used():
    words = "The system asked to end (SIGTERM). Saved after step 8 of 20."
    stop = diagnose(
        Evidence(finished_phase="stopped", last_words=words, last_step=8, resumable_step=8, has_adapter=True)
    )
    assert (stop.state, stop.cause) == ("stopped", words)
    assert "saved and can be used" in stop.advice

    early = diagnose(Evidence(finished_phase="stopped", last_words="Stopped on request. Nothing was trained yet."))
    assert early.advice == "Nothing was saved yet."

    cancel = diagnose(Evidence(ended_by_us="cancel", cancel_requested=True, last_step=8, resumable_step=5))
    assert (cancel.state, cancel.cause) == ("stopped", "Cancelled after step 8.")
    assert cancel.advice == "The checkpoint of step 5 can be used, or resumed."


@pytest.mark.parametrize(
    ("evidence", "state"),
    [
        (Evidence(cancel_requested=True, last_step=8), "stopped"),
        (Evidence(cancel_requested=True, last_step=8, exit_code=-signal.SIGKILL), "stopped"),
        (Evidence(cancel_requested=True, last_step=8, rebooted=True), "stopped"),
        (Evidence(cancel_requested=True, last_step=8, exit_code=-signal.SIGSEGV), "failed"),
        (Evidence(cancel_requested=True, last_step=8, exit_code=1), "failed"),
        (Evidence(cancel_requested=True, last_step=8, ended_by_us="suspended"), "failed"),
        (Evidence(cancel_requested=True, last_step=8, failed=FAILED), "failed"),
        (Evidence(cancel_requested=True, last_step=8, finished_phase="finished"), "completed"),
    ],
)
def test_a_cancel_is_believed_where_nothing_else_explains_the_end(evidence, state):
    ending = diagnose(evidence)

    assert ending.state == state
    assert (ending.cause == "Cancelled after step 8.") == (state == "stopped")


@pytest.mark.parametrize(
    ("evidence", "state", "words"),
    [
        (Evidence(exit_code=-signal.SIGKILL), "failed", "killed from outside (SIGKILL)"),
        (Evidence(exit_code=-signal.SIGKILL, out_of_memory_kills=1), "failed", "ran out of memory"),
        (Evidence(exit_code=None, out_of_memory_kills=1), "failed", "ran out of memory"),
        (Evidence(exit_code=-signal.SIGSEGV), "failed", "crashed in native code (SIGSEGV)"),
        (Evidence(exit_code=-signal.SIGABRT), "failed", "crashed in native code (SIGABRT)"),
        (Evidence(exit_code=-signal.SIGTERM), "interrupted", "asked to end from outside (SIGTERM)"),
        (Evidence(exit_code=-63), "failed", "signal 63"),
        (Evidence(exit_code=0, last_step=3), "failed", "without reporting that it had finished"),
        (Evidence(exit_code=3), "failed", "exit code 3 before the first step"),
        (Evidence(exit_code=None), "interrupted", "while no supervisor watched"),
        (Evidence(rebooted=True, exit_code=None), "interrupted", "machine was restarted"),
        (Evidence(ended_by_us="hung", silent_seconds=301, limit_seconds=300), "failed", "301 seconds"),
        (Evidence(ended_by_us="suspended", silent_seconds=9, limit_seconds=8), "failed", "suspended"),
    ],
)
def test_what_the_worker_could_not_say_is_told_by_the_system(evidence, state, words):
    ending = diagnose(evidence)

    assert ending.state == state
    assert words in ending.cause
    assert ending.advice


def test_the_next_step_names_the_checkpoint_to_resume_from():
    assert "resumed from step 40" in diagnose(Evidence(exit_code=-11, resumable_step=40)).advice
    assert "starts over" in diagnose(Evidence(exit_code=-11)).advice


def test_the_kernels_count_of_memory_kills_is_a_number_where_it_tells():
    count = out_of_memory_kills()
    assert count is None or count >= 0
