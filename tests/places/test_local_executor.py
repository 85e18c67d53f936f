import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from loratory.engine.config.load import config_to_yaml
from loratory.engine.errors import ConfigError
from loratory.engine.processes.spawn import cap_log
from loratory.engine.runs import job
from loratory.engine.runs.job import WORKER_MODULE, JobSpec, Nodes, start_worker, training_command, worker_command
from loratory.engine.runs.run import Run, RunFolder
from tests.local_endpoint import completion, serving
from tests.supervision.fake_runs import config_for, cpu, gpu


@pytest.fixture
def run(tmp_path):
    return Run("run-1", "ann", RunFolder(tmp_path))


def shown_by(order: JobSpec, *variables: str) -> list[str]:
    """Return the values of environment variables in a worker that shows them in its log."""
    show = f"import os; print([os.environ[name] for name in {variables!r}])"
    start_worker(order, lambda _: [sys.executable, "-c", show]).wait()
    return ast.literal_eval(order.run.folder.log.read_text().splitlines()[-1])


JUDGING = """
import sys
from loratory.engine.config.load import config_from_mapping, mapping_from_file
from loratory.engine.scoring.base import ScoredAnswer
from loratory.engine.scoring.session import ScoringSession
from loratory.engine.runs.run import RunFolder
from pathlib import Path
with ScoringSession(config_from_mapping(mapping_from_file(RunFolder(Path(sys.argv[1])).config)).training.rewards) as session:
    print(session.score([ScoredAnswer("2 + 2?", "4")])[0][0].score)
"""


def test_a_worker_gets_the_key_that_its_judge_names_and_no_file_has_it(run, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-of-the-judge")
    monkeypatch.setenv("OTHER_API_KEY", "sk-of-another")
    with serving((200, completion({"reason": "Right.", "score": 10}))) as endpoint:
        judge = {
            "scorer": "judge",
            "endpoint": endpoint.url,
            "model": "m",
            "rubric": "Right?",
            "key_variable": "JUDGE_API_KEY",
        }
        config = config_for(training={"objective": "grpo", "rewards": [judge]})
        run.folder.config.write_text(config_to_yaml(config))
        start_worker(
            JobSpec(run, config, (cpu(),), 1), lambda _: [sys.executable, "-c", JUDGING, str(run.folder.path)]
        ).wait()

    assert run.folder.log.read_text().splitlines()[-1] == "1.0"
    assert endpoint.keys == ["Bearer sk-of-the-judge"]
    assert not any(b"sk-of" in file.read_bytes() for file in run.folder.path.rglob("*") if file.is_file())


def test_a_worker_gets_no_key_that_no_judge_names(run, monkeypatch):
    monkeypatch.setenv("OTHER_API_KEY", "sk-of-another")
    monkeypatch.setenv("JUDGE_API_KEY", "sk-of-the-judge")
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?", "key_variable": "JUDGE_API_KEY"}
    show = "import os; print([name for name in os.environ if name.endswith('API_KEY')])"
    for rewards, names in (([judge], ["JUDGE_API_KEY"]), ([], [])):
        order = JobSpec(run, config_for(training={"rewards": rewards}), (cpu(),), 1)
        start_worker(order, lambda _: [sys.executable, "-c", show]).wait()
        assert ast.literal_eval(run.folder.log.read_text().splitlines()[-1]) == names


def test_a_missing_key_is_an_error_before_the_worker_starts(run, monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    judge = {"scorer": "judge", "endpoint": "http://x/v1", "model": "m", "rubric": "?", "key_variable": "JUDGE_API_KEY"}
    order = JobSpec(run, config_for(training={"rewards": [judge]}), (cpu(),), 1)
    with pytest.raises(ConfigError, match="JUDGE_API_KEY is not set here"):
        start_worker(order, worker_command)


def test_one_process_trains_on_one_device(run):
    assert worker_command(JobSpec(run, config_for(), (cpu(),), 1)) == [
        sys.executable, "-P", "-m", "loratory.engine.training.worker", str(run.folder.path),
    ]  # fmt: skip


def test_several_processes_are_started_one_for_each_device(run):
    config = config_for(run={"launcher": "accelerate", "devices": [0, 2]})
    command = worker_command(JobSpec(run, config, (gpu(0), gpu(2)), 1))

    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert command[-3:] == ["--module", "loratory.engine.training.worker", str(run.folder.path)]
    alone = config_for(run={"launcher": "accelerate"})
    assert worker_command(JobSpec(run, alone, (cpu(),), 1)) == worker_command(JobSpec(run, config_for(), (cpu(),), 1))


def test_on_several_nodes_each_launcher_gets_the_same_command(run):
    from torch.distributed.run import parse_args

    nodes = Nodes(2, "node07:29400", "1234-1")
    command = training_command(run.folder.path, 4, nodes, python="/opt/python")
    arguments = parse_args(command[4:])

    assert command[:4] == ["/opt/python", "-P", "-m", "torch.distributed.run"]
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.standalone) == ("2", "4", False)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint, arguments.rdzv_id) == ("c10d", "node07:29400", "1234-1")
    assert (arguments.max_restarts, arguments.local_addr, arguments.module) == (0, None, True)
    assert (arguments.training_script, arguments.training_script_args) == (WORKER_MODULE, [str(run.folder.path)])
    assert training_command(run.folder.path, 1, replace(nodes, count=1)) == training_command(run.folder.path)


