"""A real trainer on the tiny model, in this process: what every test of the trainer sets up."""

import functools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import RunConfig
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.hardware.device import Device
from loratory.engine.models.source import ModelSource
from loratory.engine.runs.history.events import StepData
from loratory.engine.training.assembly import Assembly, assemble
from loratory.engine.training.batching.steps import TrainerRows
from loratory.engine.training.build import add_adapter, load_model, training_arguments
from loratory.engine.training.callbacks import TrainerHooks
from loratory.engine.training.distribution import shard
from loratory.engine.training.loops import LOOPS
from loratory.engine.training.loops.supervised import SupervisedLoop
from loratory.engine.training.methods.registry import method_trainer
from loratory.engine.training.placement import Placement, TrainingDtypes, choose_precision

CPU = Device("cpu", 0, "a CPU", 8 << 30, 8 << 30, has_fast_bfloat16=True, cores=1)
GPU = Device("cuda", 0, "a GPU", 8 << 30, 8 << 30, has_fast_bfloat16=True)
ON_CPU = Placement(CPU, torch.device("cpu"))


class Row(TokenizedRow):
    """A row of given tokens."""

    def __init__(self, input_ids: list[int], labels: list[int]) -> None:
        super().__init__(0, 0, input_ids, labels)


def make_rows(count: int, longest: int = 40, seed: int = 0) -> list[Row]:
    """Make rows of random tokens; the second half of each is trained."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        length = generator.randint(6, longest)
        ids = [generator.randrange(10, 250) for _ in range(length)]
        rows.append(Row(ids, [-100] * (length // 2) + ids[length // 2 :]))
    return rows


def make_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    """LoRA in float32, two epochs of small steps, unless the sections say otherwise."""
    values: dict[str, Any] = {
        "model": {"id": str(folder), "compute_dtype": "float32"},
        "adapter": {"r": 4, "lora_alpha": 8},
        "dataset": {"source": "rows"},
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-3,
            "max_length": 64,
        },
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return config_from_mapping(values)


@dataclass
class TinyTraining:
    """A trainer, and what it logged."""

    trainer: SupervisedLoop
    assembly: Assembly
    steps: list[StepData]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained weights, by name."""
        return {n: p.detach().clone() for n, p in self.trainer.model.named_parameters() if p.requires_grad}


def load_adapted(config: RunConfig, placement: Placement = ON_CPU, base: Any = None) -> tuple[Any, TrainingDtypes]:
    """Load the base of a configuration, unless it is given, add the adapter, and return the precision too."""
    source, precision = ModelSource(config.model.id, "tiny"), choose_precision(config, placement.device)
    return add_adapter(base or load_model(source, config, precision, placement), config, source), precision


@functools.cache
def _tokenizer_of(folder: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def make_training(
    config: RunConfig,
    rows: list[Row],
    folder: Path,
    *,
    held_out: list[Row] | None = None,
    hooks: TrainerHooks | None = None,
    callbacks: tuple[Any, ...] = (),
    base: Any = None,
    placement: Placement = ON_CPU,
    merged: int = 1,
    images: Any = None,
) -> TinyTraining:
    """Build what `loratory.engine.training.session` builds, without its files and processes; on `base` where one is loaded."""
    tokenizer = _tokenizer_of(config.model.id)
    torch.manual_seed(config.training.seed)
    random.seed(config.training.seed)
    model, precision = load_adapted(config, placement, base)
    method_trainer(config.adapter.method).initialize(model, config.adapter, ModelSource(config.model.id, "tiny"))
    if placement.sharded:
        PartialState(cpu=placement.torch_device.type == "cpu")
        shard(model, placement, precision.compute)
    assembly = assemble(model, config, precision, placement, rows, tokenizer.pad_token_id, images)
    assembly = assembly.with_settings(merged=merged)
    steps: list[StepData] = []
    hooks = hooks or TrainerHooks()
    previous = hooks.on_logged
    hooks.on_logged = lambda step: (steps.append(step), previous(step))[1]
    trainer = LOOPS[objective_of(config).loop](
        model=model,
        args=training_arguments(config.training, folder, precision, placement),
        tokenizer=tokenizer,
        rows=TrainerRows(rows, [len(r.input_ids) for r in rows], held_out or []),
        setup=assembly.setup,
        hooks=hooks,
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    return TinyTraining(trainer, assembly, steps)


def train_tiny(config: RunConfig, rows: list[Row], folder: Path, **options: Any) -> TinyTraining:
    """Build a training as `make_training` does, and train to its end."""
    training = make_training(config, rows, folder, **options)
    training.trainer.train()
    return training
