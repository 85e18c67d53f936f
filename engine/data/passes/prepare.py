"""A prepared dataset, and its held-out rows."""

import hashlib
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar, overload

from engine.config.objectives import Objective
from engine.config.run import DatasetConfig
from engine.data.contract import CheckProgress, DatasetReport, HeldOutRows
from engine.data.conversation import LabeledCompletion, PreferencePair
from engine.data.formats import require_rows_of
from engine.data.passes.check import finish, pass_steps
from engine.data.passes.reader import DatasetReader, DatasetRow, Renderer
from engine.data.passes.split import Positions
from engine.data.render.template import ChatTokenizer
from engine.data.render.tokenize import IGNORED_LABEL, RatedRow, TokenizedPair, TokenizedRow
from engine.data.source import SourceOptions
from engine.paths import LoratoryHome

Item = TypeVar("Item")


class TokenizedRows(Sequence[TokenizedRow]):
    """Sequences in order, at five bytes a token; subsets share the tokens."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("q", [0])  # a sequence begins where the one before it ends
        self._rows = array("q")
        self._parts = array("i")
        self._numbers = array("q")  # numbers of sequences in the arrays above

    def append(self, row: TokenizedRow) -> None:
        """Append a sequence."""
        self._numbers.append(len(self._rows))
        self._ids.extend(row.input_ids)
        self._trained.extend(label != IGNORED_LABEL for label in row.labels)
        self._ends.append(len(self._ids))
        self._rows.append(row.row)
        self._parts.append(row.part)

    def select(self, numbers: Iterable[int]) -> "TokenizedRows":
        """Return sequences by the numbers under which they were appended."""
        subset = copy(self)
        subset._numbers = array("q", numbers)
        return subset

    def numbers(self, places: Iterable[int]) -> Iterator[int]:
        """Return the numbers under which the sequences at these places were appended."""
        return (self._numbers[place] for place in places)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenizedRows": ...

    def __getitem__(self, index: int | slice) -> "TokenizedRow | TokenizedRows":
        if isinstance(index, slice):
            return self.select(self._numbers[index])
        number = self._numbers[index]
        place = slice(self._ends[number], self._ends[number + 1])
        ids = self._ids[place].tolist()
        labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, self._trained[place], strict=True)]
        return TokenizedRow(self._rows[number], self._parts[number], ids, labels)

    def lengths(self) -> list[int]:
        """Return tokens of each sequence, for grouping by length."""
        return [self._ends[number + 1] - self._ends[number] for number in self._numbers]

    def sha256(self) -> str:
        """Return a hash of every sequence's tokens and labels, in order, in hexadecimal digits."""
        digest = hashlib.sha256(array("q", self.lengths()).tobytes())
        for number in self._numbers:
            place = slice(self._ends[number], self._ends[number + 1])
            digest.update(memoryview(self._ids)[place])
            digest.update(memoryview(self._trained)[place])
        return digest.hexdigest()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all of them."""
        return sum(self._trained.count(1, self._ends[number], self._ends[number + 1]) for number in self._numbers)


class TokenizedPairs(Sequence[TokenizedPair]):
    """Pairs in order; `sequences` has the chosen and the rejected answer of each, one after the other."""

    def __init__(self, sequences: TokenizedRows) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences) // 2

    @overload
    def __getitem__(self, index: int) -> TokenizedPair: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenizedPairs": ...

    def __getitem__(self, index: int | slice) -> "TokenizedPair | TokenizedPairs":
        if isinstance(index, slice):
            places = range(len(self))[index]
            return TokenizedPairs(
                self.sequences.select(self.sequences.numbers(2 * at + side for at in places for side in (0, 1)))
            )
        place = range(len(self))[index]
        chosen, rejected = self.sequences[2 * place], self.sequences[2 * place + 1]
        return TokenizedPair(chosen.row, chosen.part, chosen.input_ids, chosen.labels, rejected)

    def lengths(self) -> list[int]:
        """Return tokens of both sequences of each pair."""
        lengths = self.sequences.lengths()
        return [chosen + rejected for chosen, rejected in zip(lengths[::2], lengths[1::2], strict=True)]

    def sha256(self) -> str:
        """Return a hash of every sequence's tokens and labels, in order, in hexadecimal digits."""
        return self.sequences.sha256()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all of them."""
        return self.sequences.trained_tokens


class RatedRows(Sequence[RatedRow]):
    """Labeled completions in order."""

    def __init__(self, sequences: TokenizedRows, desirable: Sequence[int]) -> None:
        self.sequences = sequences
        self.desirable = desirable  # 1 or 0 for each row of the dataset

    def __len__(self) -> int:
        return len(self.sequences)

    @overload
    def __getitem__(self, index: int) -> RatedRow: ...

    @overload
    def __getitem__(self, index: slice) -> "RatedRows": ...

    def __getitem__(self, index: int | slice) -> "RatedRow | RatedRows":
        if isinstance(index, slice):
            return RatedRows(self.sequences[index], self.desirable)
        one = self.sequences[index]
        return RatedRow(one.row, one.part, one.input_ids, one.labels, bool(self.desirable[one.row]))

    def lengths(self) -> list[int]:
        """Return tokens of each sequence."""
        return self.sequences.lengths()

    def sha256(self) -> str:
        """Return a hash of tokens, labels and ratings, in order, in hexadecimal digits."""
        ratings = bytes(one.desirable for one in self)
        return hashlib.sha256(self.sequences.sha256().encode() + ratings).hexdigest()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all of them."""
        return self.sequences.trained_tokens


