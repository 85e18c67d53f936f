"""What `auto` chooses, and that an explicit choice is kept."""

import pytest
import torch

from engine.config.load import config_from_mapping
from engine.hardware.device import Device
from engine.training.precision import apple_notes, choose_precision, resumed_notes


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


@pytest.mark.parametrize(
    ("begun_in", "kind", "bfloat16", "goes_on_in"),
    [
        ("bfloat16", "cpu", False, torch.bfloat16),  # slowly, and the same
        ("float32", "cpu", True, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("float16", "cuda", True, torch.float16),
        ("bfloat16", "cuda", False, torch.float16),
        ("float16", "cpu", False, torch.float32),
        ("bfloat16", "mps", False, torch.float32),
        ("a word of a later version", "cuda", True, torch.bfloat16),
    ],
)
def test_a_resumed_run_continues_in_what_it_began_in_or_reports_it(begun_in, kind, bfloat16, goes_on_in):
    where = device(kind, bfloat16=bfloat16)
    chosen = choose_precision(config(), where, begun_in)

    assert chosen.compute is goes_on_in
    notes = resumed_notes(config(), where, begun_in)
    assert len(notes) == (chosen.compute_name != begun_in)
    assert all(begun_in in note and f"continues in {chosen.compute_name}" in note for note in notes)


def test_what_the_settings_name_holds_for_a_resumed_run_too():
    assert choose_precision(config("float32"), device("cpu", bfloat16=True), "bfloat16").compute is torch.float32
    assert resumed_notes(config("float32"), device("cpu", bfloat16=True), "float16") == ()
    assert resumed_notes(config(), device("cpu", bfloat16=True), None) == ()


def test_only_float16_needs_loss_scaling():
    assert choose_precision(config(), device("cuda", bfloat16=False)).needs_loss_scaling
    assert not choose_precision(config(), device("cuda", bfloat16=True)).needs_loss_scaling


def test_full_fine_tuning_holds_its_weights_in_float32_and_computes_in_less():
    precision = choose_precision(config(method="none"), device("cpu", bfloat16=True))

    assert precision.frozen is torch.float32
    assert precision.compute is torch.bfloat16
    assert precision.compute_name == "bfloat16"


def test_what_an_older_macos_forces_is_reported():
    old, new = device("mps", bfloat16=False), device("mps", bfloat16=True)

    (note,) = apple_notes(config(), old)
    assert "macOS 14" in note
    assert apple_notes(config(), new) == apple_notes(config("float16"), old) == ()
    assert apple_notes(config(), device("cpu", bfloat16=False)) == ()


def test_quantized_weights_on_apples_gpu_are_said_to_be_slow():
    values = {"model": {"id": "m", "quantization": "nf4"}, "dataset": {"source": "d"}}

    (note,) = apple_notes(config_from_mapping(values), device("mps", bfloat16=True))
    assert "slower than 16-bit" in note
