"""A step without a log reads no tensor's value, for which a GPU would have to finish first."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from loratory.engine.config.training import TrainingConfig
from loratory.engine.training.callbacks import RunCallback, TrainingProgress
from tests.training.preference_rows import make_pairs, make_ratings
from tests.training.tensor_reads import Reads, WithinSteps
from tests.training.tiny_training import make_config, make_rows, make_training


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("adapter", "training"),
    [
        ({}, {}),
        ({}, {"gradient_checkpointing": True}),
        ({}, {"max_grad_norm": 0.0}),
        ({"method": "none"}, {}),
        ({"method": "ia3"}, {"gradient_accumulation_steps": 1}),
        ({}, {"objective": "dpo"}),
        ({}, {"objective": "orpo"}),
        ({}, {"objective": "kto"}),
    ],
    ids=str,
)
def test_a_step_reads_no_value_of_a_tensor(adapter, training, tiny_model_folder, tmp_path):
    settings = {"max_steps": 5, "logging_steps": 100} | training
    config = make_config(tiny_model_folder, adapter=adapter, training=settings)
    makers: dict[str, Any] = {"sft": make_rows, "kto": make_ratings}
    rows = makers.get(config.training.objective, make_pairs)(20)
    reads = Reads()
    setup = make_training(config, rows, tmp_path, callbacks=(WithinSteps(reads, 5),))

    def reading(*arguments, original=torch.Tensor.tolist):
        reads.calls += ["tolist"] * reads.is_on
        return original(*arguments)

    with reads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", reading)
        setup.trainer.train()

    assert setup.trainer.state.global_step == 5
    assert reads.calls == []


def test_the_dispatch_mode_sees_what_reads():
    reads = Reads()
    reads.is_on = True
    with reads:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)

    assert len(reads.calls) == 2


def test_a_norm_of_infinity_in_a_step_without_a_log_shows_in_the_next_log(tiny_model_folder, tmp_path):
    config = make_config(tiny_model_folder, training={"max_steps": 5, "logging_steps": 5})
    rows = make_rows(20)

    class Poisoned(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                parameter = next(p for p in training.trainer.model.parameters() if p.requires_grad)
                self._handle = parameter.register_hook(lambda gradient: gradient * math.inf)

        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == 2:
                self._handle.remove()
                for parameter in model.parameters():
                    parameter.grad = None

    training = make_training(config, rows, tmp_path, callbacks=(Poisoned(),))
    training.trainer.train()

    first, last = training.steps
    assert math.isfinite(first.grad_norm)
    assert not math.isfinite(last.grad_norm)


def logged_steps(seconds_a_step, steps, *, log_seconds=0.25, saves=()):
    """Numbers of the steps that a run of steps of this length logs."""
    now = [0.0]
    training = TrainingConfig(logging_steps=1, save_steps=10_000, max_steps=steps)
    callback = RunCallback(
        training, False, lambda: False, TrainingProgress, log_seconds=log_seconds, clock=lambda: now[0]
    )
    state = SimpleNamespace(global_step=0, max_steps=steps)
    control = SimpleNamespace(should_log=False, should_evaluate=False, should_save=False, should_training_stop=False)
    callback.on_train_begin(None, state, control)
    matches = []
    for step in range(1, steps + 1):
        now[0] += seconds_a_step
        state.global_step, control.should_log, control.should_save = step, True, step in saves
        callback.on_step_end(None, state, control)
        matches += [step] * control.should_log
    return matches


def test_steps_in_quick_succession_are_logged_together():
    assert logged_steps(0.02, 60, saves=(30,)) == [1, 14, 27, 30, 43, 56, 60]
    assert logged_steps(0.02, 5, log_seconds=0.0) == [1, 2, 3, 4, 5]
    assert logged_steps(0.3, 5) == [1, 2, 3, 4, 5]


def steps_of_several(seconds_a_step, steps):
    """Numbers of the steps that each of two processes logs, whose clocks differ, and of which the first one votes."""
    training = TrainingConfig(logging_steps=1, save_steps=10_000, max_steps=steps)
    state, now = SimpleNamespace(global_step=0, max_steps=steps), [0.0]
    votes: list[int] = []
    ranks = [
        RunCallback(
            training,
            False,
            lambda: False,
            TrainingProgress,
            log_seconds=0.25,
            clock=lambda rank=rank: now[0] * (1 + rank) + 100 * rank,
            log_voted=lambda: votes[-2] if len(votes) > 1 else None,
        )
        for rank in range(2)
    ]
    result: tuple[list[int], list[int]] = ([], [])
    for rank in ranks:
        rank.on_train_begin(None, state, SimpleNamespace())
    for step in range(1, steps + 1):
        votes.append(ranks[0].log_vote())
        now[0] += seconds_a_step
        state.global_step = step
        for rank, steps_of_rank in zip(ranks, result, strict=True):
            control = SimpleNamespace(should_log=True, should_evaluate=False, should_save=False)
            rank.on_step_end(None, state, control)
            steps_of_rank += [step] * control.should_log
    return result


def test_several_processes_log_the_same_steps_by_the_clock_of_the_first():
    first, second = steps_of_several(0.02, 60)
    assert first == second
    assert first[0] == 1
    assert first[-1] == 60
    assert 5 <= len(first) <= 8  # 1.2 seconds, four times a second at most, and the first two

    assert steps_of_several(0.3, 6) == ([1, 2, 3, 4, 5, 6],) * 2  # a slow step is worth a line
