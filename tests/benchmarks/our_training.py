"""The trainer of the worker as a measured trial."""

from pathlib import Path

import torch

from loratory.engine.runs.history.events import StepData
from loratory.engine.training.assembly import assemble
from loratory.engine.training.batching.steps import TrainerRows
from loratory.engine.training.build import add_adapter, load_model, training_arguments
from loratory.engine.training.callbacks import TrainerHooks
from loratory.engine.training.loops.supervised import SupervisedLoop
from loratory.engine.training.methods.registry import method_trainer
from loratory.engine.training.placement import choose_placement, choose_precision
from tests.benchmarks.training_trial import WARM_UP_STEPS, Clock, Recipe, Trial, config_for, prepare


def train_ours(recipe: Recipe) -> Trial:
    """Train with the worker's trainer, built as `loratory.engine.training.session` does; it saves nothing."""
    config, clock = config_for(recipe), Clock()
    source, tokenizer, data = prepare(config)
    placement = choose_placement(config)
    precision = choose_precision(config, placement.device)
    torch.manual_seed(config.training.seed)
    model = add_adapter(load_model(source, config, precision, placement), config, source)
    method_trainer(config.adapter.method).initialize(model, config.adapter, source)
    assembly = assemble(model, config, precision, placement, data.train, tokenizer.pad_token_id)
    step_events: list[StepData] = []
    held_out: dict[str, float] = {}

    def remember(step: StepData) -> None:
        step_events.append(step)
        if len(step_events) == WARM_UP_STEPS:
            clock.start()
        if step.step in recipe.measured_at:
            held_out[str(step.step)] = clock.without(lambda: trainer.measure_held_out().eval_loss)

    trainer = SupervisedLoop(
        model=model,
        args=training_arguments(config.training, Path("/dev/shm/train-speed"), precision, placement),
        tokenizer=tokenizer,
        rows=TrainerRows(data.train, data.train.lengths(), data.held_out),
        setup=assembly.setup,
        hooks=TrainerHooks(on_logged=remember),
    )
    trainer.train()
    seconds, cpu_seconds = clock.read()
    warm = step_events[WARM_UP_STEPS - 1]
    return Trial(
        seconds,
        cpu_seconds,
        step_events[-1].trained_tokens - warm.trained_tokens,
        step_events[-1].tokens - warm.tokens,
        [step.loss for step in step_events],
        held_out,
    )
