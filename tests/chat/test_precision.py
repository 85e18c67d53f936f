"""In which precision a model answers, by device."""

import pytest
import torch

from loratory.engine.chat.worker import weights
from loratory.engine.chat.worker.weights import choose_dtype
from loratory.engine.config.run import ModelConfig
from loratory.engine.hardware.device import Device


@pytest.mark.parametrize(
    ("kind", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", False, torch.float16),
        ("cpu", False, torch.float32),
    ],
)
def test_auto_is_what_the_device_answers_quickly_in(monkeypatch, kind, bfloat16, expected):
    monkeypatch.setattr(weights, "faster_dtype_on_this_processor", lambda: torch.float32)
    monkeypatch.setattr(weights, "has_bfloat16", lambda: False)
    device = Device(kind, 0, "a device", 8 << 30, 8 << 30, bfloat16)

    assert choose_dtype(ModelConfig(id="m"), device) is expected
    assert choose_dtype(ModelConfig(id="m", compute_dtype="float32"), device) is torch.float32


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_processor_with_instructions_answers_in_bfloat16_without_a_measurement(monkeypatch, is_fast):
    monkeypatch.setattr(weights, "faster_dtype_on_this_processor", lambda: pytest.fail("measured"))
    monkeypatch.setattr(weights, "has_bfloat16", lambda: True)

    assert choose_dtype(ModelConfig(id="m"), Device("cpu", 0, "it", 8 << 30, 8 << 30, is_fast)) is torch.bfloat16


def test_a_close_race_is_run_once_so_that_each_load_answers_in_the_same_precision(monkeypatch):
    first = weights.faster_dtype_on_this_processor()
    monkeypatch.setattr(weights, "functional", None)  # a measurement would fail

    assert weights.faster_dtype_on_this_processor() is first
