"""Chats, measurements and exports on a node of a real Slurm, asked over the pipes of `srun`."""

import os
import subprocess
import sys
import threading
from contextlib import closing, suppress
from dataclasses import replace

import pytest
import yaml

from loratory.engine.chat.contract import ChatRequest, ChatTarget
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig
from loratory.engine.data.conversation import Message
from loratory.engine.errors import ClusterError, WorkerError
from loratory.engine.hardware.device_job import DeviceJob
from loratory.engine.hardware.lease import Wait
from loratory.engine.places.slurm.place import ClusterPlace, GpuType
from loratory.engine.places.slurm.script import node_machine
from tests.supervision.fake_runs import REPOSITORY
from tests.waiting import wait_until

TOY = ClusterPlace(
    gpu_types=(GpuType(name="toy", memory_gib=8),), offline=False, cpus=1, memory_gib=0.5, work_hours=0.1
)


@pytest.fixture
def cluster_home(home):
    """Return a home with a cluster."""
    home.make_writable()
    describe(home, TOY)
    return home


def describe(home, place: ClusterPlace) -> None:
    (home.root / "cluster.yaml").write_text(yaml.safe_dump(place.model_dump(mode="json", exclude_defaults=True)))


def answering(home) -> DeviceJob:
    machine = node_machine(home, None)
    return DeviceJob(
        home, "tests.processes.answering_worker", "evaluation", "a test", machine.device, machine=machine,
        environment={"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def jobs_of(cluster) -> str:
    return cluster.run_command("squeue", "--noheader", "--me").strip()


@pytest.mark.e2e
def test_a_worker_on_a_node_answers_and_its_job_ends_with_it(slurm, cluster_home):
    job = answering(cluster_home)
    with closing(job.new_process()) as process:
        job.start(process, Wait(0, lambda _: None, threading.Event()))
        environment = process.call("environment", {})["environment"]
        assert environment["SLURMD_NODENAME"] in ("node1", "node2")
        assert environment["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        assert process.call("echo", {"text": "é" * 100_000})["echo"] == {"text": "é" * 100_000}
        assert "loratory-work" in slurm.run_command("squeue", "--noheader", "--me", "-o", "%j")
    wait_until(lambda: not jobs_of(slurm))


@pytest.mark.e2e
def test_a_worker_that_does_not_listen_is_ended_with_its_job(slurm, cluster_home):
    job = answering(cluster_home)
    process = job.new_process()
    job.start(process, Wait(0, lambda _: None, threading.Event()))

    def query() -> None:
        with suppress(WorkerError):
            process.call("be_silent", {"seconds": 600})

    asking = threading.Thread(target=query)
    asking.start()
    wait_until(lambda: "R" in slurm.run_command("squeue", "--noheader", "--me", "-o", "%t"))

    process.close(timeout_seconds=0.1)

    asking.join()
    wait_until(lambda: not jobs_of(slurm))


@pytest.mark.e2e
def test_what_no_node_has_is_refused_in_the_words_of_slurm(slurm, cluster_home):
    describe(cluster_home, TOY.model_copy(update={"cpus": 1000}))
    job = answering(cluster_home)
    with pytest.raises(WorkerError, match=r"ended \(Unable to allocate resources: "):  # no node has so many cores
        job.run("echo", {}, threading.Event(), lambda _: None, lambda _: None)
    assert not jobs_of(slurm)


@pytest.mark.e2e
def test_the_job_ends_when_the_server_is_killed(slurm, cluster_home):
    asker = (
        "import sys, threading; from tests.slurm.test_work_on_nodes import *; "
        "from loratory.engine.paths import LoratoryHome; job = answering(LoratoryHome.from_environment()); "
        "process = job.new_process(); job.start(process, Wait(0, lambda _: None, threading.Event())); "
        "print(process.call('echo', {})['pid'], flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", asker],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ),
    )
    assert server.stdout is not None
    assert server.stdout.readline().strip().isdigit()
    assert jobs_of(slurm)

    server.kill()
    server.wait()

    wait_until(lambda: not jobs_of(slurm))


@pytest.mark.e2e
def test_a_model_on_a_node_is_chatted_with(slurm, cluster_home, tiny_model_folder):
    describe(cluster_home, TOY.model_copy(update={"gpu_types": (), "memory_gib": 2}))
    session, messages = ChatSession(cluster_home), []
    target = ChatTarget.of_model(ModelConfig(id=str(tiny_model_folder))).model_copy(update={"where": "slurm"})
    try:
        chat_model = session.load(target, lambda progress: messages.append(progress.message))
        state = session.state
        request = ChatRequest(
            messages=(Message("user", "hello"),), branches=("base",), sampling=SamplingConfig(max_new_tokens=4)
        )
        assert list(session.stream(request))
    finally:
        session.unload()

    assert chat_model.device == "CPU of a node"
    assert state.process_bytes is None
    assert messages[0] == "Asking Slurm for a node with CPU."
    wait_until(lambda: not jobs_of(slurm))


def test_a_machine_without_slurm_is_the_reason(cluster_home, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="srun is not on this machine"):
        node_machine(cluster_home, None)


def test_the_command_names_what_is_asked_for_and_passes_nothing_of_this_machine(cluster_home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    describe(
        cluster_home, TOY.model_copy(update={"setup": ("module load 'cuda'",), "python": "/opt/p", "partition": "gpu"})
    )
    machine = node_machine(cluster_home, None)
    job = replace(answering(cluster_home), machine=machine)
    command = list(machine.launcher.command)

    assert command[0] == "env"
    assert "--unset=CUDA_VISIBLE_DEVICES" in command
    assert {"--partition=gpu", "--gpus-per-node=toy:1", "--nodes=1", "--mem=512M", "--time=6"} <= set(command)
    assert command[-4:] == ["-c", "module load 'cuda'\nexec \"$@\"", "bash", "/opt/p"]
    assert machine.device.total_bytes == 8 * 2**30
    assert not job.new_process().access
    assert "secret" not in " ".join(command)


def test_a_home_without_a_cluster_reports_how_to_describe_one(home):
    home.make_writable()
    with pytest.raises(ClusterError, match="cluster"):
        node_machine(home, None)


def test_a_guest_of_a_lab_uses_no_cluster(cluster_home):
    with pytest.raises(ClusterError, match="guest"):
        node_machine(cluster_home.for_person("gus", "guest"), None)
