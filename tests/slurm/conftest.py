"""What tests on a real Slurm share: one cluster for the session, and a home whose runs go there with fake workers."""

import os
import shlex
import sys
from collections.abc import Iterator

import pytest

from engine.executors.slurm.place import ClusterPlace, GpuType
from engine.paths import LoratoryHome
from engine.runs.store import RunStore
from tests.runs.supervision import REPOSITORY
from tests.slurm.cluster import Cluster, why_not

_FAKE_WORKER = (
    f"import runpy, sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
    "runpy.run_module('tests.runs.fake_worker', run_name='__main__')"
)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A Slurm of two nodes; skipped only where it cannot be installed."""
    reason = why_not()
    if reason and os.environ.get("CI", "").casefold() in ("true", "1"):
        pytest.fail(f"{reason}; under CI=true no test may go without it")
    if reason:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "one")
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm(slurm_cluster, monkeypatch) -> Iterator[Cluster]:
    """The same, with the environment of its commands, and without jobs afterwards."""
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_cluster
    slurm_cluster.end_jobs()


@pytest.fixture
def place(tmp_path) -> ClusterPlace:
    """A cluster whose Python starts fake workers, whatever worker it is asked for."""
    python = tmp_path / "python"
    start = f"exec {shlex.quote(sys.executable)} -P -c {shlex.quote(_FAKE_WORKER)}"
    python.write_text(f'#!/bin/sh\nfor run; do :; done\n{start} "$run"\n')  # the last of its arguments
    python.chmod(0o700)
    return ClusterPlace(
        gpu_types=(GpuType(name="toy", memory_gib=8, per_node=2, count=4),),
        python=str(python),
        offline=False,
        cpus=1,
        memory_gib=0.5,
        limit_hours=0.1,
        poll_seconds=0.3,
    )


@pytest.fixture
def store(home: LoratoryHome) -> RunStore:
    return RunStore(home, "ann")
