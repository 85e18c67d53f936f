"""Gradients that overflow float16 cost a step, not the run; when no loss scale helps, the run ends."""

import math

import pytest
import torch
from transformers import TrainerCallback

from loratory.engine.training.callbacks import MOST_SKIPPED_IN_A_ROW, OVERFLOW_CHECK_STEPS, SkippedSteps, TrainerHooks
from loratory.engine.training.failure import DivergedError, check_loss
from tests.training.tiny_training import make_config, make_rows, make_training

ROWS = make_rows(13)


class Watching(TrainerCallback):
    """Sees which steps changed the weights."""

    def __init__(self):
        self.before = {}
        self.changed = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def on_optimizer_step(self, args, state, control, model, **_):
        now = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.changed.append(any(not torch.equal(now[name], old) for name, old in self.before.items()))


def train_with_scaler(folder, tmp_path, monkeypatch, overflows, **training):
    """Set up a training on the processor with torch's own loss scaler, whose gradients overflow in the steps `overflows`."""
    watching = Watching()

    def check(step):
        check_loss(step.step, step.loss, step.grad_norm, first_loss=6.0, vocabulary=500)

    config = make_config(folder, training={"warmup_steps": 0, **training})
    setup = make_training(config, ROWS, tmp_path, hooks=TrainerHooks(on_logged=check), callbacks=(watching,))
    accelerator = setup.trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator.native_amp = True
    monkeypatch.setitem(accelerator.state._shared_state, "_mixed_precision", "fp16")
    backward = accelerator.backward

    def overflowing_backward(loss, **kwargs):
        backward(loss, **kwargs)
        if setup.trainer.state.global_step + 1 in overflows:
            parameter = next(p for p in setup.trainer.model.parameters() if p.grad is not None)
            parameter.grad.view(-1)[0] = math.inf

    accelerator.backward = overflowing_backward
    return setup, watching


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])  # on a processor AdamW is fused and skips by itself
def test_a_step_whose_gradients_overflow_is_skipped_and_the_run_continues(
    optim, tiny_model_folder, tmp_path, monkeypatch
):
    training, watching = train_with_scaler(tiny_model_folder, tmp_path, monkeypatch, {1, 3, 4}, optim=optim)

    training.trainer.train()

    assert watching.changed == [step not in (1, 3, 4) for step in range(1, 9)]
    norms = [step.grad_norm for step in training.steps]
    assert [norm is None for norm in norms] == [step in (1, 3, 4) for step in range(1, 9)]
    assert all(math.isfinite(norm) for norm in norms if norm is not None)
    assert training.trainer.accelerator.scaler.get_scale() == 128.0


def test_a_run_that_skips_every_step_is_ended(tiny_model_folder, tmp_path, monkeypatch):
    always = set(range(2, 100))
    training, _ = train_with_scaler(tiny_model_folder, tmp_path, monkeypatch, always, max_steps=60, logging_steps=50)

    with pytest.raises(DivergedError) as error_info:
        training.trainer.train()

    seen_at = training.trainer.state.global_step
    assert MOST_SKIPPED_IN_A_ROW < seen_at <= 1 + MOST_SKIPPED_IN_A_ROW + OVERFLOW_CHECK_STEPS
    assert f"{seen_at - 1} steps in a row" in error_info.value.what
    assert "float32" in error_info.value.fix


class CountingScale(torch.Tensor):
    """A loss scale whose value costs a wait for the GPU."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.item, torch.Tensor.__int__, torch.Tensor.__float__, torch.Tensor.__bool__):
            cls.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_the_count_restarts_with_a_trained_step_and_reads_no_scale(monkeypatch):
    monkeypatch.setattr(CountingScale, "reads", 0)
    scales = iter([64.0, 64.0, 32.0, 16.0, 16.0, 8.0])  # before the first of five steps, and after each
    skipped = SkippedSteps(lambda: torch.tensor(next(scales)).as_subclass(CountingScale))

    class State:
        global_step = 1

    skipped.on_pre_optimizer_step(None, State, None)
    for _ in range(3):
        skipped.on_step_end(None, State, None)
    assert CountingScale.reads == 0
    assert skipped.in_a_row == 2
    assert CountingScale.reads == 1

    for expected in (0, 1):
        skipped.on_step_end(None, State, None)
        assert skipped.in_a_row == expected
