import sys

import pytest

from engine.runs.run import Run, RunFolder
from engine.runs.worker_command import WorkerOrder, cap_log, start_worker, training_command
from tests.runs.supervision import config_for, cpu, gpu


@pytest.fixture
def run(tmp_path):
    return Run("run-1", "ann", RunFolder(tmp_path))


def test_one_process_trains_on_one_device(run):
    assert training_command(WorkerOrder(run, config_for(), (cpu(),), 1)) == [
        sys.executable, "-P", "-m", "engine.training.worker", str(run.folder.path),
    ]  # fmt: skip


def test_accelerate_starts_one_process_for_each_device(run):
    config = config_for(run={"launcher": "accelerate"})
    command = training_command(WorkerOrder(run, config, (gpu(0), gpu(2)), 1))

    assert command[command.index("--num_processes") + 1] == "2"
    assert command[-3:] == ["--module", "engine.training.worker", str(run.folder.path)]
    assert training_command(WorkerOrder(run, config, (cpu(),), 1)) == training_command(
        WorkerOrder(run, config_for(), (cpu(),), 1)
    )


@pytest.mark.parametrize("kind", ["NO", "FSDP", "DEEPSPEED", "MULTI_GPU"])
def test_a_configuration_of_accelerate_of_the_persons_own_decides_nothing(run, tmp_path, monkeypatch, kind):
    from accelerate.commands import launch

    own = tmp_path / "default_config.yaml"
    own.write_text(
        f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\ngpu_ids: '5'\nnum_processes: 1\n"
        "num_machines: 1\nmixed_precision: fp16\nuse_cpu: false\nmachine_rank: 0\ndebug: false\n"
    )
    monkeypatch.setattr(launch, "default_config_file", str(own))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(own))
    command = training_command(WorkerOrder(run, config_for(run={"launcher": "accelerate"}), (gpu(0), gpu(2)), 1))

    arguments, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(command[4:]))

    assert (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed) == (True, False, False)
    assert (arguments.gpu_ids, arguments.num_processes, arguments.mixed_precision) == ("all", 2, "no")


def test_one_process_sees_all_gpus_that_its_layers_are_spread_over(run):
    config = config_for(run={"devices": [2, 0], "device_map": "balanced"})
    order = WorkerOrder(run, config, (gpu(2), gpu(0)), 1)
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"

    assert training_command(order) == training_command(order._replace(config=config_for(), devices=(cpu(),)))
    start_worker(order, lambda _: [sys.executable, "-c", show]).wait()
    assert run.folder.log.read_text() == "2,0\n"


def test_a_worker_sees_its_own_devices_and_knows_its_attempt(run):
    show = "import os; print([os.environ[n] for n in ('CUDA_VISIBLE_DEVICES', 'LORATORY_ATTEMPT', 'LORATORY_RUN')])"
    order = WorkerOrder(run, config_for(), (gpu(2),), 3)

    start_worker(order, lambda _: [sys.executable, "-c", show]).wait()
    assert run.folder.log.read_text() == "['2', '3', 'run-1']\n"
    start_worker(order._replace(devices=(cpu(),)), lambda _: [sys.executable, "-c", show]).wait()
    assert run.folder.log.read_text().splitlines()[1] == "['', '3', 'run-1']"


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
