"""Runs on a real Slurm, from submission to every end that a job can have."""

import os
import shutil
import signal
import time

import pytest
import yaml

from loratory.engine.places.slurm.place import ClusterPlace
from loratory.engine.runs.control import request_cancel, request_resume, request_stop, request_target
from loratory.engine.training import faults
from tests.browser.real_server import real_server
from tests.slurm.conftest import file_run, finish, record_of, record_on_node
from tests.supervision.fake_runs import executions, wait_for_state, wait_for_step, worker_of
from tests.supervision.on_host import start_host as start_host
from tests.training.worker_runs import WorkerRuns, data_of_events, losses_of, write_questions
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e


def test_a_run_is_submitted_follows_its_job_and_finishes(slurm, on_slurm, store):
    on_slurm()
    run = file_run(store, "steps=6 hold=3")
    wait_for_state(run, "running")
    wait_for_step(run, 3)
    record = record_on_node(run)
    wait_until(lambda: run.folder.read_state().device == f"slurm {record.job_id} · {record.nodes} · 1×toy")
    assert run.folder.read_state().job_id == record.job_id != ""
    assert worker_of(run).job_id == record.job_id
    assert f"loratory {run.id}" in slurm.run_command("squeue", "-h", "-j", record.job_id, "-o", "%k")

    finish(run)


def test_stop_saves_cancel_ends_and_scancel_is_not_resumed(slurm, on_slurm, store):
    on_slurm()
    stopped, cancelled, ended_by_slurm = runs = [
        file_run(store, f"steps=9999 pace=0.05 {more}") for more in ("", "deaf@1", "")
    ]
    for run in runs:
        wait_for_step(run, 2)
    assert len({record_of(run).job_id for run in runs}) == 3

    request_stop(stopped)
    slurm.run_command("scancel", record_of(ended_by_slurm).job_id)
    request_cancel(cancelled)  # its worker ignores that
    end = wait_for_state(cancelled, "stopped", "failed", "interrupted")
    assert (end.state, end.reason) == ("stopped", "cancelled")

    end = wait_for_state(stopped, "stopped", "failed", "interrupted")
    assert (end.state, end.reason) == ("stopped", "stopped_on_request")
    assert end.resumable_step is not None

    end = wait_for_state(ended_by_slurm, "stopped", "failed", "interrupted", "queued")
    assert (end.state, end.reason) == ("stopped", "job_cancelled")
    assert "scancel" in end.cause
    assert end.resumable_step is not None
    assert executions(ended_by_slurm) == ["1"]


def test_a_preempted_run_resumes_as_another_job_from_its_checkpoint(slurm, on_slurm, store):
    on_slurm()
    run = file_run(store, "steps=9999 pace=0.05", gpus=2)
    wait_for_step(run, 2)
    first = record_on_node(run)
    urgent = ("sbatch", "--parsable", "-p", "urgent", "--gpus-per-node=toy:2", "--mem=100M", "-w", first.nodes)
    slurm.run_command(*urgent, "--output=/dev/null", "--time=1", "--wrap=sleep 1")

    wait_until(lambda: executions(run) == ["1", "2"])
    second = record_of(run)
    assert second.attempt == 2
    assert second.job_id != first.job_id
    state = wait_for_state(run, "running")
    assert state.attempt == 2
    assert state.resumable_step is not None
    request_stop(run)
    assert wait_for_state(run, "stopped", "failed", "interrupted").state == "stopped"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_is_killed_between_submission_and_write_finds_its_job_again(slurm, home, store, place, tmp_path):
    home.make_writable()
    (home.root / "cluster.yaml").write_text(yaml.safe_dump(place.model_dump(mode="json", exclude_defaults=True)))
    programs = tmp_path / "programs"
    programs.mkdir()
    answer, sbatch = programs / "answer", programs / "sbatch"
    ours = f'{shutil.which("sbatch")} "$@"'
    sbatch.write_text(
        f'#!/bin/sh\ncase "$*" in *--test-only*) exec {ours} ;; esac\n{ours} > {answer}.part && mv {answer}.part {answer}\n'
        "kill -9 $PPID\n"
    )
    sbatch.chmod(0o700)
    with real_server(home.root, PATH=f"{programs}:{os.environ['PATH']}") as server:
        run = file_run(store, "steps=3")
        assert server.process.wait(300) == -signal.SIGKILL
    job_id = answer.read_text().strip()
    assert record_of(run).job_id == ""
    assert slurm.run_command("squeue", "-h", "-j", job_id, "-o", "%r").strip() == "JobHeldUser"

    with real_server(home.root):
        finish(run)
    assert record_of(run).job_id == job_id


def test_two_login_nodes_submit_each_run_once_and_follow_jobs_of_each_other(slurm, home, store, place, start_host):
    home.make_writable()
    (home.root / "cluster.yaml").write_text(yaml.safe_dump(place.model_dump(mode="json", exclude_defaults=True)))
    first = start_host("login1")
    assert first.stdout.readline() == "supervising\n"
    second = start_host("login2")
    assert second.stdout.readline() == "standing_by\n"
    runs = [file_run(store, "steps=6 hold=3") for _ in range(3)]
    for run in runs:
        wait_for_step(run, 3)

    first.kill()
    (home.root / "time-flies").touch()
    assert second.stdout.readline() == "supervising\n"
    finish(*runs)
    comments = slurm.run_command("squeue", "--noheader", "--me", "--states=all", "-o", "%k").splitlines()
    assert [sum(run.id in comment for comment in comments) for run in runs] == [1, 1, 1]


