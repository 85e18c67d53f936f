"""What breaks around a run, with real processes: its worker, its server, the machine's power."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loratory.engine.runs.control import request_resume
from loratory.engine.runs.history.events import StepData
from loratory.engine.runs.history.log import read_events
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.job import JobSpec
from loratory.engine.runs.run import RunState
from tests.supervision.fake_runs import (
    REPOSITORY,
    config_for,
    continue_worker,
    executions,
    fake_worker_command,
    wait_for_state,
    worker_of,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

KNOWN_WITHIN_SECONDS = 120  # the hang limit of a hurried server is 3 seconds, that of others 300


@contextmanager
def server() -> Iterator[subprocess.Popen[str]]:
    """Run a server process; it is killed, never asked to end."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.faults.server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    try:
        assert process.stdout is not None
        process.role = process.stdout.readline().strip()  # type: ignore[attr-defined]
        yield process
    finally:
        process.kill()
        process.communicate()


def hurry(process: subprocess.Popen[str]) -> None:
    """Let a server give up a silent worker within seconds, from now on: a busy machine makes others silent as well."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def last_step(run) -> int:
    return read_history(run.folder.events).last_step


def test_a_server_killed_at_step_five_finds_its_run_again_and_misses_no_step(store):
    run = store.create(config_for("steps=60 hold=5"))
    with server() as first:
        wait_until(lambda: last_step(run) >= 5)
        first.kill()
    worker = worker_of(run)
    continue_worker(run)
    wait_until(lambda: last_step(run) > 5)  # the training continues without a server
    with server():
        state = wait_for_state(run, "completed", "failed", "interrupted")

    steps = [event.data for event in read_events(run.folder.events).events if isinstance(event.data, StepData)]
    assert state.state == "completed"
    assert [step.step for step in steps] == list(range(1, 61))
    assert [event.seq for event in read_events(run.folder.events).events] == list(
        range(1, len(read_events(run.folder.events).events) + 1)
    )
    assert worker_of(run).pid == worker.pid
    assert executions(run) == ["1"]


@pytest.mark.parametrize(
    ("mishap", "state", "text"),
    [
        ("kill", "failed", "killed from outside (SIGKILL) after step 4"),
        ("segv", "failed", "crashed in native code (SIGSEGV) after step 4"),
        ("fail", "failed", "The loss is not a number."),
        ("hang", "failed", "made no progress for"),
        ("stop-self", "failed", "was suspended and made no progress"),
    ],
)
def test_a_worker_that_dies_hangs_or_leaves_is_known_soon_with_its_cause(store, mishap, state, text):
    run = store.create(config_for(f"steps=50 checkpoint=2 {mishap}@4"))
    with server() as running:
        wait_until(lambda: run.folder.newest_checkpoint_step() == 4)
        began = time.monotonic()
        if mishap in ("hang", "stop-self"):
            hurry(running)
        end_state = wait_for_state(run, "failed", "interrupted", "completed", "stopped")
        took = time.monotonic() - began

        assert (end_state.state, text in end_state.cause) == (state, True), end_state
        assert end_state.resumable_step == 4
        assert took < KNOWN_WITHIN_SECONDS, f"known after {took:.1f} seconds"
        assert not worker_of(run).is_alive()


@pytest.mark.parametrize(
    ("number", "state", "text"),
    [(signal.SIGKILL, "interrupted", "while no supervisor was running"), (signal.SIGSTOP, "failed", "was suspended")],
)
def test_the_same_is_known_after_the_server_was_replaced(store, number, state, text):
    run = store.create(config_for("steps=20000 checkpoint=2"))
    with server():
        wait_until(lambda: last_step(run) >= 4)
    with server() as running:
        step_before = last_step(run)
        wait_until(lambda: last_step(run) > step_before + 10)
        os.kill(worker_of(run).pid, number)
        hurry(running)
        end_state = wait_for_state(run, "failed", "interrupted", "completed")

    assert (end_state.state, text in end_state.cause) == (state, True), end_state
    assert not worker_of(run).is_alive()


def test_a_dead_worker_that_no_one_has_collected_is_seen_as_dead(store, monkeypatch):
    """Its parent lives and does not wait for it: the pid is there, as a zombie."""
    run = store.create(config_for("steps=20000"))
    run.folder.write_state(RunState(state="running", attempt=1, started=time.time(), device="cpu"))
    monkeypatch.setenv("LORATORY_ATTEMPT", "1")
    zombie = subprocess.Popen(fake_worker_command(JobSpec(run, run.folder.read_config(), (), 1)))
    wait_until(lambda: last_step(run) >= 3)
    with server():
        zombie.send_signal(signal.SIGKILL)
        end_state = wait_for_state(run, "failed", "interrupted")

    assert end_state.state == "interrupted"
    assert zombie.wait() == -signal.SIGKILL


def test_two_servers_on_one_home_supervise_once_and_the_survivor_takes_over(store):
    with server() as first, server() as second:
        assert (first.role, second.role) == ("supervising", "standing_by")  # type: ignore[attr-defined]
        # The second run waits for the device of the first: no worker is about to be started at the kill.
        runs = [store.create(config_for(name)) for name in ("steps=10 hold=5", "steps=10", "steps=10")]
        wait_until(lambda: last_step(runs[0]) >= 5)
        first.kill()
        continue_worker(runs[0])
        for run in runs:
            wait_for_state(run, "completed")
    assert [executions(run) for run in runs] == [["1"], ["1"], ["1"]]


def test_twenty_runs_are_executed_once_each_though_the_server_dies_twenty_times(store):
    seed = random.randrange(10_000)
    chance = random.Random(seed)
    runs = [store.create(config_for("steps=4 pace=0.02")) for _ in range(20)]
    for _ in range(20):
        with server() as running:
            time.sleep(chance.uniform(0.05, 0.6))
            running.kill()
    with server():
        for run in runs:
            wait_for_state(run, "completed", "failed", "interrupted", "stopped")

    states = {run.id: (run.folder.read_state().state, len(executions(run))) for run in runs}
    assert set(states.values()) == {("completed", 1)}, f"seed {seed}: {states}"
    for run in runs:
        assert read_history(run.folder.events).steps.steps.tolist() == [1, 2, 3, 4]


def test_a_power_cut_costs_the_torn_line_and_nothing_else(store):
    run = store.create(config_for("steps=120 pace=0.01 checkpoint=50 hold=60"))
    with server() as running:
        wait_until(lambda: last_step(run) >= 60)
        running.kill()
        worker = worker_of(run)
        worker.kill()
        wait_until(lambda: not worker.is_alive())
    continue_worker(run)
    before = read_events(run.folder.events).events
    with run.folder.events.open("ab") as log:
        log.write(b'{"v":1,"seq":99999,"attempt":1,"time":17')
    run.folder.state.write_bytes(run.folder.state.read_bytes()[:20])

    with server():
        state = wait_for_state(run, "interrupted", "failed")
        assert state.resumable_step == run.folder.newest_checkpoint_step()
        request_resume(store.home, run)
        wait_for_state(run, "completed")

    events = read_events(run.folder.events).events
    assert events[: len(before)] == before
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert read_history(run.folder.events).steps.steps.tolist() == list(range(1, 121))