@dataclass(frozen=True)
class PreparedDataset:
    """The rows to train on and to evaluate on. No row of one part repeats a row of the other."""

    train: TokenizedRows | TokenizedPairs | RatedRows
    held_out: TokenizedRows | TokenizedPairs | RatedRows
    report: DatasetReport


def prepare_dataset(
    config: DatasetConfig,
    *,
    seed: int,
    max_length: int,
    tokenizer: ChatTokenizer,
    home: LoratoryHome,
    objective: Objective | None = None,
    on_progress: Callable[[CheckProgress], None] | None = None,
) -> PreparedDataset:
    """Read, render and split a dataset; `on_progress` is called a few times a second, and may raise to stop.

    Without an objective, a pair is only its chosen answer, for evaluation.

    Raises:
        DatasetError: If the source cannot be read, or nothing in it can be trained on.
    """
    kinds = objective.rows if objective is not None else frozenset()
    rows = TokenizedRows()
    first_sequences = array("q", [0])
    desirable = bytearray()  # of each row of the dataset

    def keep(row: DatasetRow) -> None:
        assert row.rendering is not None
        is_pair = isinstance(row.example, PreferencePair)
        for sequence in row.rendering.rows[:1] if is_pair and "pairs" not in kinds else row.rendering.rows:
            rows.append(sequence)
        first_sequences.append(len(rows))
        if isinstance(row.example, LabeledCompletion):
            desirable.extend(bytes(row.record.row + 1 - len(desirable)))
            desirable[row.record.row] = row.example.desirable

    def sequences(positions: Positions) -> TokenizedRows | TokenizedPairs | RatedRows:
        chosen = rows.select(
            chain.from_iterable(
                range(first_sequences[position], first_sequences[position + 1]) for position in positions.tolist()
            )
        )
        if "pairs" in kinds:
            return TokenizedPairs(chosen)
        return RatedRows(chosen, desirable) if "ratings" in kinds else chosen

    reader = DatasetReader(config, SourceOptions(home=home), Renderer(tokenizer, max_length))
    if objective is not None:
        require_rows_of(objective, [part.detection.format for part in reader.parts], config)
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
    """Return so many of the items, evenly spaced; all if there are fewer."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]
