"""Tokens per second on CUDA, ours against the plain script with Liger's kernels, as the benchmark measures them."""

from dataclasses import asdict

import pytest
import torch

from tests.benchmarks.cuda_speed import Cell, measure, why_not
from tests.gpu.cuda_training import the_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

LEAST_RATIO = 0.7  # of the plain script's speed: generous, since other programs may use the GPU as well


@pytest.mark.parametrize("shape", ["0.5B", "1.5B"])
def test_ours_keeps_up_with_the_plain_script(shape, in_shape, show, tmp_path):
    if reason := why_not(Cell(shape, "none", "trl"), the_gpu().total_bytes, tmp_path):
        pytest.skip(reason)
    folder = in_shape(shape)

    ours = measure(Cell(shape, "none", "ours"), folder)
    torch.cuda.empty_cache()
    plain = measure(Cell(shape, "none", "trl"), folder)

    show(gpu=torch.cuda.get_device_name(0), ours=asdict(ours), plain=asdict(plain))
    assert ours.tokens_per_second > LEAST_RATIO * plain.tokens_per_second
