"""A job as it is followed, step by step, while Slurm answers, refuses, forgets, or is away."""

import threading

import pytest

from loratory.engine.errors import ClusterError, ClusterUnreachableError
from loratory.engine.places.slurm.commands import JobLine
from loratory.engine.places.slurm.job import SlurmExecutor, SlurmJob
from loratory.engine.places.slurm.place import ClusterPlace, GpuType, JobResources, SlurmRecord, describe_wait, job_end
from loratory.engine.places.slurm.script import job_script, worker_arguments
from loratory.engine.runs.activity import ReportedActivity
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.job import JobSpec
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from tests.slurm.fake_slurm import FakeSlurm
from tests.supervision.fake_runs import config_for
from tests.waiting import wait_until

AWAY = ClusterUnreachableError("Slurm does not answer.", "Wait.")


@pytest.fixture
def slurm():
    return FakeSlurm()


@pytest.fixture
def run(home):
    return RunStore(home, "ann").create(config_for("steps=5", run={"where": "slurm"}))


@pytest.fixture
def job(run, slurm):
    record = SlurmRecord(attempt=1, resources=JobResources(gpu_type="a100"), warning_seconds=300).save(run.folder)
    return SlurmJob(run, record, ClusterPlace(), slurm)


def step(job, times=1):
    for _ in range(times):
        job.step(job._slurm.queue())
    return job.view


def again(job):
    """As a server that comes back finds it."""
    return SlurmJob(job.run, SlurmRecord.read(job.run.folder), job.place, job._slurm)


def test_a_job_is_submitted_held_saved_and_then_released(job, slurm):
    slurm.fails["release"] = AWAY
    step(job)
    record = SlurmRecord.read(job.run.folder)
    assert (record.job_id, record.is_released) == ("100", False)

    del slurm.fails["release"]
    view = step(again(job), 1)
    assert view.reason.startswith("Waiting at Slurm: None, job 100")
    assert SlurmRecord.read(job.run.folder).is_released
    assert len(slurm.scripts) == 1


def test_a_submission_whose_answer_was_lost_is_found_and_not_repeated(job, slurm):
    slurm.fails["lost answer"] = AWAY
    view = step(job)
    assert view.trouble is AWAY
    assert job.record.job_id == ""

    step(again(job))

    assert SlurmRecord.read(job.run.folder).job_id == "100"
    assert len(slurm.scripts) == 1


def test_of_two_submissions_of_one_attempt_only_one_begins(job, slurm):
    step(job)
    slurm.jobs["999"] = slurm.jobs["100"]._replace(id="999")

    step(job)

    assert "cancel 999" in slurm.commands
    assert "cancel 100" not in slurm.commands


def test_no_answer_and_a_job_that_is_missed_once_change_nothing(job, slurm, home):
    step(job)
    slurm.change("100", state="RUNNING", nodes="node7")
    assert step(job).stage == "running"

    slurm.fails["queue"] = AWAY
    SlurmExecutor(home, ClusterPlace, slurm).step_jobs([job])
    assert (job.view.stage, job.view.trouble) == ("running", AWAY)
    del slurm.fails["queue"]

    jobs, slurm.jobs = slurm.jobs, {}
    assert step(job, 2).stage == "running"
    slurm.jobs = jobs
    assert step(job).stage == "running"
    slurm.jobs = {}
    assert step(job, 3).stage == "ended"


def test_a_job_that_the_queue_leaves_out_is_as_the_controller_shows_it(job, slurm):
    step(job)
    slurm.change("100", state="RUNNING", nodes="node7")
    step(job)
    slurm.is_silent = True

    assert step(job, 10).stage == "running"
    slurm.change("100", state="OUT_OF_MEMORY", exit_code=1)
    assert step(job, 2).end.verdict == "out_of_memory"


def test_a_forgotten_job_runs_as_long_as_its_worker_does(job, slurm):
    step(job)
    slurm.jobs.clear()
    claim = job.run.folder.claim()
    view = step(job, 10)
    assert (view.stage, view.reason) == ("running", "Slurm does not list job 100, and its worker still writes.")

    with EventWriter(job.run.folder.events, 1) as events:
        events.append(StatusData(phase="finished", message="Finished."))
    claim.lock.release()

    assert step(job).stage == "ended"


