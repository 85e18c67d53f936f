"""The part of a script that batches the rows in the order of the run."""

import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from engine.data.step_plan import pack_rows
from engine.export.script.facts import facts
from engine.export.script.worker.encoding import MAX_LENGTH
from engine.export.script.worker.preference_batches import with_mismatched
from engine.export.script.worker.prepare import SEED

BATCH = facts.config.training.per_device_train_batch_size
ACCUMULATE = facts.config.training.gradient_accumulation_steps  # batches in one optimizer step


def length_of(row: Any) -> int:
    """Return the number of tokens of a row."""
    if facts.learns_pairs:
        return len(row["input_ids"]) + len(row["rejected_ids"])
    return len(row["input_ids"])


class Batches(IterableDataset):  # type: ignore[misc]
    """The run's batches: shuffled for each epoch by seed and epoch alone."""

    def __init__(self, rows: list[Any], epoch: Callable[[], int]) -> None:
        self.rows, self.epoch = rows, epoch
        self.lengths = [length_of(row) for row in rows]

    def __len__(self) -> int:
        if facts.config.training.packing:
            return math.ceil(len(pack_rows(range(len(self.rows)), self.lengths, MAX_LENGTH)) / BATCH)
        return math.ceil(len(self.rows) / BATCH)

    def shuffle(self, items: Iterable[Any]) -> list[Any]:
        """Return the items in the order of this epoch."""
        items = list(items)
        random.Random(SEED * 1_000_003 + self.epoch()).shuffle(items)  # noqa: S311
        return items

    if facts.model.groups_by_length:

        def group_by_length(self, order: list[int]) -> list[int]:
            """Return the rows with those of similar length in one step, which needs less padding."""
            size = BATCH * ACCUMULATE
            block = size * max(1, min(50, math.ceil(len(order) / size) // 4))
            whole = len(order) - len(order) % size
            steps = []
            for begin in range(0, whole, block):
                similar = sorted(order[begin : min(begin + block, whole)], key=lambda row: -self.lengths[row])
                steps += [similar[start : start + size] for start in range(0, len(similar), size)]
            rest = sorted(order[whole:], key=lambda row: -self.lengths[row])
            return [row for step in [*self.shuffle(steps), rest] for row in step]

    def __iter__(self) -> Iterator[list[Any]]:
        order = self.shuffle(range(len(self.rows)))
        if facts.config.training.packing:
            sequences = self.shuffle(pack_rows(order, self.lengths, MAX_LENGTH))
            rows = [[self.rows[row] for row in sequence] for sequence in sequences]
        else:
            if facts.model.groups_by_length:
                order = self.group_by_length(order)
            rows = [self.rows[row] for row in order]
        if facts.estimates_kl:
            size = BATCH * ACCUMULATE
            steps = [rows[start : start + size] for start in range(0, len(rows), size)]
            if facts.model.pads_rows:
                steps = [sorted(step, key=lambda row: -length_of(row)) for step in steps]
            rows = [row for step in steps for row in with_mismatched(step)]
        for start in range(0, len(rows), BATCH):
            yield rows[start : start + BATCH]


def collate(rows: list[Any]) -> dict[str, Any]:
    """Return a batch, padded on the right; padding is masked."""
    if facts.config.training.packing:
        longest = max(sum(len(row["input_ids"]) for row in sequence) for sequence in rows)
        ids, positions, labels = [], [], []
        for sequence in rows:
            missing = longest - sum(len(row["input_ids"]) for row in sequence)
            ids.append([token for row in sequence for token in row["input_ids"]] + [0] * missing)
            # Positions restart with each row, which keeps the rows of a sequence apart in transformers.
            positions.append(
                [place for row in sequence for place in range(len(row["input_ids"]))] + list(range(missing))
            )
            # A row's first token is not predicted from the end of the row before.
            labels.append([label for row in sequence for label in (-100, *row["labels"][1:])] + [-100] * missing)
        return {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.tensor(positions),
            "labels": torch.tensor(labels),
        }
    if facts.config.adapter.traits.virtual_tokens == "inputs":
        # A row's first token is not predicted from the virtual tokens before it.
        rows = [{**row, "labels": [-100, *row["labels"][1:]]} for row in rows]
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([fill(row["input_ids"], 0) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in rows]),
        "labels": torch.tensor([fill(row["labels"], -100) for row in rows]),
    }
