"""A dataset made ready to train on: the very sequences that preview, checks and `loratory render` show."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from engine.config.dataset import DatasetConfig
from engine.data.check import check_steps
from engine.data.examine import Examined, Rendered
from engine.data.report import CheckProgress, DatasetReport
from engine.data.split import draw_sample, draw_split
from engine.data.tokenize import IGNORED_LABEL, RenderOptions, TokenizedRow
from engine.data.tokenizer import ChatTokenizer
from engine.paths import LoratoryHome


class TokenStore:
    """Token ids and learned marks of many sequences, five bytes a token."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._learned = bytearray()
        self._ends = array("q")
        self._rows = array("q")
        self._parts = array("i")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, row: TokenizedRow) -> None:
        """Keep a sequence."""
        self._ids.extend(row.input_ids)
        self._learned.extend(label != IGNORED_LABEL for label in row.labels)
        self._ends.append(len(self._ids))
        self._rows.append(row.row)
        self._parts.append(row.part)

    def get(self, index: int) -> TokenizedRow:
        """The sequence that was appended as number `index`."""
        start = self._ends[index - 1] if index else 0
        end = self._ends[index]
        ids = self._ids[start:end].tolist()
        learned = self._learned[start:end]
        labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, learned, strict=True)]
        return TokenizedRow(self._rows[index], self._parts[index], ids, labels)

    def length(self, index: int) -> int:
        """Tokens of a sequence, without unpacking it."""
        return self._ends[index] - (self._ends[index - 1] if index else 0)


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
        """Tokens of each sequence, for grouping by length."""
        return [self._store.length(index) for index in self._indexes]


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
    home: LoratoryHome,  # noqa: ARG001 - for caches
    on_progress: Callable[[CheckProgress], None] | None = None,
) -> PreparedDataset:
    """Read, render and split a dataset.

    Args:
        config: The dataset.
        seed: Draws the sample and the held-out rows.
        max_length: Sequences are cut there, in tokens.
        tokenizer: From `engine.inspector.load_tokenizer`: with the frozen template.
        home: Holds caches.
        on_progress: Told a few times a second how far it has come; may raise to stop.

    Raises:
        DatasetError: If the source cannot be read, or nothing in it can be learned.
    """
    store = TokenStore()
    digests: list[int] = []
    first_sequences = [0]

    def keep(examined: Examined) -> None:
        assert examined.rendering is not None
        for sequence in examined.rendering.rows:
            store.append(sequence)
        digests.append(examined.digest)
        first_sequences.append(len(store))

    options = RenderOptions(max_length=max_length, train_on=config.train_on)
    steps = check_steps(config, seed, Rendered(tokenizer, options), on_kept=keep)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            report: DatasetReport = end.value
            break
        if on_progress is not None:
            on_progress(progress)
    sample = draw_sample(len(digests), config.max_samples, seed)
    split = draw_split([digests[position] for position in sample], config.eval_fraction, seed)

    def sequences(positions: Sequence[int]) -> TokenizedRows:
        rows = [sample[position] for position in positions]
        return TokenizedRows(store, [s for row in rows for s in range(first_sequences[row], first_sequences[row + 1])])

    return PreparedDataset(train=sequences(split.train), held_out=sequences(split.held_out), report=report)