def test_a_worker_elsewhere_whose_job_is_forgotten_lives_while_it_writes(job, slurm, monkeypatch):
    step(job)
    slurm.jobs.clear()
    claim = job.run.folder.claim()
    claim.lock.release()
    elsewhere = job.run.folder.read_worker().model_copy(update={"host": "node7", "boot_id": "another"})
    job.run.folder.process.write_text(elsewhere.model_dump_json())
    now = [0.0]
    monkeypatch.setattr("loratory.engine.places.slurm.job.time.monotonic", lambda: now[0])
    for _ in range(10):
        now[0] += 60
        job.run.folder.log.open("a").write("step\n")
        step(job)
    assert job.view.stage == "running"

    now[0] += 600
    view = step(job)

    assert view.end.cause == "Slurm no longer knows job 100, and its worker gives no sign of life."
    assert again(job).view == view


def test_another_job_with_the_number_of_a_forgotten_one_is_not_taken_for_it(job, slurm):
    step(job)
    slurm.jobs = {"100": JobLine("100", "RUNNING", "None", "of another run", "node7")}

    assert step(job, 3).stage == "ended"


def test_a_cancel_reaches_slurm_while_its_queue_cannot_be_read(home, run, slurm):
    executor = SlurmExecutor(home, lambda: ClusterPlace(poll_seconds=0.1, offline=False), slurm)
    job = executor.submit(JobSpec(run, run.folder.read_config(), (), 1))
    wait_until(lambda: job.poll(has_reported=False).phase == "waiting" and bool(job.id))
    slurm.fails["queue"] = AWAY

    job.cancel()

    wait_until(lambda: slurm.jobs[job.id].state == "CANCELLED")
    executor.close()


def test_a_refusal_ends_the_run_with_slurms_words(job, slurm):
    slurm.fails["submit"] = ClusterError("Slurm refused sbatch: Invalid account.", "Correct cluster.yaml.")

    view = step(job)

    assert view.end.cause == "Slurm refused sbatch: Invalid account."
    assert SlurmRecord.read(job.run.folder).is_over


def test_a_full_queue_of_the_account_is_waited_for(job, slurm):
    slurm.fails["submit"] = ClusterError("Slurm refused sbatch: error: QOSMaxSubmitJobPerUserLimit.", "Ask its admin.")

    view = step(job, 3)

    assert (view.stage, slurm.commands.count("submit")) == ("preparing", 1)  # not tried again at every look
    assert "no more jobs" in view.reason
    del slurm.fails["submit"]
    assert step(again(job)).stage == "waiting"


def test_a_cancelled_job_leaves_the_queue_or_is_killed_where_it_runs(job, slurm, home):
    step(job)
    other = SlurmJob(
        job.run, SlurmRecord(attempt=2, resources=JobResources(), warning_seconds=1), ClusterPlace(), slurm
    )
    step(other)
    slurm.change("101", state="RUNNING")
    step(other)
    job.wants_cancel = other.wants_cancel = True

    step(job)
    step(other)

    assert slurm.commands[-3:-2] == ["cancel 100"]
    assert slurm.commands[-1] == "kill 101"


def test_a_job_that_is_cancelled_before_it_was_submitted_never_is(job, slurm):
    job.wants_cancel = True

    assert step(job).end.verdict == "cancelled"
    assert slurm.scripts == []


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ("OUT_OF_MEMORY", "out_of_memory"), ("TIMEOUT", "time_limit"), ("NODE_FAIL", "node_failed"),
        ("PREEMPTED", "preempted"), ("CANCELLED", "cancelled"), ("BOOT_FAIL", "node_failed"), ("FAILED", None), ("COMPLETED", None),
    ],
)  # fmt: skip
def test_ends_are_slurms_and_stay_when_it_has_forgotten_them(job, slurm, state, word):
    step(job)
    slurm.change("100", state=state, nodes="node7", exit_code=1, start_time=0.0, end_time=60.0, limit_seconds=3600.0)
    view = step(job)
    slurm.jobs = {}

    later = again(job)

    assert view.end.verdict == later.view.end.verdict == word
    if word is not None:
        assert "job 100" in view.end.cause.lower()
        assert "{" not in view.end.cause


