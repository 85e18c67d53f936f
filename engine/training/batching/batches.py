"""Rows as the tensors that a model takes: joined without padding, or padded side by side."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from loratory.engine.config.rules import JOINED_MULTIPLE
from loratory.engine.data.records import shared_length
from loratory.engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from loratory.engine.training.ops.attention import JoinedRows, SharedPrefix
from loratory.engine.training.ops.loss import TrainedTokens


@dataclass(frozen=True)
class PassTensors:
    """One pass through the model."""

    inputs: dict[str, Any]  # keyword arguments of the model
    trained: TrainedTokens
    tokens: int  # of the sequences; padding not counted, what two of them share counted twice
    sequences: int  # that count, next to one another or joined
    sequence_of: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # of each trained token
    sequence_tokens: tuple[int, ...] = ()  # trained tokens of each sequence: counted here, so no step waits for a GPU
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)  # what an objective needs in addition
    kl_batch: "PassTensors | None" = None  # mismatched sequences, which pass without gradient before the step

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss is over."""
        return int(self.trained.targets.shape[0])

    def untrained(self) -> "PassTensors":
        """Return the same pass with nothing to train on and nothing to count."""
        none = torch.zeros(0, dtype=torch.long)
        return replace(
            self,
            trained=TrainedTokens(none, none),
            tokens=0,
            sequences=0,
            sequence_of=none,
            sequence_tokens=(),
            extras={},
            kl_batch=None,
        )

    def with_any_token(self) -> "PassTensors":
        """Return the same pass with any token to train on, where there is none: for values that count nothing."""
        ids: torch.Tensor = self.inputs["input_ids"]
        first = torch.zeros(1, dtype=torch.long, device=ids.device)
        return replace(self, trained=TrainedTokens(first, ids.flatten()[:1]), sequence_of=first, sequences=1)

    def to(self, device: torch.device) -> "PassTensors":
        """Return the same pass on a device. CUDA copies pinned memory while the processor continues."""
        if device.type == "cuda":
            return self._each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "PassTensors":
        inputs = {
            name: change(value) if isinstance(value, torch.Tensor) else value for name, value in self.inputs.items()
        }
        return replace(
            self,
            inputs=inputs,
            trained=TrainedTokens(*map(change, self.trained)),
            sequence_of=change(self.sequence_of),
            extras={name: change(value) for name, value in self.extras.items()},
            kl_batch=None if self.kl_batch is None else self.kl_batch._each(change),
        )


def join(rows: Sequence[TokenizedRow], *, flash: bool = False) -> PassTensors:
    """Concatenate rows into one sequence, (1, tokens); positions start at 0 with each row.

    `flash` describes the rows as flash attention takes them, instead of as ours does.
    """
    if not flash:
        return join_shared([[row] for row in rows])
    lengths = [len(row.input_ids) for row in rows]
    starts = [0, *itertools.accumulate(lengths)]
    offsets = list(itertools.starmap(range, itertools.pairwise(starts)))
    ids = [token for row in rows for token in row.input_ids]
    positions = [position for length in lengths for position in range(length)]
    ends = torch.tensor(starts).to(torch.int32)
    inputs = {
        "input_ids": _integers(ids).unsqueeze(0),
        "position_ids": _integers(positions).unsqueeze(0),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    return PassTensors(inputs, *_trained(rows, offsets))


def join_shared(groups: Sequence[Sequence[TokenizedRow]]) -> PassTensors:
    """Concatenate sequences as `join` does; in each group, later ones without what all of it begin with.

    They see these tokens once, so the model gives what it gives for whole sequences, and gradients of all meet there. Tokens
    are filled up to a whole multiple with a last row that is not trained on.
    """
    ids: list[int] = []
    positions: list[int] = []
    offsets: list[Sequence[int]] = []
    lengths: list[int] = []
    prefixes: list[SharedPrefix] = []
    for group in groups:
        first, *others = (sequence.input_ids for sequence in group)
        shared = min((shared_length(first, other) for other in others), default=0)
        start, starts = len(ids), []
        offsets.append(range(start, start + len(first)))
        ids += first
        positions += range(len(first))
        for other in others:
            starts.append(len(ids) - start)
            offsets.append([*range(start, start + shared), *range(len(ids), len(ids) + len(other) - shared)])
            ids += other[shared:]
            positions += range(shared, len(other))
        lengths.append(len(ids) - start)
        prefixes.append(SharedPrefix(shared, tuple(starts)))
    if missing := -len(ids) % JOINED_MULTIPLE:
        ids += [0] * missing
        positions += range(missing)
        lengths.append(missing)
    joined = JoinedRows(tuple(lengths), tuple(prefixes) if any(len(group) > 1 for group in groups) else ())
    tensors = {"input_ids": _integers(ids).unsqueeze(0), "position_ids": _integers(positions).unsqueeze(0)}
    rows = [sequence for group in groups for sequence in group]
    return PassTensors({**tensors, "joined_rows": joined}, *_trained(rows, offsets))


def pad(rows: Sequence[TokenizedRow], pad_token_id: int, *, masked: bool = True) -> PassTensors:
    """Put rows side by side, (rows, longest), padded at the end; padding is masked or never seen, so any token serves."""
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.input_ids)] = _integers(row.input_ids)
        attention_mask[number, : len(row.input_ids)] = 1
    inputs = {"input_ids": input_ids, **({"attention_mask": attention_mask} if masked else {})}
    return PassTensors(
        inputs, *_trained(rows, [range(number * longest, (number + 1) * longest) for number in range(len(rows))])
    )


def _trained(
    rows: Sequence[TokenizedRow], offsets: Sequence[Sequence[int]]
) -> tuple[TrainedTokens, int, int, torch.Tensor, tuple[int, ...]]:
    """Return the position before each trained token and that token, tokens, rows, each trained token's row, and their counts.

    `offsets` are where each row's tokens are in the pass. A row's first token has nothing before it.
    """
    ends = [len(row.labels) - 1 for row in rows]
    positions = [position for end, row_offsets in zip(ends, offsets, strict=True) for position in row_offsets[:end]]
    labels = _integers([label for row in rows for label in row.labels[1:]])
    is_trained = labels != IGNORED_LABEL
    trained = TrainedTokens(_integers(positions)[is_trained], labels[is_trained])
    numbers = torch.arange(len(rows)).repeat_interleave(torch.tensor(ends))[is_trained]
    counts = tuple(end - row.labels[1:].count(IGNORED_LABEL) for end, row in zip(ends, rows, strict=True))
    return trained, sum(len(row.input_ids) for row in rows), len(rows), numbers, counts


def _integers(numbers: Sequence[int]) -> torch.Tensor:
    """Return a list as a tensor, in a tenth of the time that torch takes."""
    return torch.from_numpy(np.array(numbers, dtype=np.int64))
