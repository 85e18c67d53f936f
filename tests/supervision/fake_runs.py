"""Runs on fake workers: settings of their supervisor, configurations, devices, and waiting for a state or a step."""

import functools
import os
import sys
from pathlib import Path
from typing import Any

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.hardware.device import Device
from loratory.engine.places import make_executors
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.activity import SilenceLimits
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.job import JobSpec, WorkerCommand
from loratory.engine.runs.run import Run, RunState, WorkerRecord
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.worker_monitor import Timeouts
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
GIB = 2**30


def cpu(free_gib: float = 16) -> Device:
    return Device("cpu", 0, "Test CPU", 16 * GIB, int(free_gib * GIB), has_fast_bfloat16=True, cores=2)


def apple(*, has_fast_bfloat16: bool = True) -> Device:
    return Device("mps", 0, "Apple M2 GPU", 16 << 30, 12 << 30, has_fast_bfloat16=has_fast_bfloat16)


def gpu(index: int, free_gib: float = 24) -> Device:
    return Device("cuda", index, f"Test GPU {index}", 24 * GIB, int(free_gib * GIB), has_fast_bfloat16=True)


def fake_worker_command(order: JobSpec) -> list[str]:
    """Return the command of tests/supervision/fake_worker.py, from any folder; see `tests.fork_server`."""
    start = f"import runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
    start += "runpy.run_module('tests.supervision.fake_worker', run_name='__main__')"
    return [sys.executable, "-P", "-c", start, str(order.run.folder.path)]


# Of a supervisor whose worker may stand still, or be kept waiting by a test, for as long as the machine likes.
ENDLESS = SilenceLimits(idle_seconds=3600, suspended_seconds=3600, preparing_idle_seconds=3600, busy_seconds=3600)


def fake_settings(command: WorkerCommand = fake_worker_command, **changes: Any) -> SupervisorSettings:
    """Return the settings of a quick supervisor with one CPU and fake workers."""
    values: dict[str, Any] = {
        "executors": functools.partial(make_executors, command=command),
        "devices": lambda: (cpu(),),
        "timeouts": Timeouts(silence=ENDLESS, cancel_seconds=1.0, claim_seconds=600.0),
        "tick_seconds": 0.05,
        "take_over_seconds": 0.1,
    }
    return SupervisorSettings(**{**values, **changes})


def config_for(name: str = "steps=5", **sections: dict[str, Any]) -> RunConfig:
    """Return a valid configuration whose name tells the fake worker what to do."""
    run = {"name": name, **sections.pop("run", {})}
    return config_from_mapping(
        {"model": {"id": "some/model"}, "dataset": {"source": "data.jsonl"}, "run": run, **sections}
    )


def move_to_an_earlier_boot(run: Run, attempt: int = 1) -> None:
    """Make a run look as after a restart of the machine: the worker's pid is that of another process."""
    before = ProcessIdentity.current().model_copy(update={"boot_id": "the boot before"})
    record = WorkerRecord(**before.model_dump(), process_group=os.getpgid(0), attempt=attempt)
    run.folder.process.write_text(record.model_dump_json())


def wait_for_state(run: Run, *states: str) -> RunState:
    """Wait until a run is in one of these states, and return what it says then."""
    observations: list[RunState] = []
    wait_until(lambda: observations.append(run.folder.read_state()) or observations[-1].state in states)
    return observations[-1]


def executions(run: Run) -> list[str]:
    """Return the attempts that a fake worker began, in order."""
    try:
        return (run.folder.path / "executions").read_text().split()
    except FileNotFoundError:
        return []


def worker_of(run: Run) -> WorkerRecord:
    """Wait for a run's worker."""
    wait_until(lambda: run.folder.read_worker() is not None)
    worker = run.folder.read_worker()
    assert worker is not None
    return worker


def continue_worker(run: Run) -> None:
    """Let a fake worker continue that was told to `hold`."""
    (run.folder.path / "go").touch()


def wait_for_step(run: Run, step: int) -> None:
    """Wait until a run has logged a step."""
    wait_until(lambda: read_history(run.folder.events).last_step >= step)
