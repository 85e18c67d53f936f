"""Slurm's commands as programs on the PATH say them: what is asked, what is understood, and what hangs."""

import stat

import pytest

from loratory.engine.errors import ClusterError, ClusterUnreachableError
from loratory.engine.places.slurm.commands import JobLine, Slurm, exit_code_of, seconds_of
from loratory.engine.places.slurm.discovery import free_gpus
from loratory.engine.places.slurm.job import SlurmJob
from loratory.engine.places.slurm.place import ClusterPlace, GpuType, JobResources, SlurmRecord
from loratory.engine.places.slurm.script import expected_start
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.run import RunState, WorkerRecord
from loratory.engine.runs.store import RunStore
from loratory.engine.supervision.states import resumes_automatically
from loratory.engine.supervision.worker_monitor import Timeouts, WorkerMonitor
from tests.supervision.fake_runs import config_for
from tests.waiting import count_living, wait_until


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script on the PATH under the name of one of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def test_a_command_that_hangs_is_ended_with_what_it_started(program, tmp_path):
    children = tmp_path / "children"
    children.touch()
    program("squeue", f"sleep 3600 &\necho $! >> {children}\nwait")

    limit_seconds = 1.0
    while not children.read_text():  # a busy machine may need longer than the limit to start it
        with pytest.raises(ClusterUnreachableError, match="does not answer"):
            Slurm(limit_seconds).queue()
        limit_seconds *= 2

    # They have been killed, which a busy machine carries out later, but before they would end by themselves.
    wait_until(lambda: count_living(map(int, children.read_text().split())) == 0)


def test_a_machine_without_slurm_is_not_an_answer(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterUnreachableError, match="squeue cannot be started"):
        Slurm().queue()


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", ClusterError),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller", ClusterUnreachableError),
        ("sbatch: error: Munge encode failed: Failed to access", ClusterUnreachableError),
    ],
)
def test_a_refusal_differs_from_no_answer(program, output, kind):
    program("sbatch", f"echo '{output}' >&2; exit 1")

    with pytest.raises(ClusterError) as error_info:
        Slurm().submit("#!/bin/sh\n", [])

    assert type(error_info.value) is kind


def test_no_secret_and_no_format_of_a_person_reaches_slurm(program, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "SBATCH_EXPORT", "SQUEUE_FORMAT", "SLURM_JOB_ID", "HTTPS_PROXY_PASSWORD"):
        monkeypatch.setenv(name, "a-secret")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/one.conf")
    program("sbatch", f"env > {tmp_path}/environment; cat > {tmp_path}/script; echo '12;one'")

    assert Slurm().submit("the script", ["--parsable"]) == "12"

    environment = (tmp_path / "environment").read_text()
    assert "a-secret" not in environment
    assert "SLURM_CONF=/etc/slurm/one.conf" in environment
    assert (tmp_path / "script").read_text() == "the script"


def test_the_queue_is_read_whatever_others_write_into_their_comments(program):
    fields = ("7", "RUNNING", "None", "a|b; c", "node1", "1795784621", "N/A", "1-02:00:00", "0:0")
    program("squeue", f"printf '%s\\037' {' '.join(repr(field) for field in fields)}; echo; echo 'half a line'")

    (line,) = Slurm().queue()

    assert (line.id, line.state, line.comment, line.nodes) == ("7", "RUNNING", "a|b; c", "node1")
    assert (line.start_time, line.end_time, line.limit_seconds, line.exit_code) == (1795784621.0, None, 93_600.0, 0)


def test_a_queue_in_another_format_is_no_answer(program):
    program("squeue", "echo '100 long loratory'")
    with pytest.raises(ClusterUnreachableError, match="squeue printed '100 long loratory' instead of jobs"):
        Slurm().queue()

    program("squeue", "")
    assert Slurm().queue() == []


SHOWN = (
    "JobId=7 JobName=loratory-1a2b UserId=ann(1000) JobState={state} Reason=None Dependency=(null) ExitCode=0:9 "
    "TimeLimit=1-02:00:00 StartTime=1795784621 EndTime=1795784700 ReqNodeList=(null) NodeList=node1 NumNodes=1 "
    "ReqB:S:C:T=0:0:*:* Comment=loratory run attempt 1 abc StdErr=/a b/worker.log "
)


