"""Faster kernels are used where they can run and give the same, with a reason where they are not."""

import sys
import types
from typing import Any

import pytest
import torch

from engine.config.optimizations import LEFT_OUT, VARIABLE
from engine.training import kernels
from engine.training.kernels import why_no_fused_loss
from engine.training.ops.loss import LogitTransform
from tests.training.tiny_training import make_config, make_rows, make_training

CPU = torch.device("cpu")


@pytest.fixture
def on_cuda(monkeypatch):
    """A processor that the choice of kernels takes for a GPU with triton."""
    monkeypatch.setattr(kernels, "_runs_triton", lambda _device: True)
    monkeypatch.setattr(kernels, "_is_installed", lambda _package: True)


def stand_in(monkeypatch, losses_and_gradient_):
    module: Any = types.ModuleType("engine.training.ops.triton_loss")
    module.losses_and_gradient_ = losses_and_gradient_
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("engine.training.ops.triton_loss", module, raising=False)


def reference(logits, targets, scale, cap, gradient_sum):
    wide = LogitTransform(scale, cap).apply(logits.float())
    losses = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    logits.copy_(torch.softmax(wide, -1) - torch.nn.functional.one_hot(targets, logits.shape[1]))
    return losses, torch.ones(len(targets))


def test_a_processor_keeps_the_reference():
    assert why_no_fused_loss(CPU, torch.float32, 50, LogitTransform()) == "needs CUDA"


@pytest.mark.usefixtures("on_cuda")
def test_the_kernel_is_used_where_it_gives_what_the_reference_gives(monkeypatch):
    stand_in(monkeypatch, reference)

    assert why_no_fused_loss(CPU, torch.bfloat16, 50, LogitTransform()) == ""
    monkeypatch.setenv(VARIABLE, "fused_loss")
    assert why_no_fused_loss(CPU, torch.bfloat16, 50, LogitTransform()) == LEFT_OUT


@pytest.mark.usefixtures("on_cuda")
def test_a_kernel_with_other_losses_or_gradients_is_not_used(monkeypatch):
    stand_in(monkeypatch, lambda logits, *rest: (torch.ones(len(logits)), torch.ones(len(logits))))
    assert why_no_fused_loss(CPU, torch.float32, 50, LogitTransform()) == "its losses differ on this device"

    stand_in(monkeypatch, lambda logits, *rest: reference(logits.clone(), *rest))
    assert why_no_fused_loss(CPU, torch.float32, 50, LogitTransform()) == "its losses differ on this device"


@pytest.mark.usefixtures("on_cuda")
def test_a_machine_without_a_compiler_keeps_the_reference(monkeypatch):
    def fails(*_):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    stand_in(monkeypatch, fails)

    assert why_no_fused_loss(CPU, torch.float32, 50, LogitTransform()) == "triton cannot compile it (RuntimeError)"


def test_a_run_reports_what_it_uses(tiny_model_folder, tmp_path):
    training = make_training(make_config(tiny_model_folder), make_rows(4), tmp_path)

    assert training.assembly.optimizations["fused_loss"] == "needs CUDA"
