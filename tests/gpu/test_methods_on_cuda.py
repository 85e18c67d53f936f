"""Every method on every precision, by a real worker on the demo model: trains, saves, is killed, goes on, and stays within
the memory that was predicted."""

import itertools
import signal

import pytest
from safetensors.torch import load_file

from engine.config.model import ModelConfig
from engine.hardware.devices import list_devices
from engine.inspector.inventory import module_inventory
from engine.memory.estimate import Estimator
from engine.runs.checkpoints import newest_intact
from engine.training.worker import EXIT_FINISHED
from tests.memory.measured_on_gpu import assert_predicted
from tests.training.worker_runs import losses_of, said

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

# Kernels on CUDA add up in an order of their own (atomics in the backward pass of embeddings and of attention), so that a
# resumed run follows the uninterrupted one within rounding of bfloat16 and not bit by bit.
RESUME_TOLERANCE = 0.01

METHODS = ("lora", "ia3", "prefix_tuning", "none")
QUANTIZATIONS = ("none", "nf4", "fp4", "int8")
CELLS = [
    (method, quantization)
    for method, quantization in itertools.product(METHODS, QUANTIZATIONS)
    if method != "none" or quantization == "none"
]


def sections_of(method, quantization):
    rates = {"lora": 2e-4, "ia3": 3e-3, "prefix_tuning": 3e-3, "none": 1e-5}
    return {
        "model": {"quantization": quantization},
        "adapter": {"method": method, "r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "num_virtual_tokens": 8},
        "training": {"learning_rate": rates[method], "max_length": 128},
        "run": {"devices": "auto"},
    }


@pytest.mark.parametrize(("method", "quantization"), CELLS, ids=[f"{m}-{q}" for m, q in CELLS])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(method, quantization, cuda_runs, cuda_workers, show):
    whole = cuda_runs.create(**sections_of(method, quantization))
    run = cuda_runs.create(**sections_of(method, quantization))

    assert cuda_workers.run(whole) == EXIT_FINISHED, cuda_workers.log.read_text()[-3000:]
    assert cuda_workers.run(run, "training:step-7=kill") == -signal.SIGKILL
    assert newest_intact(run.folder.checkpoints).step == 5
    assert cuda_workers.run(run) == EXIT_FINISHED

    (resumed,) = said(run, "resumed")
    expected, got = dict(losses_of(whole)), dict(losses_of(run))
    assert resumed.step == 5
    assert got.keys() == expected.keys()
    assert "cpu" not in said(run, "parameters")[0].device.lower()
    worst = max(abs(got[step] - expected[step]) / expected[step] for step in got)
    show(worst_loss_difference=round(worst, 6), tolerance=RESUME_TOLERANCE)
    assert worst < RESUME_TOLERANCE
    weights = [load_file(path) for path in run.folder.adapter.glob("*.safetensors")]
    assert sum(tensor.numel() for file in weights for tensor in file.values()) > 0


@pytest.mark.parametrize(("method", "quantization"), CELLS, ids=[f"{m}-{q}" for m, q in CELLS])
def test_memory_stays_within_what_was_predicted(method, quantization, home, cuda_runs, cuda_workers, show):
    run = cuda_runs.create(**sections_of(method, quantization))
    config = run.folder.read_config()
    gpu = next(device for device in list_devices() if device.kind == "cuda")
    shape = module_inventory(ModelConfig(id=config.model.id), home)
    need = Estimator(shape, gpu).need(config)

    assert cuda_workers.run(run) == EXIT_FINISHED, cuda_workers.log.read_text()[-3000:]

    memory = said(run, "memory")[-1]
    show(
        predicted_allocated=need.allocated_bytes,
        measured_allocated=memory.peak_allocated_bytes,
        predicted_reserved=need.reserved_bytes,
        measured_reserved=memory.peak_reserved_bytes,
        bound_of_reserved=need.reserved_bound_bytes,
        measured_process=memory.peak_device_process_bytes,
        needed=need.needed_bytes,
    )
    assert_predicted(need, memory)
