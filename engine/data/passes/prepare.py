"""A dataset ready to train on, and the rows that a run holds out."""

import hashlib
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import overload

from engine.config.run import DatasetConfig
from engine.data.contract import CheckProgress, DatasetReport, HeldOutRows
from engine.data.passes.check import check_steps
from engine.data.passes.reader import DatasetRow, Renderer
from engine.data.passes.split import Positions, draw_split
from engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from engine.data.render.tokens import ChatTokenizer
from engine.data.source import SourceOptions
from engine.paths import LoratoryHome


class TokenStore:
    """Token ids and trained marks of many sequences, five bytes a token."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("q")
        self._rows = array("q")
        self._parts = array("i")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, row: TokenizedRow) -> None:
        """Keep a sequence."""
        self._ids.extend(row.input_ids)
        self._trained.extend(label != IGNORED_LABEL for label in row.labels)
        self._ends.append(len(self._ids))
        self._rows.append(row.row)
        self._parts.append(row.part)

    def get(self, index: int) -> TokenizedRow:
        """Return the sequence that was appended as number `index`."""
        start = self._ends[index - 1] if index else 0
        end = self._ends[index]
        ids = self._ids[start:end].tolist()
        trained = self._trained[start:end]
        labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, trained, strict=True)]
        return TokenizedRow(self._rows[index], self._parts[index], ids, labels)

    def length(self, index: int) -> int:
        """Return tokens of a sequence, without unpacking it."""
        return self._ends[index] - (self._ends[index - 1] if index else 0)

    def trained_tokens(self, index: int) -> int:
        """Return trained tokens of a sequence, without unpacking it."""
        return self._trained.count(1, self._ends[index - 1] if index else 0, self._ends[index])

    def tokens_and_marks(self, index: int) -> tuple[memoryview, memoryview]:
        """Return views of a sequence's token ids and of its trained marks."""
        start = self._ends[index - 1] if index else 0
        end = self._ends[index]
        return memoryview(self._ids)[start:end], memoryview(self._trained)[start:end]


class TokenizedRows(Sequence[TokenizedRow]):
    """Some sequences of a store, in order."""

    def __init__(self, store: TokenStore, indexes: Sequence[int]) -> None:
        self._store = store
        self._indexes = array("q", indexes)

    def __len__(self) -> int:
        return len(self._indexes)

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenizedRows": ...

    def __getitem__(self, index: int | slice) -> "TokenizedRow | TokenizedRows":
        if isinstance(index, slice):
            return TokenizedRows(self._store, self._indexes[index])
        return self._store.get(self._indexes[index])

    def __iter__(self) -> Iterator[TokenizedRow]:
        return (self._store.get(index) for index in self._indexes)

    def lengths(self) -> list[int]:
        """Return tokens of each sequence, for grouping by length."""
        return [self._store.length(index) for index in self._indexes]

    def sha256(self) -> str:
        """Return a hash of every sequence's tokens and labels, in order, in hexadecimal digits."""
        digest = hashlib.sha256(array("q", self.lengths()).tobytes())
        for index in self._indexes:
            for view in self._store.tokens_and_marks(index):
                digest.update(view)
        return digest.hexdigest()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all of them."""
        return sum(self._store.trained_tokens(index) for index in self._indexes)


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
    """Read, render and split a dataset.

    Args:
        config: The dataset.
        seed: Draws the sample and the held-out rows.
        max_length: Sequences are cut there, in tokens.
        tokenizer: From `engine.inspector.worker.load_tokenizer`: with the frozen template.
        home: Holds caches.
        on_progress: Told a few times a second how far it has come; may raise to stop.

    Raises:
        DatasetError: If the source cannot be read, or nothing in it can be trained on.
    """
    store = TokenStore()
    digests = array("Q")
    parts = array("b")
    first_sequences = array("q", [0])

    def keep(row: DatasetRow) -> None:
        assert row.rendering is not None
        for sequence in row.rendering.rows:
            store.append(sequence)
        digests.append(row.digest)
        parts.append(row.part)
        first_sequences.append(len(store))

    steps = check_steps(
        config, SourceOptions(home=home), seed=seed, renderer=Renderer(tokenizer, max_length), on_kept=keep
    )
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            report: DatasetReport = end.value
            break
        if on_progress is not None and progress is not None:
            on_progress(progress)
    weights = tuple(part.weight for part in report.parts)
    split = draw_split(digests, config, seed, parts=parts, weights=weights)

    def sequences(positions: Positions) -> TokenizedRows:
        chosen = (range(first_sequences[position], first_sequences[position + 1]) for position in positions.tolist())
        return TokenizedRows(store, array("q", chain.from_iterable(chosen)))

    return PreparedDataset(train=sequences(split.train), held_out=sequences(split.held_out), report=report)


def held_out_steps(
    config: DatasetConfig, options: SourceOptions, *, seed: int, renderer: Renderer, count: int
) -> Generator[CheckProgress | None, None, HeldOutRows]:
    """Find the held-out rows in one pass; yields as `check_steps` does, and closing it stops the pass.

    Args:
        config: The dataset.
        options: How to open its sources.
        seed: The run's, which drew the rows.
        renderer: The run's model and max_length: rows that its template refuses are in no part.
        count: How many rows at most.

    Raises:
        DatasetError: If the source cannot be read, or no row of it can be trained on.
    """
    rows, digests, parts = array("q"), array("Q"), array("b")

    def keep(row: DatasetRow) -> None:
        rows.append(row.record.row)
        digests.append(row.digest)
        parts.append(row.part)

    report = yield from check_steps(config, options, seed=seed, renderer=renderer, on_kept=keep)
    weights = tuple(part.weight for part in report.parts)
    held_out = [rows[position] for position in draw_split(digests, config, seed, parts=parts, weights=weights).held_out]
    chosen = held_out
    if count < len(held_out):
        chosen = [held_out[number * len(held_out) // count] for number in range(count)]
    return HeldOutRows(rows=tuple(chosen), total=len(held_out))
