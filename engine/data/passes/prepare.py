"""A dataset ready to train on, and the rows that a run holds out."""

import hashlib
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar, overload

from engine.config.run import DatasetConfig
from engine.data.contract import CheckProgress, DatasetReport, HeldOutRows
from engine.data.passes.check import finish, pass_steps
from engine.data.passes.reader import DatasetReader, DatasetRow, Renderer
from engine.data.passes.split import Positions
from engine.data.render.template import ChatTokenizer
from engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from engine.data.source import SourceOptions
from engine.paths import LoratoryHome

Item = TypeVar("Item")


class TokenizedRows(Sequence[TokenizedRow]):
    """Sequences in order, at five bytes a token; those that are selected from others share their tokens."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("q", [0])  # a sequence begins where the one before it ends
        self._rows = array("q")
        self._parts = array("i")
        self._chosen = array("q")  # numbers of sequences in the arrays above

    def append(self, row: TokenizedRow) -> None:
        """Keep a sequence."""
        self._chosen.append(len(self._rows))
        self._ids.extend(row.input_ids)
        self._trained.extend(label != IGNORED_LABEL for label in row.labels)
        self._ends.append(len(self._ids))
        self._rows.append(row.row)
        self._parts.append(row.part)

    def select(self, numbers: Iterable[int]) -> "TokenizedRows":
        """Return sequences by the numbers under which they were appended."""
        selected = copy(self)
        selected._chosen = array("q", numbers)
        return selected

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenizedRows": ...

    def __getitem__(self, index: int | slice) -> "TokenizedRow | TokenizedRows":
        if isinstance(index, slice):
            return self.select(self._chosen[index])
        number = self._chosen[index]
        place = slice(self._ends[number], self._ends[number + 1])
        ids = self._ids[place].tolist()
        labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, self._trained[place], strict=True)]
        return TokenizedRow(self._rows[number], self._parts[number], ids, labels)

    def lengths(self) -> list[int]:
        """Return tokens of each sequence, for grouping by length."""
        return [self._ends[number + 1] - self._ends[number] for number in self._chosen]

    def sha256(self) -> str:
        """Return a hash of every sequence's tokens and labels, in order, in hexadecimal digits."""
        digest = hashlib.sha256(array("q", self.lengths()).tobytes())
        for number in self._chosen:
            place = slice(self._ends[number], self._ends[number + 1])
            digest.update(memoryview(self._ids)[place])
            digest.update(memoryview(self._trained)[place])
        return digest.hexdigest()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all of them."""
        return sum(self._trained.count(1, self._ends[number], self._ends[number + 1]) for number in self._chosen)


@dataclass(frozen=True)
class PreparedDataset:
    """What the trainer trains on and measures on. No row of one part repeats a row of the other."""

    train: TokenizedRows
    held_out: TokenizedRows
    report: DatasetReport


def prepare_dataset(
    config: DatasetConfig,
    *,
    seed: int,
    max_length: int,
    tokenizer: ChatTokenizer,
    home: LoratoryHome,
    on_progress: Callable[[CheckProgress], None] | None = None,
) -> PreparedDataset:
    """Read, render and split a dataset; `on_progress` is called a few times a second, and may raise to stop.

    Raises:
        DatasetError: If the source cannot be read, or nothing in it can be trained on.
    """
    rows = TokenizedRows()
    first_sequences = array("q", [0])

    def keep(row: DatasetRow) -> None:
        assert row.rendering is not None
        for sequence in row.rendering.rows:
            rows.append(sequence)
        first_sequences.append(len(rows))

    def sequences(positions: Positions) -> TokenizedRows:
        return rows.select(
            chain.from_iterable(
                range(first_sequences[position], first_sequences[position + 1]) for position in positions.tolist()
            )
        )

    reader = DatasetReader(config, SourceOptions(home=home), Renderer(tokenizer, max_length))
    report, split, _ = finish(pass_steps(reader, seed, keep), on_progress)
    return PreparedDataset(train=sequences(split.train), held_out=sequences(split.held_out), report=report)


def held_out_steps(
    config: DatasetConfig, options: SourceOptions, *, seed: int, renderer: Renderer, count: int
) -> Generator[CheckProgress | None, None, HeldOutRows]:
    """Find at most `count` of the held-out rows in one pass; yields as `check_steps` does, and closing it stops the pass.

    Seed and renderer are those of the run: rows that its template refuses are in no part.

    Raises:
        DatasetError: If the source cannot be read, or no row of it can be trained on.
    """
    _, split, kept_rows = yield from pass_steps(DatasetReader(config, options, renderer), seed)
    held_out = [kept_rows[position] for position in split.held_out]
    return HeldOutRows(rows=tuple(spread_evenly(held_out, count)), total=len(held_out))


def spread_evenly(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return so many of the items, from the first to the last at equal distances; all where there are fewer."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
