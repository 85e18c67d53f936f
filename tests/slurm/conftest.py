"""What tests on a real Slurm share: one cluster for the session, and a home whose runs go there with fake workers."""

import os
import shlex
import sys
from collections.abc import Iterator

import pytest

from loratory.engine.places import make_executors
from loratory.engine.places.slurm.job import SlurmExecutor
from loratory.engine.places.slurm.place import ClusterPlace, GpuType, SlurmRecord
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import Supervisor
from tests.slurm.cluster import Cluster, missing_programs, why_not
from tests.supervision.fake_runs import (
    REPOSITORY,
    config_for,
    continue_worker,
    executions,
    fake_settings,
    wait_for_state,
)
from tests.waiting import wait_until

_FAKE_WORKER = (
    f"import runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
    "runpy.run_module('tests.supervision.fake_worker', run_name='__main__')"
)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Start a Slurm of two nodes; skip only where it cannot be installed."""
    if missing := missing_programs():
        if os.environ.get("CI", "").casefold() in ("true", "1"):
            pytest.fail(f"{missing}; under CI=true no test may go without Slurm")
        pytest.skip(missing)
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "one")
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(slurm_cluster, monkeypatch) -> Iterator[Cluster]:
    """Set the environment of its commands, and end all jobs afterwards."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    slurm_cluster.wait_for_nodes()  # one test restarts the controller, which then knows of no node for seconds
    yield slurm_cluster
    slurm_cluster.end_jobs()


@pytest.fixture
def place(tmp_path) -> ClusterPlace:
    """Describe a cluster whose Python starts fake workers instead of any worker."""
    python = tmp_path / "python"
    start = f"exec {shlex.quote(sys.executable)} -P -c {shlex.quote(_FAKE_WORKER)}"
    note = 'echo "$SLURMD_NODENAME $CUDA_VISIBLE_DEVICES" > "$run/gpus"'
    python.write_text(f'#!/bin/sh\nfor run; do :; done\n{note}\n{start} "$run"\n')  # the last of its arguments
    python.chmod(0o700)
    return ClusterPlace(
        gpu_types=(GpuType(name="toy", memory_gib=8, per_node=2, count=4),),
        python=str(python),
        offline=False,
        cpus=1,
        memory_gib=0.5,
        limit_hours=1,
        poll_seconds=0.3,
    )


@pytest.fixture
def on_slurm(slurm, home, place):
    """Start supervisors whose runs go to Slurm."""
    started = []

    def start(cluster=place):
        def executors(context):
            return {**make_executors(context), "slurm": SlurmExecutor(home, lambda: cluster)}

        supervisor = Supervisor(home, fake_settings(executors=executors))
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


def file_run(store: RunStore, name: str, **slurm: object) -> Run:
    """Put a run into the queue whose name tells a fake worker what to do."""
    return store.create(config_for(name, run={"where": "slurm"}, slurm={"gpus": 1, "gpu_type": "toy", **slurm}))


def finish(*runs: Run) -> None:
    """Release held runs, and require that each completes in its first attempt."""
    for run in runs:
        continue_worker(run)
    for run in runs:
        assert wait_for_state(run, "completed", "failed", "interrupted", "stopped").state == "completed"
        assert executions(run) == ["1"]


def record_of(run: Run) -> SlurmRecord:
    """Return what is known of a run's job."""
    record = SlurmRecord.read(run.folder)
    assert record is not None
    return record


def record_on_node(run: Run) -> SlurmRecord:
    """Wait until Slurm's queue names a run's node, which may be after the first steps of its worker."""
    wait_until(lambda: record_of(run).nodes != "")
    return record_of(run)