def test_one_job_is_found_at_the_controller_and_its_end_in_the_accounts(program):
    program("scontrol", f"echo '{SHOWN.format(state='RUNNING')}'")
    line = Slurm().find("7")
    assert line == JobLine(
        "7", "RUNNING", "None", "loratory run attempt 1 abc", "node1", 1795784621.0, 1795784700.0, 93_600.0, -9
    )

    program("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    program("sacct", "printf '7\\037CANCELLED by 1000\\037None\\037\\037node1\\0371\\0372\\0371:00\\0370:15\\n'")
    line = Slurm().find("7")
    assert (line.state, line.nodes, line.end_time, line.exit_code) == ("CANCELLED", "node1", 2.0, -15)

    program("sacct", "printf '7\\037RUNNING\\037None\\037\\037node1\\0371\\037Unknown\\0371:00\\0370:0\\n'")
    assert Slurm().find("7") is None  # its end was lost
    program("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert Slurm().find("7") is None


@pytest.mark.parametrize(
    "answer",
    ["", "echo nothing of use", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"],
)
def test_a_controller_that_does_not_answer_for_a_job_has_not_forgotten_it(program, answer):
    program("scontrol", answer)

    with pytest.raises(ClusterUnreachableError):
        Slurm().find("7")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5:00", 300), ("1:00:00", 3600), ("2-00:00:00", 172_800), ("30", 30), ("1-12", 129_600), ("UNLIMITED", None), ("", None)],
)  # fmt: skip
def test_time_limits_as_slurm_prints_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "code"), [("0:0", 0), ("1:0", 1), ("137:0", -9), ("0:15", -15), ("255:0", 255), ("", None)]
)
def test_exit_codes_as_slurm_prints_them(text, code):
    assert exit_code_of(text) == code


def test_free_gpus_are_counted_once_and_only_where_jobs_start(program):
    lines = [
        ("n1", "gpu:a100:4(S:0-1)", "gpu:a100:3(IDX:0-2)", "mixed-"), ("n1", "gpu:a100:4", "gpu:a100:3", "mixed-"),
        ("n2", "gpu:a100:4", "gpu:a100:0(IDX:N/A)", "drained"), ("n3", "gpu:l4:2", "gpu:l4:0", "idle"), ("n4", "(null)", "", "idle"),
    ]  # fmt: skip
    program(
        "sinfo", "\n".join("printf '%s\\037' " + " ".join(f"'{part}'" for part in line) + "; echo" for line in lines)
    )
    place = ClusterPlace(gpu_types=(GpuType(name="l4", memory_gib=22), GpuType(name="a100", memory_gib=39)))

    assert free_gpus(Slurm(), place) == {"l4": 2, "a100": 1}


def test_the_expected_start_is_slurms(program):
    program(
        "sbatch",
        "echo 'sbatch: Job 11 to start at 1795786346 using 4 processors on nodes n[1-2] in partition long' >&2",
    )

    assert expected_start(Slurm(), ClusterPlace(), JobResources()) == 1795786346.0


@pytest.mark.parametrize("state", ["mixed", "allocated-", "idle~"])
def test_what_no_node_has_never_starts_however_busy_the_nodes_are(program, state):
    program("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    program("sinfo", f"echo idle; echo '{state}'")

    with pytest.raises(ClusterError, match="No node of the cluster has"):
        expected_start(Slurm(), ClusterPlace(), JobResources())


@pytest.mark.parametrize("state", ["down", "idle*", "draining-"])
def test_what_no_node_has_is_not_known_while_one_is_away(program, state):
    program("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    program("sinfo", f"echo idle; echo '{state}'")

    Slurm().require_possible("#!/bin/sh\n", [])
    assert expected_start(Slurm(), ClusterPlace(), JobResources()) is None


@pytest.mark.parametrize(
    ("slurm_state", "code", "state", "reason", "cause"),
    [
        ("OUT_OF_MEMORY", "0:125", "failed", "out_of_memory", "job 7 on node2: it used more than the 12 GiB of RAM"),
        ("FAILED", "0:9", "failed", "killed", "SIGKILL"), ("FAILED", "137:0", "failed", "killed", "SIGKILL"),
        ("TIMEOUT", "0:15", "interrupted", "job_time_limit", "time limit at Slurm (1 h)"),
        ("NODE_FAIL", "0:0", "interrupted", "node_failed", "The node of job 7 failed on node2"),
        ("PREEMPTED", "0:0", "interrupted", "preempted", "higher priority"),
        ("CANCELLED", "0:15", "stopped", "job_cancelled", "scancel"),
    ],
)  # fmt: skip
def test_what_became_of_a_run_on_another_node_is_what_slurm_shows(
    program, home, slurm_state, code, state, reason, cause
):
    run = RunStore(home, "ann").create(config_for(run={"where": "slurm", "resume_after_restart": True}))
    record = SlurmRecord(
        attempt=1, resources=JobResources(memory_gib=12), warning_seconds=60, job_id="7", is_released=True
    )
    fields = ("7", slurm_state, "None", record.comment(run), "node2", "N/A", "N/A", "1:00:00", code)
    program("squeue", f"printf '%s\\037' {' '.join(repr(field) for field in fields)}; echo")
    node = ProcessIdentity.current().model_copy(update={"host": "node2", "boot_id": "of node2"})  # as after a restart
    run.folder.process.write_text(
        WorkerRecord(**node.model_dump(), process_group=4711, attempt=1, job_id="7").model_dump_json()
    )
    run.folder.write_state(RunState(state="running", attempt=1, executor="slurm", job_id="7", device="slurm 7"))

    job = SlurmJob(run, record.save(run.folder), ClusterPlace(), Slurm())
    job.step(Slurm().queue())
    end = WorkerMonitor(run, run.folder.read_state(), job, Timeouts()).poll()

    assert (end.state, end.reason) == (state, reason)
    assert cause in end.cause
    assert resumes_automatically(run.folder, end) == (state == "interrupted")
