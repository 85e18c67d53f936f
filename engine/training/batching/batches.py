"""Rows as the tensors that a model takes: joined without padding, or padded side by side."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from engine.config.rules import JOINED_MULTIPLE
from engine.data.records import shared_length
from engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from engine.training.ops.attention import Fork, JoinedRows
from engine.training.ops.loss import TrainedTokens


@dataclass(frozen=True)
class PassTensors:
    """One pass through the model."""

    inputs: dict[str, Any]  # keyword arguments of the model
    trained: TrainedTokens
    tokens: int  # of the sequences; padding not counted, what two of them share counted twice
    sequences: int  # that count, next to one another or joined
    sequence_of: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # of each trained token
    sequence_tokens: tuple[int, ...] = ()  # trained tokens of each sequence: counted here, no GPU is asked for it
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)  # what an objective needs besides
    also: "PassTensors | None" = None  # sequences that pass without gradient, before the step

    @property
    def trained_tokens(self) -> int:
        """Tokens that the loss is over."""
        return int(self.trained.targets.shape[0])

    def untrained(self) -> "PassTensors":
        """The same with nothing to train on and nothing to count."""
        none = torch.zeros(0, dtype=torch.long)
        return replace(
            self,
            trained=TrainedTokens(none, none),
            tokens=0,
            sequences=0,
            sequence_of=none,
            sequence_tokens=(),
            extras={},
            also=None,
        )

    def with_any_token(self) -> "PassTensors":
        """The same with any one token to train on, where there is none: for a loss that counts nothing."""
        ids: torch.Tensor = self.inputs["input_ids"]
        position = torch.zeros(1, dtype=torch.long, device=ids.device)
        return replace(self, trained=TrainedTokens(position, ids.flatten()[:1]))

    def to(self, device: torch.device) -> "PassTensors":
        """The same on a device. CUDA copies pinned memory while the processor continues."""
        is_async = device.type == "cuda"
        return self._each(lambda tensor: tensor.to(device, non_blocking=is_async))

    def pinned(self) -> "PassTensors":
        """The same in memory that the system does not move, which CUDA copies from by itself."""
        return self._each(lambda tensor: tensor.pin_memory())

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
            also=None if self.also is None else self.also._each(change),
        )


def join(rows: Sequence[TokenizedRow], *, flash: bool = False) -> PassTensors:
    """Concatenate rows into one sequence, (1, tokens); positions start at 0 with each row.

    `flash` describes the rows as flash attention takes them, instead of as ours does.
    """
    lengths = tuple(len(row.input_ids) for row in rows)
    starts = [0, *itertools.accumulate(lengths)]
    places = [range(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    ids, positions = (
        [token for row in rows for token in row.input_ids],
        [place for own in lengths for place in range(own)],
    )
    if not flash:
        return _joined(rows, places, ids, positions, JoinedRows(lengths))
    ends = torch.tensor(starts).to(torch.int32)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    return PassTensors(inputs, *_trained(rows, places))


def join_pairs(rows: Sequence[TokenizedRow]) -> PassTensors:
    """Concatenate sequences as `join` does; each second one without the tokens that it and the one before begin with.

    Both see these once, so the model gives what it gives for whole sequences, and gradients of both meet there.
    """
    ids: list[int] = []
    positions: list[int] = []
    places: list[Sequence[int]] = []
    lengths: list[int] = []
    forks: list[Fork] = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        start, length, other = len(ids), len(first.input_ids), len(second.input_ids)
        shared = shared_length(first.input_ids, second.input_ids)
        rest = range(start + length, start + length + other - shared)
        places += [range(start, start + length), [*range(start, start + shared), *rest]]
        ids += [*first.input_ids, *second.input_ids[shared:]]
        positions += [*range(length), *range(shared, other)]
        lengths.append(length + len(rest))
        forks.append(Fork(shared, length))
    return _joined(rows, places, ids, positions, JoinedRows(tuple(lengths), tuple(forks)))


def _joined(
    rows: Sequence[TokenizedRow],
    places: Sequence[Sequence[int]],  # of each token of each sequence, in the pass
    ids: list[int],
    positions: list[int],
    joined: JoinedRows,
) -> PassTensors:
    """Fill tokens up to a whole multiple with a last row that is not trained on."""
    missing = -len(ids) % JOINED_MULTIPLE
    if missing:
        ids, positions = [*ids, *[0] * missing], [*positions, *range(missing)]
        joined = replace(joined, lengths=(*joined.lengths, missing))
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions]), "joined_rows": joined}
    return PassTensors(inputs, *_trained(rows, places))


def pad(rows: Sequence[TokenizedRow], pad_token_id: int, *, masked: bool = True) -> PassTensors:
    """Put rows side by side, (rows, longest), padded at the end; padding is masked or never seen, so any token serves."""
    longest = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.input_ids)] = torch.tensor(row.input_ids, dtype=torch.long)
        attention_mask[number, : len(row.input_ids)] = 1
    inputs = {"input_ids": input_ids, **({"attention_mask": attention_mask} if masked else {})}
    return PassTensors(
        inputs, *_trained(rows, [range(number * longest, (number + 1) * longest) for number in range(len(rows))])
    )


def _trained(
    rows: Sequence[TokenizedRow], places: Sequence[Sequence[int]]
) -> tuple[TrainedTokens, int, int, torch.Tensor, tuple[int, ...]]:
    """The position before each trained token and that token, tokens, rows, the row of each trained token, and their counts.

    `places` are the positions of each row's tokens. A row's first token has nothing before it.
    """
    positions: list[int] = []
    targets: list[int] = []
    numbers: list[int] = []
    for number, (row, own) in enumerate(zip(rows, places, strict=True)):
        for position, label in zip(own, row.labels[1:], strict=False):
            if label != IGNORED_LABEL:
                positions.append(position)
                targets.append(label)
                numbers.append(number)
    trained = TrainedTokens(torch.tensor(positions, dtype=torch.long), torch.tensor(targets, dtype=torch.long))
    counts = tuple(Counter(numbers)[number] for number in range(len(rows)))
    tokens = sum(len(row.input_ids) for row in rows)
    return trained, tokens, len(rows), torch.tensor(numbers, dtype=torch.long), counts
