"""Steps as the training loop takes them: looked up, joined or padded, in the order that was planned."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from loratory.engine.config.objectives import SUPERVISED, Objective
from loratory.engine.data.passes.prepare import PreparedDataset
from loratory.engine.data.render.tokenize import TokenizedRow
from loratory.engine.data.step_plan import EpochPlanner, Pass, PlanSettings, Step, divide
from loratory.engine.training.batching.batches import PassTensors, join, join_shared, pad
from loratory.engine.training.batching.images import ImageInputs
from loratory.engine.training.methods.base import MethodTrainer
from loratory.engine.training.objectives.base import TrainingObjective

# Measuring must not cost more than training: a measurement during the run takes at most so many tokens.
_MEASURED_TOKENS_ALWAYS = 16_384
_MEASURED_SHARE = 0.03  # of the tokens of all steps


@dataclass(frozen=True)
class TrainerRows:
    """Rows to train on, and held-out rows to measure on."""

    train: Sequence[TokenizedRow]
    train_lengths: Sequence[int]
    held_out: Sequence[TokenizedRow]


@dataclass(frozen=True)
class TrainerSetup:
    """How rows go through the model."""

    settings: PlanSettings
    pad_token_id: int
    flash: bool = False  # joined rows are described as flash attention takes them
    masked: bool = True  # padded rows come with a padding mask
    attention: str = "sdpa"  # the model's own, which answers take
    autocast: torch.dtype | None = None  # None where every weight is already held in the dtype of its products
    objective: TrainingObjective = field(default_factory=TrainingObjective)
    method: MethodTrainer = field(default_factory=MethodTrainer)
    images: ImageInputs | None = None  # where rows have some


@dataclass(frozen=True)
class StepBatch:
    """What one process contributes to one optimizer step."""

    passes: tuple[PassTensors, ...]
    planned: Step  # numbers of the rows in them

    @property
    def tokens(self) -> int:
        return sum(batch.tokens for batch in self.passes)

    @property
    def trained_tokens(self) -> int:
        return sum(batch.trained_tokens for batch in self.passes)

    def __contains__(self, name: str) -> bool:
        """Return False: the loop checks for labels to count, and this trainer counts for itself."""
        return False


class StepBatches:
    """Looks up the rows of a planned step. A dataset as `DataLoader` takes it."""

    def __init__(self, rows: Sequence[TokenizedRow], setup: TrainerSetup) -> None:
        self._rows = rows
        self._setup = setup

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, step: Step) -> StepBatch:
        return StepBatch(tuple(self.tensors(step.passes)), step)

    def split_merged(self, batch: StepBatch) -> StepBatch:
        """Return a step in passes of the configured size, where merged ones do not fit."""
        settings = replace(self._setup.settings, merged=1)
        order = [row for plan in batch.planned.passes for row in plan.rows]
        lengths = [self._rows[row].length for row in order]
        passes = [
            Pass(tuple(order[index] for index in plan.rows)) for plan in divide(range(len(order)), lengths, settings)
        ]
        return StepBatch(tuple(self.tensors(passes)), Step(tuple(passes)))

    def evaluation_passes(self) -> list[Pass]:
        """Plan passes over this process's share of the rows; none is larger than in training, where a backward pass follows."""
        settings = self._setup.settings
        lengths = [row.length for row in self._rows]
        rows = sorted(range(settings.rank, len(lengths), settings.world_size), key=lambda row: -lengths[row])
        return divide(rows, lengths, settings)

    def shortest(self) -> Pass:
        """Plan a pass of one row that does not count, so a process takes part in the collective calls of the others."""
        return Pass((min(range(len(self._rows)), key=lambda row: self._rows[row].length),), is_trained=False)

    def tensors(self, passes: Sequence[Pass]) -> Iterator[PassTensors]:
        """Look up the rows of planned passes, one pass after the other."""
        order = [row for plan in passes for row in plan.rows]
        for plan in passes:
            tensors = self._tensors(plan.rows, order)
            yield tensors if plan.is_trained else tensors.untrained()

    def _tensors(self, numbers: Sequence[int], order: Sequence[int]) -> PassTensors:
        """Return the pass of some rows; `order` are all rows of the step, in which each has one before it."""
        objective, rows = self._setup.objective, [self._rows[number] for number in numbers]
        batch = self._batched(objective.groups(rows))
        before = dict(zip(order, (*order[-1:], *order[:-1]), strict=True)) if objective.needs_estimate else {}
        pairs = ((row, self._rows[before[number]]) for row, number in zip(rows, numbers, strict=True) if before)
        kl_sequences = [sequence for pair in pairs if (sequence := objective.mismatched_sequence(*pair)) is not None]
        kl_batch = self._batched([kl_sequences]) if kl_sequences else None
        return replace(batch, extras=objective.extras(rows), kl_batch=kl_batch)

    def _batched(self, groups: Sequence[Sequence[TokenizedRow]]) -> PassTensors:
        if self._setup.settings.shares_prompts:
            return join_shared(groups)
        sequences = [sequence for group in groups for sequence in group]
        if self._setup.settings.batching == "joined":
            return join(sequences, flash=self._setup.flash)
        batch, images = pad(sequences, self._setup.pad_token_id, masked=self._setup.masked), self._setup.images
        if images is None:
            return batch
        tensors = images.tensors([sequence.images for sequence in sequences], batch.inputs["input_ids"])
        return replace(batch, inputs=batch.inputs | tensors)


class StepOrder:
    """The steps of the epoch that training is in; a batch sampler as `DataLoader` takes it."""

    def __init__(self, planner: EpochPlanner, epoch: Callable[[], int]) -> None:
        self._planner = planner
        self._epoch = epoch

    def __len__(self) -> int:
        return self._planner.steps_per_epoch

    def __iter__(self) -> Iterator[Step]:
        return self._planner.steps(self._epoch())


def choose_rows(data: PreparedDataset, settings: PlanSettings, objective: Objective = SUPERVISED) -> TrainerRows:
    """Return the rows to train on and those to measure on; prompts cost the tokens of their answers as well."""
    lengths, training = data.train.lengths(), settings.training
    more = training.max_completion_length if objective.samples_answers else 0
    epochs = training.num_train_epochs
    if training.max_steps > 0:
        epochs = training.max_steps / EpochPlanner(lengths, settings).steps_per_epoch
    held_out = [length + more for length in data.held_out.lengths()]
    trained_tokens = (sum(lengths) + more * len(lengths)) * (training.num_generations if more else 1)
    measured = choose_measured(held_out, int(trained_tokens * epochs), training.seed)
    return TrainerRows(data.train, lengths, [data.held_out[index] for index in measured])


def choose_measured(lengths: Sequence[int], train_tokens: int, seed: int) -> list[int]:
    """Choose held-out rows to measure during the run: all of them, or an even draw where they would cost too much.

    `lengths` are their tokens; `train_tokens` those of all training steps, masked ones and repetitions included.
    """
    budget = max(_MEASURED_TOKENS_ALWAYS, int(_MEASURED_SHARE * train_tokens))
    order = list(range(len(lengths)))
    if sum(lengths) <= budget:
        return order
    random.Random(seed).shuffle(order)  # noqa: S311 - a draw, no secret
    chosen: list[int] = []
    tokens = 0
    for index in order:
        if chosen and tokens + lengths[index] > budget:
            break
        chosen.append(index)
        tokens += lengths[index]
    return sorted(chosen)
