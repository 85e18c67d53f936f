"""A supervisor drives jobs that have no process here: they wait, run, are stopped, fail, and their logs are fetched."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from loratory.engine.errors import RunError
from loratory.engine.hardware.lease import LeaseBook
from loratory.engine.paths import LoratoryHome
from loratory.engine.places import make_executors
from loratory.engine.places.local import LocalContext
from loratory.engine.runs.control import (
    request_cancel,
    request_resume,
    request_stop,
    request_target,
    with_requested_target,
)
from loratory.engine.runs.history.events import EventData, StatusData, StepData
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.job import Executor, Job, JobEnd, JobPhase, JobSpec, JobStatus
from loratory.engine.runs.run import Run, RunState, StateReason
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.supervisor import SupervisorLoop
from tests.event_log import write_log
from tests.supervision.fake_runs import config_for, fake_settings

TRAINING = StatusData(phase="training", message="Training.", total_steps=3)
STEP = StepData(step=1, epoch=0.5, loss=2.0, learning_rate=1e-4, tokens=10, tokens_per_second=5.0)
QUEUE = StateReason("executor_queue", "12 jobs come first on the partition `gpu`.")


class ClusterJob(Job):
    """A job of a cluster that shares nothing with this machine."""

    def __init__(self, run: Run, attempt: int, job_id: str, storage: Path) -> None:
        self.id = job_id
        self.run, self.attempt, self.storage = run, attempt, storage
        self.phase: JobPhase = "waiting"
        self.cause = ""
        self.requests: list[str] = []
        self.network_is_down = False

    def report(self, *events: EventData) -> None:
        """Return the folder that its worker writes, on a disk of the cluster."""
        write_log(self.storage / "events.jsonl", *(event for event in events), attempt=self.attempt)

    def poll(self, *, has_reported: bool) -> JobStatus:
        return JobStatus(self.phase, QUEUE if self.phase == "waiting" else None)

    def request_stop(self) -> None:
        self.requests.append("stop")

    def cancel(self) -> None:
        self.requests.append("cancel")
        self.phase = "gone"

    def fetch_logs(self) -> None:
        if self.network_is_down:
            raise RunError("The cluster cannot be reached.", "Try again later.")
        if (self.storage / "events.jsonl").exists():
            shutil.copyfile(self.storage / "events.jsonl", self.run.folder.events)

    def describe(self) -> str:
        return f"job {self.id}"

    def end(self) -> JobEnd:
        return JobEnd(cause=self.cause)


class Cluster(Executor):
    """Remembers its jobs, whoever supervises."""

    name = "cluster"

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.jobs: dict[str, ClusterJob] = {}

    def submit(self, spec: JobSpec) -> Job:
        job_id = f"{7000 + len(self.jobs)}"
        (self.storage / job_id).mkdir(parents=True)
        self.jobs[job_id] = ClusterJob(spec.run, spec.attempt, job_id, self.storage / job_id)
        return self.jobs[job_id]

    def attach(self, run: Run, state: RunState) -> Job:
        return self.jobs[state.job_id]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "cluster")


@pytest.fixture
def run(store: RunStore) -> Run:
    return store.create(config_for("A run"))


def loop_for(home: LoratoryHome, cluster: Cluster) -> SupervisorLoop:
    def executors(_: LocalContext) -> Mapping[str, Executor]:
        return {"local": cluster, "cluster": cluster}

    return SupervisorLoop(home, fake_settings(executors=executors, devices=lambda: ()))


@pytest.fixture
def loop(home: LoratoryHome, cluster: Cluster) -> SupervisorLoop:
    return loop_for(home, cluster)


@pytest.fixture
def job(run: Run, loop: SupervisorLoop, cluster: Cluster) -> ClusterJob:
    """Return the job of a run, which has started."""
    loop.tick()
    (job,) = cluster.jobs.values()
    job.phase = "alive"
    return job


def test_a_job_waits_with_a_reason_runs_and_completes(home, run, cluster, loop):
    loop.tick()
    loop.tick()
    waiting = run.folder.read_state()
    assert (waiting.state, waiting.executor, waiting.job_id) == ("submitted", "cluster", "7000")
    assert (waiting.reason, waiting.cause, waiting.device) == (*QUEUE[:2], "job 7000")

    (job,) = cluster.jobs.values()
    job.phase = "alive"
    loop.tick()
    starting = run.folder.read_state()
    assert (starting.state, starting.reason, starting.cause) == ("starting", None, "")

    job.report(TRAINING, STEP)
    loop.tick()
    assert run.folder.read_state().state == "running"
    assert read_history(run.folder.events).last_step == 1

    job.report(StatusData(phase="finished"))
    job.phase = "gone"
    loop.tick()
    assert run.folder.read_state().state == "completed"
    assert not LeaseBook(home).devices_of_run(run.id)
    assert run.folder.read_worker() is None


def test_a_request_to_stop_is_passed_on_once_and_what_the_worker_saved_is_its_end(run, loop, job):
    job.report(TRAINING, STEP)
    loop.tick()

    request_stop(run)
    loop.tick()
    loop.tick()
    assert job.requests == ["stop"]
    assert run.folder.read_state().state == "stopping"

    job.report(StatusData(phase="stopped", message="Stopped on request.", stopped_by="request"))
    job.phase = "gone"
    loop.tick()
    state = run.folder.read_state()
    assert (state.state, state.reason) == ("stopped", "stopped_on_request")


@pytest.mark.parametrize("ask", [request_stop, request_cancel])
def test_a_job_that_waits_leaves_the_executors_queue_when_asked(run, cluster, loop, ask):
    loop.tick()
    ask(run)

    loop.tick()
    loop.tick()

    (job,) = cluster.jobs.values()
    assert job.requests == ["cancel"]
    assert (run.folder.read_state().state, run.folder.read_state().reason) == ("stopped", "cancelled")


def test_a_cancel_that_a_worker_does_not_obey_ends_its_job(home, run, cluster, loop, job):
    loop.tick()
    request_cancel(run)
    loop.tick()
    state = run.folder.read_state()
    assert state.cancel_seen is not None
    run.folder.write_state(state.model_copy(update={"cancel_seen": state.cancel_seen - 60}))

    later = loop_for(home, cluster)
    later.tick()
    later.tick()

    assert job.requests == ["cancel"]
    assert run.folder.read_state().reason == "cancelled"


def test_what_the_executor_says_about_an_end_is_the_cause(run, loop, job):
    job.report(TRAINING, STEP)
    loop.tick()
    job.phase, job.cause = "gone", "The time limit of 24 hours was reached."

    loop.tick()

    state = run.folder.read_state()
    assert (state.state, state.reason) == ("interrupted", "ended_by_executor")
    assert state.cause == "The time limit of 24 hours was reached."


def test_a_supervisor_that_comes_later_finds_the_job_by_its_id(home, run, cluster, job):
    job.report(TRAINING)

    loop_for(home, cluster).tick()
    loop_for(home, cluster).tick()

    assert run.folder.read_state().state == "running"
    assert len(cluster.jobs) == 1, "it was submitted again"


def test_an_end_waits_for_the_logs_that_tell_of_it(run, loop, job):
    loop.tick()
    job.report(TRAINING, StatusData(phase="finished"))
    job.phase, job.network_is_down = "gone", True

    loop.tick()
    assert not run.folder.read_state().is_final

    job.network_is_down = False
    loop.tick()
    assert run.folder.read_state().state == "completed"


def test_a_job_that_was_never_submitted_is_queued_again(home, run, cluster, job):
    job.phase = "never_started"

    loop_for(home, cluster).tick()

    state = run.folder.read_state()
    assert (state.state, state.job_id, len(cluster.jobs)) == ("submitted", "7001", 2)


def test_an_executor_that_this_version_lacks_leaves_its_run_alone(home, run, store):
    run.folder.write_state(RunState(state="submitted", attempt=1, executor="another", job_id="1"))
    ours = store.create(config_for("steps=1"))
    loop = SupervisorLoop(home, fake_settings())

    loop.tick()

    assert run.folder.read_state().state == "submitted"
    assert ours.folder.read_state().state == "starting"
    request_cancel(ours)


def test_a_run_that_is_resumed_elsewhere_gets_its_next_attempt_there(home, run, tmp_path):
    here, slurm = Cluster(tmp_path / "here"), Cluster(tmp_path / "slurm")
    settings = fake_settings(executors=lambda _: {"local": here, "slurm": slurm}, devices=lambda: ())
    run.folder.write_state(RunState(state="stopped", attempt=1))
    request_target(run, "slurm")
    request_resume(home, run)
    loop = SupervisorLoop(home, settings)

    loop.tick()
    loop.tick()

    assert (len(here.jobs), len(slurm.jobs)) == (0, 1)
    assert run.folder.read_config().run.where == "local", "its configuration stays what it was"


@pytest.mark.parametrize("where", ["jobs", "moon", "../../local", "local\n"])
def test_a_place_that_does_not_share_the_runs_folder_is_refused(run, where):
    with pytest.raises(RunError, match="cannot be resumed on"):
        request_target(run, where)
    run.folder.control.mkdir(exist_ok=True)
    run.folder.place_request.write_text(where)
    assert with_requested_target(run.folder.read_config(), run.folder) == run.folder.read_config()


def test_every_launcher_of_a_configuration_has_an_executor(home):
    from typing import get_args

    from loratory.engine.config.run import LauncherName, Place

    context = LocalContext(LeaseBook(home), lambda *_: None, 0)
    assert set(make_executors(context)) == {*get_args(LauncherName), *get_args(Place)}