def test_a_job_that_saved_on_the_warning_ended_by_its_time_limit(job, slurm):
    step(job)
    slurm.change("100", state="COMPLETED", exit_code=0, start_time=0.0, end_time=3400.0, limit_seconds=3600.0)

    assert step(job).end.verdict == "time_limit"


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("QOSMaxJobsPerUserLimit", "you have as many jobs running as your QoS allows"),
        ("AssocMaxWallDurationPerJobLimit", "it is beyond a limit of your account"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "the nodes that it needs are down, drained or reserved"),
    ],
)  # fmt: skip
def test_reasons_in_plain_words(reason, expected):
    text, _ = describe_wait(JobLine("7", "PENDING", reason, ""))

    assert text == f"Waiting at Slurm: {reason.partition(',')[0]}, job 7 ({expected})."


def test_a_reason_that_is_not_known_is_shown_as_it_is():
    assert describe_wait(JobLine("7", "PENDING", "SomethingNew", ""))[0] == "Waiting at Slurm: SomethingNew, job 7."


def test_the_script_has_no_secret_and_becomes_the_worker(job, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HTTPS_PROXY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "a-secret")
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in offline:
        monkeypatch.delenv(name, raising=False)  # the script has them from cluster.yaml
    place = ClusterPlace(setup=("module load cuda",), python="/opt/python it's")

    script = job_script(job.run, job.record, place)

    assert "a-secret" not in script
    assert "export LORATORY_ATTEMPT=1\n" in script
    assert all(f"export {name}=1\n" in script for name in offline)
    assert "OFFLINE" not in job_script(job.run, job.record, place.model_copy(update={"offline": False}))
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300\n" in script
    *_, setup, command = script.splitlines()
    assert setup == "module load cuda"
    srun, _, worker = command.partition(" '/opt/python it'\"'\"'s' ")
    assert srun.startswith("exec srun --export=ALL --kill-on-bad-exit=1 ")
    assert srun.endswith("--nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=4")
    assert worker == f"-P -m loratory.engine.training.worker {job.run.folder.path}"


def test_several_gpus_or_nodes_start_torchs_launcher(job):
    wide = job.record.model_copy(update={"resources": JobResources(gpus=4, nodes=2)})

    arguments = worker_arguments(job.run, wide, ClusterPlace())
    script = job_script(job.run, wide, ClusterPlace())

    assert arguments[arguments.index("--nproc-per-node") + 1] == "4"
    assert arguments[arguments.index("--nnodes") + 1] == "2"
    assert '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):' in script


def test_one_look_at_the_queue_serves_all_runs_and_no_call_waits_for_it(home, slurm):
    place = ClusterPlace(gpu_types=(GpuType(name="a100", memory_gib=39),), poll_seconds=0.1, offline=False)
    executor = SlurmExecutor(home, lambda: place, slurm)
    store, jobs = RunStore(home, "ann"), []
    for number in range(20):
        run = store.create(config_for(f"run {number}", run={"where": "slurm"}))
        jobs.append(executor.submit(JobSpec(run, run.folder.read_config(), (), 1)))
    wait_until(lambda: all(job.record.is_released for job in jobs))  # an id is known one command earlier
    slurm.commands.clear()
    wait_until(lambda: slurm.commands.count("queue") >= 3)
    executor.close()

    assert set(slurm.commands) == {"queue"}
    assert len(slurm.scripts) == 20
    assert len({job.id for job in jobs}) == 20
    assert all(job.poll(has_reported=False).phase == "waiting" for job in jobs)


