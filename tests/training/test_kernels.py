"""Kernels of others: used where they are asked for and can be, said where not, and measured before they are believed."""

import importlib.util
import sys
import types
from typing import Any

import pytest
import torch

from engine.errors import ModelError
from engine.hardware.device import Device
from engine.training.assembly import compile_layers, leave_uncompiled, why_not_compiled, with_liger
from engine.training.placement import Placement
from tests.training.tiny_training import CPU, make_config, make_rows, make_training

GPU = Placement(Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, has_fast_bfloat16=True), torch.device("cuda", 0))
PROCESSOR = Placement(CPU, torch.device("cpu"))
WITH_BOTH = {"training": {"use_liger_kernel": True, "torch_compile": True, "max_steps": 2}}


@pytest.fixture
def installed(monkeypatch):
    """Says which packages there are."""

    def set_installed(*names: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in names else None)

    return set_installed


@pytest.fixture
def liger(monkeypatch, installed):
    """A stand-in for liger_kernel that writes down what it was told to replace."""
    calls = []
    patches: Any = types.ModuleType("liger_kernel.transformers.monkey_patch")
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": object()}
    patches._apply_liger_kernel_to_instance = lambda **given: calls.append(given)
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, patches.__name__, patches)
    installed("liger_kernel", "triton")
    return calls


def model_of(family):
    return types.SimpleNamespace(config=types.SimpleNamespace(model_type=family))


def noted_on_liger(family, config, placement=GPU, loss=3.0):
    return with_liger(model_of(family), config, placement, lambda: loss, 3.0)


def test_on_a_processor_both_are_said_to_be_unused_and_training_continues(tiny_model_folder, tmp_path):
    training = make_training(make_config(tiny_model_folder, **WITH_BOTH), make_rows(8), tmp_path)
    training.trainer.train()

    assert [note.split()[0] for note in training.assembly.notes] == ["Liger's", "torch.compile"]
    assert len(training.losses) == 2


def test_nothing_is_said_where_nothing_was_asked_for(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder)

    assert noted_on_liger("llama", config, PROCESSOR) == []
    assert make_training(config, make_rows(8), tmp_path).assembly.notes == ()


def test_what_is_not_installed_is_named(tiny_model_folder, installed):
    config = make_config(tiny_model_folder, **WITH_BOTH)
    installed()

    assert "pip install liger-kernel" in noted_on_liger("llama", config)[0]
    assert "triton" in why_not_compiled(GPU)


def test_liger_replaces_everything_but_the_loss(tiny_model_folder, liger):
    model = model_of("llama")

    assert with_liger(model, make_config(tiny_model_folder, **WITH_BOTH), GPU, lambda: 3.0, 3.0) == []

    assert liger == [{"model": model, "cross_entropy": False, "fused_linear_cross_entropy": False}]


def test_a_family_without_kernels_keeps_its_own(tiny_model_folder, liger):
    (note,) = noted_on_liger("mamba", make_config(tiny_model_folder, **WITH_BOTH))

    assert "mamba" in note
    assert liger == []


def test_kernels_that_change_the_loss_are_refused(tiny_model_folder, liger):
    config = make_config(tiny_model_folder, **WITH_BOTH)

    assert noted_on_liger("llama", config, loss=3.001) == []
    with pytest.raises(ModelError, match="change the loss"):
        noted_on_liger("llama", config, loss=3.3)


@pytest.mark.e2e
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_compiled_layers_learn_what_others_do(checkpointing, tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, training={"max_steps": 2, "gradient_checkpointing": checkpointing})
    plain = make_training(config, make_rows(12), tmp_path / "plain")
    plain.trainer.train()
    compiled = make_training(config, make_rows(12), tmp_path / "compiled")

    assert compile_layers(compiled.trainer.model, backend="aot_eager") == 2
    compiled.trainer.train()

    assert compiled.losses == pytest.approx(plain.losses, rel=1e-4)
    assert compiled.weights().keys() == plain.weights().keys()  # names in checkpoints stay
    leave_uncompiled(compiled.trainer.model)
    assert not any(module._compiled_call_impl for module in compiled.trainer.model.modules())
