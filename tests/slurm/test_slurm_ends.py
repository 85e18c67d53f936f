"""What a cluster does to runs: a time limit and a node that fails, each with another attempt after it; slow, and mostly waiting."""

import pytest

from loratory.engine.runs.control import request_stop
from tests.slurm.conftest import file_run, record_of, record_on_node
from tests.supervision.fake_runs import executions, wait_for_state, wait_for_step
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_after_a_time_limit_and_a_failed_node_runs_resume_as_other_jobs(slurm, on_slurm, store):
    on_slurm()
    runs = [file_run(store, "steps=9999 pace=0.05 checkpoint=5", gpus=2) for _ in range(2)]
    for run in runs:
        wait_for_step(run, 6)
    by_node = {record_on_node(run).nodes: run for run in runs}
    first = {name: record_of(run).job_id for name, run in by_node.items()}
    slurm.run_command("scontrol", "update", f"JobId={first['node1']}", "TimeLimit=1")

    slurm.kill("node2")  # with all its processes
    slurm.run_command(
        "scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test"
    )  # sooner than Slurm by itself
    slurm.start_node("node2")
    # Refused where the node has come back by itself meanwhile.
    slurm.run_command("scontrol", "update", "NodeName=node2", "State=RESUME", check=False)

    for name, run in by_node.items():
        wait_until(lambda run=run: executions(run) == ["1", "2"])
        assert record_of(run).job_id != first[name]
        assert wait_for_state(run, "running").resumable_step >= 5
        request_stop(run)
        assert wait_for_state(run, "stopped", "failed", "interrupted").reason == "stopped_on_request"
