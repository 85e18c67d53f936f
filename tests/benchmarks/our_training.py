"""The trainer of the worker, and a bare PyTorch loop over the same operations, as measured trials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.data.step_plan import EpochPlanner
from engine.runs.history.events import StepData
from engine.training.assembly import Assembly, assemble
from engine.training.batching.batches import join
from engine.training.batching.steps import TrainerRows
from engine.training.build import add_adapter, load_model, training_arguments
from engine.training.callbacks import TrainerHooks
from engine.training.methods.registry import method_trainer
from engine.training.placement import Placement, Precision, choose_placement, choose_precision
from engine.training.trainer import LoratoryTrainer
from tests.benchmarks.training_trial import (
    LEARNING_RATE,
    WARM_UP_STEPS,
    Clock,
    Prepared,
    Recipe,
    Trial,
    config_for,
    prepare,
)


class Built(NamedTuple):
    """Model, rows and settings, ready to train."""

    config: Any
    prepared: Prepared
    model: Any
    assembly: Assembly
    placement: Placement
    precision: Precision


def build(config: Any) -> Built:
    """Build what trains as `engine.training.session` does."""
    data = prepare(config)
    placement = choose_placement(config)
    precision = choose_precision(config, placement.device)
    torch.manual_seed(config.training.seed)
    model = add_adapter(load_model(data.source, config, precision, placement), config, data.source)
    method_trainer(config.adapter.method).initialize(model, config.adapter, data.source)
    pad = data.tokenizer.pad_token_id
    assembly = assemble(model, config, precision, placement, data.data.train, pad)
    return Built(config, data, model, assembly, placement, precision)


def trainer_of(built: Built, logged: Callable[[StepData], None]) -> LoratoryTrainer:
    """Return the worker's trainer; it saves nothing."""
    config, prepared, model, assembly, placement, precision = built
    data = prepared.data
    return LoratoryTrainer(
        model=model,
        args=training_arguments(config.training, Path("/dev/shm/train-speed"), precision, placement),
        tokenizer=prepared.tokenizer,
        rows=TrainerRows(data.train, data.train.lengths(), data.held_out),
        setup=assembly.setup,
        hooks=TrainerHooks(on_logged=logged),
    )


def train_ours(recipe: Recipe) -> Trial:
    """Train with the worker's trainer."""
    built, clock = build(config_for(recipe)), Clock()
    logged: list[StepData] = []
    held_out: dict[str, float] = {}

    def remember(step: StepData) -> None:
        logged.append(step)
        if len(logged) == WARM_UP_STEPS:
            clock.start()
        if step.step in recipe.measured_at:
            held_out[str(step.step)] = clock.without(lambda: trainer.measure_held_out().eval_loss)

    trainer = trainer_of(built, remember)
    trainer.train()
    seconds, cpu_seconds = clock.read()
    warm = logged[WARM_UP_STEPS - 1]
    return Trial(
        seconds,
        cpu_seconds,
        logged[-1].trained_tokens - warm.trained_tokens,
        logged[-1].tokens - warm.tokens,
        [step.loss for step in logged],
        held_out,
    )


def train_bare(recipe: Recipe) -> Trial:
    """The same model, passes, loss and optimizer in a bare loop, and nothing around them."""
    _, prepared, model, assembly, _, _ = build(config_for(recipe))
    train = prepared.data.train
    planner = EpochPlanner(train.lengths(), assembly.setup.settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    plan = [step for epoch in range(20) for step in planner.steps(epoch)][: recipe.steps]
    batches = [[join([train[row] for row in one.rows]) for one in step.passes] for step in plan]
    clock = Clock()
    losses: list[float] = []
    trained = tokens = 0
    model.train()
    for passes in batches:
        total = sum(one.trained_tokens for one in passes)
        loss_of_step = 0.0
        for one in passes:
            loss = model(**one.inputs, trained_tokens=one.trained) / total
            loss.backward()
            loss_of_step += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of_step)
        if len(losses) == WARM_UP_STEPS:
            clock.start()
        elif len(losses) > WARM_UP_STEPS:
            trained += total
            tokens += sum(one.tokens for one in passes)
    return Trial(*clock.read(), trained, tokens, losses)
