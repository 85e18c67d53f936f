"""In which precision a model answers, by device."""

import pytest
import torch

from loratory.engine.chat.worker.weights import choose_dtype
from loratory.engine.config.run import ModelConfig
from loratory.engine.hardware.device import Device


@pytest.mark.parametrize(
    ("kind", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.bfloat16),
    ],
)
def test_auto_is_what_the_device_answers_quickly_in_each_time(kind, bfloat16, expected):
    device = Device(kind, 0, "a device", 8 << 30, 8 << 30, bfloat16)

    assert choose_dtype(ModelConfig(id="m"), device) is expected
    assert choose_dtype(ModelConfig(id="m", compute_dtype="float32"), device) is torch.float32
