"""Every method on every precision, by a real worker on the demo model: trains, saves, is killed and resumes."""

import signal

import pytest
from safetensors.torch import load_file

from engine.training.worker import EXIT_FINISHED
from tests.checkpoints import newest_intact
from tests.gpu.cuda_training import CELLS, sections_of
from tests.training.worker_runs import data_of_events, losses_of

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

# Kernels on CUDA add up in an order of their own (atomics in the backward pass of embeddings and of attention), so a
# resumed run follows the uninterrupted one within rounding of bfloat16 and not bit by bit.
RESUME_TOLERANCE = 0.01


@pytest.mark.parametrize(("method", "quantization"), CELLS, ids=[f"{m}-{q}" for m, q in CELLS])
def test_a_killed_run_continues_as_if_nothing_had_happened(method, quantization, cuda_runs, cuda_workers, show):
    whole = cuda_runs.create(**sections_of(method, quantization))
    run = cuda_runs.create(**sections_of(method, quantization))

    assert cuda_workers.run(whole) == EXIT_FINISHED, cuda_workers.end_of_log()
    assert cuda_workers.run(run, "training:step-7=kill") == -signal.SIGKILL
    assert newest_intact(run.folder.checkpoints).step == 5
    assert cuda_workers.run(run) == EXIT_FINISHED

    (resumed,) = data_of_events(run, "resumed")
    expected, got = dict(losses_of(whole)), dict(losses_of(run))
    assert resumed.step == 5
    assert got.keys() == expected.keys()
    assert "cpu" not in data_of_events(run, "parameters")[0].device.lower()
    worst = max(abs(got[step] - expected[step]) / expected[step] for step in got)
    show(worst_loss_difference=round(worst, 6), tolerance=RESUME_TOLERANCE)
    assert worst < RESUME_TOLERANCE
    assert "inputs will be cast" not in cuda_workers.log.read_text(errors="replace")  # int8, in each layer of each pass
    weights = [load_file(path) for path in run.folder.adapter.glob("*.safetensors")]
    assert sum(tensor.numel() for file in weights for tensor in file.values()) > 0