@pytest.mark.parametrize(
    ("predicted_gib", "gpu_type", "expected"), [(5, "", "t4"), (14, "", "a100"), (200, "", "a100"), (None, "", "a100"), (5, "l4", "l4")]
)  # fmt: skip
def test_a_run_that_was_filed_for_another_place_asks_for_a_gpu_that_holds_it(
    home, slurm, predicted_gib, gpu_type, expected
):
    place = ClusterPlace(gpu_types=(GpuType(name="a100", memory_gib=80), GpuType(name="t4", memory_gib=15)))
    config = config_for(slurm={"gpu_type": gpu_type})

    assert resources_of(home, slurm, place, predicted_gib, config).gpu_type == expected


@pytest.mark.parametrize(
    ("predicted_gib", "memory_gib", "expected"), [(10, None, 16), (40, None, 48), (None, None, 16), (40, 20.0, 20)]
)  # fmt: skip
def test_a_run_on_processors_that_was_filed_for_another_place_asks_for_enough_ram(
    home, slurm, predicted_gib, memory_gib, expected
):
    config = config_for(run={"devices": "cpu"}, slurm={"memory_gib": memory_gib})

    assert resources_of(home, slurm, ClusterPlace(memory_gib=16), predicted_gib, config).memory_gib == expected


def resources_of(home, slurm, place, predicted_gib, config):
    """Submit a run of which its start predicted so much, and return what its job asks for."""
    run = RunStore(home, "ann").create(config)
    known = Provenance(predicted_bytes=predicted_gib and predicted_gib << 30)
    run.folder.provenance.write_text(known.model_dump_json())
    executor = SlurmExecutor(home, lambda: place.model_copy(update={"offline": False}), slurm)
    executor.submit(JobSpec(run, run.folder.read_config(), (), 1))
    executor.close()
    return SlurmRecord.read(run.folder).resources


def test_a_queue_that_hangs_blocks_neither_poll_nor_submission(home, slurm):
    hangs, is_over = threading.Event(), threading.Event()

    def queue():
        hangs.set()
        is_over.wait(300)
        raise AWAY

    slurm.queue = queue
    executor = SlurmExecutor(home, lambda: ClusterPlace(poll_seconds=0.1), slurm)
    run = RunStore(home, "ann").create(config_for(run={"where": "slurm"}))
    job = executor.submit(JobSpec(run, run.folder.read_config(), (), 1))
    assert hangs.wait(300)

    job.cancel()
    assert job.poll(has_reported=False).phase in ("waiting", "alive")
    assert isinstance(executor.attach(run, RunState(state="submitted", attempt=1, executor="slurm")), SlurmJob)
    is_over.set()
    executor.close()


def test_processor_time_of_a_worker_counts_only_while_its_job_is_seen_to_run(job, slurm):
    """Of that on another node, so one that hangs there does not look busy; see `ReportedActivity`."""
    observations = []
    step(job)
    for state in ("PENDING", "RUNNING", "SUSPENDED", "RUNNING"):
        slurm.change("100", state=state, nodes="node7")
        step(job)
        observations.append(type(job.activity()))
    job.show_trouble(AWAY)

    assert observations == [type(None), ReportedActivity, type(None), ReportedActivity]
    assert job.activity() is None


def test_the_last_word_is_waited_for_where_the_worker_ended_by_itself(job, slurm):
    step(job)
    slurm.change("100", state="COMPLETED", exit_code=0, nodes="node7")
    step(job)

    with pytest.raises(ClusterError, match="not visible here yet"):
        job.fetch_logs()
    with EventWriter(job.run.folder.events, 1) as events:
        events.append(StatusData(phase="finished", message="Finished."))
    job.fetch_logs()


def test_an_attempt_without_a_record_was_never_submitted(home, run, slurm):
    executor = SlurmExecutor(home, ClusterPlace, slurm)
    lost_job = executor.attach(run, RunState(state="submitted", attempt=1, executor="slurm"))

    assert lost_job.poll(has_reported=False).phase == "never_started"
    assert lost_job.poll(has_reported=True).phase == "gone"
    assert job_end(SlurmRecord(attempt=1, resources=JobResources(), warning_seconds=1)).verdict is None