def test_variables_of_the_persons_own_decide_nothing_about_a_launch(run, monkeypatch):
    from torch.distributed.run import parse_args

    for name, value in {"NNODES": "3", "NPROC_PER_NODE": "7", "MAX_RESTARTS": "5", "RDZV_ENDPOINT": "other:1"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    command = worker_command(
        JobSpec(run, config_for(run={"launcher": "accelerate", "devices": [0, 2]}), (gpu(0), gpu(2)), 1)
    )

    arguments = parse_args(command[4:])

    assert (arguments.standalone, arguments.nnodes, arguments.nproc_per_node) == (True, "1", "2")
    assert (arguments.max_restarts, arguments.module, arguments.local_addr) == (0, True, "127.0.0.1")


@pytest.mark.e2e
def test_two_launches_in_one_moment_meet_at_ports_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "WORKER_MODULE", "tests.training.meeting_ranks")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    config = config_for(run={"launcher": "accelerate", "devices": [0, 1]})
    folders = [tmp_path / name for name in ("one", "other")]
    launches = []
    for folder in folders:
        folder.mkdir()
        order = JobSpec(Run(folder.name, "ann", RunFolder(folder)), config, (gpu(0), gpu(1)), 1)
        launches.append(start_worker(order, worker_command))

    for launch, folder in zip(launches, folders, strict=True):
        assert launch.wait(timeout=900) == 0, (folder / "worker.log").read_text()[-2000:]
    met = [[(folder / f"met-{rank}").read_text() for rank in range(2)] for folder in folders]
    assert all(first == second for first, second in met)
    assert met[0] != met[1], "two launches at one port"


def test_one_process_sees_all_gpus_that_its_layers_are_spread_over(run):
    config = config_for(run={"devices": [2, 0], "device_map": "balanced"})
    order = JobSpec(run, config, (gpu(2), gpu(0)), 1)

    assert worker_command(order) == worker_command(order._replace(config=config_for(), devices=(cpu(),)))
    assert shown_by(order, "CUDA_VISIBLE_DEVICES") == ["2,0"]


def test_a_worker_sees_its_own_devices_and_knows_its_attempt(run):
    order = JobSpec(run, config_for(), (gpu(2),), 3)

    assert shown_by(order, "CUDA_VISIBLE_DEVICES", "LORATORY_ATTEMPT", "LORATORY_RUN") == ["2", "3", "run-1"]
    assert shown_by(order._replace(devices=(cpu(),)), "CUDA_VISIBLE_DEVICES") == [""]


def test_a_worker_keeps_the_gpus_that_a_cluster_gave_it(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")

    assert shown_by(JobSpec(run, config_for(), (), 1), "CUDA_VISIBLE_DEVICES") == ["2,3"]


def test_a_log_that_grew_too_long_keeps_its_end_and_its_writer(tmp_path):
    log = tmp_path / "worker.log"
    log.write_bytes(b"short\n")
    assert not cap_log(log)

    writer = log.open("ab")
    writer.write(b"".join(b"line %07d\n" % number for number in range(2_000_000)))
    writer.flush()
    assert cap_log(log)
    writer.write(b"the newest\n")
    writer.flush()

    lines = log.read_bytes().split(b"\n")
    assert log.stat().st_size < 6_000_000
    assert lines[0] == b"(earlier output was removed)"
    assert lines[1].startswith(b"line ")
    assert lines[-3:] == [b"line 1999999", b"the newest", b""]


def test_a_worker_caches_no_freed_memory_unless_the_person_set_the_allocator(run, monkeypatch):
    order = JobSpec(run, config_for(), (cpu(),), 1)

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert shown_by(order, "GLIBC_TUNABLES") == ["glibc.malloc.tcache_count=0"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=3")
    assert shown_by(order, "GLIBC_TUNABLES") == ["glibc.malloc.tcache_count=3"]
