"""What `auto` chooses, and that an explicit choice is kept."""

import pytest
import torch

from engine.config.load import config_from_mapping
from engine.hardware.device import Device
from engine.training.precision import apple_notes, choose_precision


def config(dtype="auto", method="lora"):
    return config_from_mapping(
        {
            "model": {"id": "m", "compute_dtype": dtype},
            "adapter": {"method": method},
            "dataset": {"source": "d"},
        }
    )


def device(kind, *, bfloat16):
    return Device(kind, 0, "a device", 8 << 30, 8 << 30, bfloat16)


@pytest.mark.parametrize(
    ("kind", "bfloat16", "expected"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("mps", True, torch.bfloat16),
        ("mps", False, torch.float32),
    ],
)
def test_auto_takes_what_the_device_is_quick_at(kind, bfloat16, expected):
    assert choose_precision(config(), device(kind, bfloat16=bfloat16)).compute is expected


def test_an_explicit_dtype_is_kept():
    assert choose_precision(config("float32"), device("cpu", bfloat16=True)).compute is torch.float32


def test_only_float16_needs_loss_scaling():
    assert choose_precision(config(), device("cuda", bfloat16=False)).needs_loss_scaling
    assert not choose_precision(config(), device("cuda", bfloat16=True)).needs_loss_scaling


def test_full_fine_tuning_holds_its_weights_in_float32_and_computes_in_less():
    precision = choose_precision(config(method="none"), device("cpu", bfloat16=True))

    assert precision.frozen is torch.float32
    assert precision.compute is torch.bfloat16
    assert precision.compute_name == "bfloat16"


def test_what_an_older_macos_forces_is_said():
    old, new = device("mps", bfloat16=False), device("mps", bfloat16=True)

    (note,) = apple_notes(config(), old)
    assert "macOS 14" in note
    assert apple_notes(config(), new) == apple_notes(config("float16"), old) == ()
    assert apple_notes(config(), device("cpu", bfloat16=False)) == ()


def test_quantized_weights_on_apples_gpu_are_said_to_be_slow():
    values = {"model": {"id": "m", "quantization": "nf4"}, "dataset": {"source": "d"}}

    (note,) = apple_notes(config_from_mapping(values), device("mps", bfloat16=True))
    assert "slower than 16-bit" in note
