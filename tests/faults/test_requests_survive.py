"""What people and schedulers ask of a run in the midst of it: stop, cancel, SIGTERM. Nothing is lost, nothing stays behind."""

import os
import signal
import time
from contextlib import suppress

import psutil
import pytest
from safetensors.torch import load_file

from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.checkpoints import list_checkpoints
from loratory.engine.runs.control import request_cancel, request_stop
from loratory.engine.training.failure import REPEAT_SECONDS
from loratory.engine.training.worker import EXIT_CANCELLED, EXIT_FAILED, EXIT_FINISHED
from tests.supervision.fake_runs import wait_for_step
from tests.training.worker_runs import data_of_events, is_pending, losses_of, newest_intact
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

STEPS = 12
SECTIONS = {"training": {"max_steps": STEPS, "save_steps": 4}, "adapter": {"lora_dropout": 0.1}}


def processes_of_session(leader):
    """Whatever the worker started lives in its session."""
    matches = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == leader and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                matches.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return matches


@pytest.mark.parametrize("place", ["training:step-6", "checkpoint:filled#1"], ids=["between steps", "while saving"])
def test_sigterm_saves_first_and_the_run_continues_bit_by_bit(place, workers, runs, losses_without_faults, tmp_path):
    expected = losses_without_faults(SECTIONS)
    run = runs.create(**SECTIONS)
    pid = workers.start(run.folder.path, f"{place}=wait:{tmp_path / 'go'}")
    wait_for_step(run, 6 if "step-6" in place else 4)

    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_pending(pid, signal.SIGTERM))
    (tmp_path / "go").touch()

    assert workers.wait(pid) == EXIT_FINISHED
    wait_until(lambda: processes_of_session(pid) == [])
    last = data_of_events(run, "status")[-1]
    assert last.phase == "stopped"
    assert "SIGTERM" in last.message
    newest = newest_intact(run.folder.checkpoints)
    assert newest.step == data_of_events(run, "step")[-1].step < STEPS
    assert load_file(run.folder.adapter / "adapter_model.safetensors")
    assert workers.run(run.folder.path) == EXIT_FINISHED
    assert losses_of(run) == expected


def is_at_work(pid):
    return ProcessIdentity.from_pid(pid) is not None


def test_a_second_sigterm_ends_at_once_and_leaves_what_was_saved(workers, runs, tmp_path):
    run = runs.create(**SECTIONS)
    pid = workers.start(run.folder.path, f"training:step-6=wait:{tmp_path / 'never'}")
    wait_for_step(run, 6)

    os.kill(pid, signal.SIGTERM)
    # Within five seconds of the first, by the worker's clock, it is the same request; then it is made again.
    while is_at_work(pid):
        time.sleep(REPEAT_SECONDS + 0.5)
        os.kill(pid, signal.SIGTERM)
        with suppress(AssertionError):
            wait_until(lambda: not is_at_work(pid), 60)

    assert workers.wait(pid) == EXIT_CANCELLED
    assert newest_intact(run.folder.checkpoints).step == 4
    wait_until(lambda: processes_of_session(pid) == [])


@pytest.mark.parametrize(
    ("ask", "code"), [(request_stop, EXIT_FINISHED), (request_cancel, EXIT_CANCELLED)], ids=["stop", "cancel"]
)
def test_a_request_leaves_no_process_and_checkpoints_that_can_be_used(ask, code, workers, runs, tmp_path):
    run = runs.create(training={"max_steps": STEPS, "save_steps": 2})
    pid = workers.start(run.folder.path, f"training:step-3=wait:{tmp_path / 'go'}")
    wait_for_step(run, 3)

    ask(run)
    (tmp_path / "go").touch()

    assert workers.wait(pid) == code
    wait_until(lambda: processes_of_session(pid) == [])
    assert not run.folder.has_living_worker()
    offers = list_checkpoints(run.folder.checkpoints)
    assert newest_intact(run.folder.checkpoints) == offers[-1]
    assert data_of_events(run, "status")[-1].phase == "stopped"
    assert data_of_events(run, "step")[-1].step < STEPS


def test_no_checkpoint_has_a_loss_of_nan_however_rarely_it_is_logged(workers, runs):
    run = runs.create(training={"max_steps": 40, "save_steps": 4, "logging_steps": 10})

    assert workers.run(run.folder.path, "training:loss-6=nan") == EXIT_FAILED

    (failure,) = data_of_events(run, "failed")
    assert failure.cause == "diverged"
    assert newest_intact(run.folder.checkpoints).step == 4
    weights = load_file(run.folder.checkpoint(4) / "adapter" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