def test_a_waiting_run_shows_slurms_reason_and_leaves_its_queue(slurm, on_slurm, store):
    on_slurm()
    busy = [file_run(store, "steps=9999 pace=0.05", gpus=2) for _ in range(2)]
    for run in busy:
        wait_for_step(run, 1)
    assert {record_on_node(run).nodes for run in busy} == {"node1", "node2"}
    waits = file_run(store, "steps=3", gpus=2)
    wait_until(lambda: "Resources" in waits.folder.read_state().cause)
    wait_until(lambda: "-" in slurm.run_command("sinfo", "--noheader", "--format=%T"))  # a node is planned for it
    too_large = file_run(store, "steps=3", memory_gib=100)

    state = waits.folder.read_state()
    assert state.state == "submitted"
    assert state.cause == f"Waiting at Slurm: Resources, job {state.job_id} (its node or GPUs are in use)."
    assert "No node of the cluster has" in wait_for_state(too_large, "interrupted", "failed").cause

    request_stop(waits)
    end = wait_for_state(waits, "stopped", "interrupted", "failed")
    assert (end.state, end.reason) == ("stopped", "cancelled")
    assert executions(waits) == []
    for run in busy:
        request_stop(run)
    for run in busy:
        wait_for_state(run, "stopped", "interrupted", "failed")


def test_runs_of_a_sweep_have_the_gpus_that_slurm_gave_them_and_each_begins_once(slurm, on_slurm, store):
    on_slurm()
    runs = [file_run(store, "steps=3 hold=1") for _ in range(8)]
    wait_until(lambda: sum(run.folder.read_worker() is not None for run in runs) == 4)  # as many as there are GPUs

    values = [(run.folder.path / "gpus").read_text() for run in runs if run.folder.read_worker() is not None]
    assert len(set(values)) == 4
    assert all(text.split()[1].isdecimal() for text in values)

    finish(*runs)
    assert len({record_of(run).job_id for run in runs}) == 8


def test_while_the_controller_is_down_nothing_changes(slurm, on_slurm, store, place):
    on_slurm(place.model_copy(update={"command_seconds": 4.0}))
    run = file_run(store, "steps=9999 pace=0.05")
    wait_for_step(run, 2)
    wait_for_state(run, "running")
    slurm.stop_controller()
    try:
        wait_until(lambda: run.folder.read_state().reason == "executor_unreachable")
        until = time.monotonic() + 10  # some queries of four seconds each
        while time.monotonic() < until:
            state = run.folder.read_state()
            assert state.state == "running"
            assert "Slurm does not answer" in state.cause
            time.sleep(0.5)
    finally:
        slurm.start_controller()
        slurm.wait_for_controller()
    wait_until(lambda: run.folder.read_state().reason is None)
    request_stop(run)
    assert wait_for_state(run, "stopped", "failed", "interrupted").reason == "stopped_on_request"
    assert executions(run) == ["1"]


def test_two_nodes_train_as_one_process_does_and_one_process_resumes_their_run(
    slurm, on_slurm, home, tiny_model_folder, tmp_path, monkeypatch
):
    on_slurm(ClusterPlace(offline=False, cpus=1, memory_gib=3, limit_hours=1, poll_seconds=0.3))
    runs = WorkerRuns(home, tiny_model_folder, write_questions(tmp_path / "questions.jsonl"))
    alone = runs.create(model={"compute_dtype": "float32"})
    assert wait_for_state(alone, "completed", "failed", "interrupted").state == "completed"

    monkeypatch.setenv(faults.VARIABLE, f"training:step-3=wait:{tmp_path / 'go'}")
    slurm.run_command("scontrol", "update", "nodename=node2", "state=drain", "reason=test")
    run = runs.create(
        model={"compute_dtype": "float32"}, training={"gradient_accumulation_steps": 1}, run={"where": "slurm"},
        slurm={"nodes": 2},
    )  # fmt: skip
    # Slurm's own forecast calls that impossible; the run waits for the node all the same.
    wait_until(lambda: "are down, drained" in run.folder.read_state().cause or run.folder.read_state().is_final)
    slurm.run_command("scontrol", "update", "nodename=node2", "state=resume")
    wait_until(lambda: len(losses_of(run)) == 3 or run.folder.read_state().is_final)
    monkeypatch.delenv(faults.VARIABLE)
    assert not run.folder.read_state().is_final, f"{run.folder.read_state()}\n{run.folder.log.read_text()}"
    # What a run says at its end of its nodes is what it said while it ran.
    wait_until(lambda: " · node[1-2] · " in run.folder.read_state().device)
    request_stop(run)
    (tmp_path / "go").touch()

    end = wait_for_state(run, "stopped", "completed", "failed", "interrupted")
    assert (end.state, end.reason) == ("stopped", "stopped_on_request"), run.folder.log.read_text()
    stopped = end.resumable_step
    assert 4 <= stopped <= 6  # each process learns a step late what the others were asked
    assert end.device == f"slurm {end.job_id} · node[1-2] · 2 nodes, CPU each"
    assert (run.folder.checkpoint(stopped) / "random-1.safetensors").exists()  # of the second process

    request_target(run, "local")
    request_resume(home, run)
    end = wait_for_state(run, "completed", "failed", "interrupted")
    assert (end.state, end.executor) == ("completed", "local")
    assert [resume.step for resume in data_of_events(run, "resumed")] == [stopped]
    # Sums over other groups of rows are rounded otherwise; seen: 2e-7 of the loss.
    assert losses_of(run) == [(step, pytest.approx(loss, rel=1e-4)) for step, loss in losses_of(alone)]
    assert data_of_events(run, "eval")[-1].eval_loss == pytest.approx(
        data_of_events(alone, "eval")[-1].eval_loss, rel=1e-4
    )
