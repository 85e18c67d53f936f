"""One model over two GPUs, its layers or each of its weights divided: the losses of one GPU, and half of its memory on each."""

import pytest
import torch

from loratory.engine.hardware.devices import list_devices
from loratory.engine.runs.job import JobSpec, start_worker, worker_command
from loratory.engine.training.placement import Placement
from loratory.engine.training.reporting import DeviceMemory
from loratory.engine.training.worker import EXIT_FINISHED
from tests.gpu.conftest import WORKER_SECONDS
from tests.gpu.cuda_training import cuda_placement
from tests.tiny_model import make_tiny_model
from tests.training.tiny_training import make_config, make_rows, make_training, train_tiny
from tests.training.worker_runs import data_of_events, losses_of, newest_intact

pytestmark = pytest.mark.gpu

SHARDED = {"launcher": "accelerate", "fsdp": "full_shard"}
METHODS = [
    ("lora", "none"),
    ("lora", "nf4"),
    ("lora", "int8"),
    ("ia3", "none"),
    ("prefix_tuning", "none"),
    ("none", "none"),
]


@pytest.fixture
def two_gpus():
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device on this machine, and layers are spread over two")
    gpus = tuple(device for device in list_devices() if device.kind == "cuda")[:2]
    return Placement(gpus[0], torch.device("cuda", 0), layer_devices=gpus)


@pytest.mark.parametrize(
    ("method", "quantization", "checkpointing"),
    [(*each, False) for each in METHODS] + [(*each, True) for each in METHODS if each[0] != "prefix_tuning"],
)
def test_losses_are_those_of_one_gpu(method, quantization, checkpointing, two_gpus, tmp_path):
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=6)
    sections = {
        "model": {"quantization": quantization, "compute_dtype": "bfloat16" if quantization != "none" else "float32"},
        "adapter": {"method": method, "num_virtual_tokens": 4},
        "training": {"gradient_checkpointing": checkpointing, "max_steps": 6},
    }
    split_sections = {**sections, "run": {"devices": [0, 1], "device_map": "balanced"}}
    rows, held_out = make_rows(24), make_rows(6, seed=1)

    def train(settings, placement, name):
        training = train_tiny(
            make_config(folder, **settings), rows, tmp_path / name, held_out=held_out, placement=placement
        )
        return training, training.trainer.measure_held_out().eval_loss

    single, single_held_out = train(sections, cuda_placement(), "one")
    split, split_held_out = train(split_sections, two_gpus, "two")

    assert {p.device.index for p in split.trainer.model.parameters()} == {0, 1}
    tolerance = 2e-3 if quantization == "none" else 0.02
    assert split.losses == pytest.approx(single.losses, rel=tolerance)
    assert split_held_out == pytest.approx(single_held_out, rel=tolerance)


def test_each_gpu_holds_a_part(two_gpus, tmp_path, show):
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "head_dim": 64}
    folder = make_tiny_model(tmp_path / "model", num_hidden_layers=12, **sizes)
    for index in (0, 1):
        torch.cuda.reset_peak_memory_stats(index)
    config = make_config(folder, run={"devices": [0, 1], "device_map": "balanced"})

    make_training(config, make_rows(12), tmp_path / "out", placement=two_gpus).trainer.train()

    peaks = [torch.cuda.max_memory_allocated(index) for index in (0, 1)]
    show(peaks=peaks, reported=DeviceMemory.from_placement(two_gpus).peak_allocated_bytes())
    assert DeviceMemory.from_placement(two_gpus).peak_allocated_bytes() == max(peaks)
    assert min(peaks) > max(peaks) / 2


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("run", "sections"),
    [
        ({"device_map": "balanced"}, {}),
        ({"launcher": "accelerate"}, {}),
        (SHARDED, {}),
        (SHARDED, {"model": {"quantization": "nf4"}}),
        (SHARDED, {"adapter": {"method": "none"}}),
        (SHARDED, {"model": {"compute_dtype": "float16"}}),
    ],
    ids=["layers divided", "rows divided", "sharded", "sharded QLoRA", "sharded full", "sharded with a scaled loss"],
)
def test_a_worker_on_two_gpus_has_the_losses_of_one_and_resumes(run, sections, two_gpus, cuda_runs, tmp_path):
    """Started as the supervisor starts it."""
    alone = cuda_runs.create(run={"devices": [0]}, **sections)
    # Two processes take two batches at once, so one each is the same step.
    batches = {"training": {"gradient_accumulation_steps": 1}} if "launcher" in run else {}
    together = cuda_runs.create(run={"devices": [0, 1], **run}, **batches, **sections)

    def work(run_of_worker, devices, attempt, fault=None):
        config = run_of_worker.folder.read_config()
        with pytest.MonkeyPatch.context() as patch:
            if fault:
                patch.setenv("LORATORY_TEST_FAULT", fault)
            process = start_worker(JobSpec(run_of_worker, config, devices, attempt), worker_command)
        return process.wait(WORKER_SECONDS)

    assert work(alone, two_gpus.layer_devices[:1], 1) == EXIT_FINISHED, alone.folder.log.read_text()[-3000:]
    assert work(together, two_gpus.layer_devices, 1, "training:step-7=kill") != EXIT_FINISHED
    assert newest_intact(together.folder.checkpoints).step == 5
    assert work(together, two_gpus.layer_devices, 2) == EXIT_FINISHED, together.folder.log.read_text()[-3000:]

    assert data_of_events(together, "resumed")[0].step == 5
    for (_, got), (_, expected) in zip(losses_of(together), losses_of(alone), strict=True):
        assert got == pytest.approx(expected, rel=0.02)
