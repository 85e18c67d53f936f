"""A prepared dataset, and its held-out rows."""

import hashlib
from array import array
from collections.abc import Callable, Generator, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar, overload

from loratory.engine.config.objectives import Objective
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import CheckProgress, DatasetReport, HeldOutRows
from loratory.engine.data.conversation import IMAGE_MARK, Conversation, ImageRef
from loratory.engine.data.formats import require_rows_of
from loratory.engine.data.passes.check import finish, pass_steps
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow, Renderer
from loratory.engine.data.passes.split import Positions
from loratory.engine.data.render.images import images_of
from loratory.engine.data.render.template import ChatTokenizer
from loratory.engine.data.render.tokenize import IGNORED_LABEL, PromptFacts, TokenizedRow, prompt_ids
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from loratory.engine.paths import LoratoryHome

Element = TypeVar("Element")


class TokenizedRows(Sequence[TokenizedRow]):
    """Rows in order, at five bytes a token; subsets share the tokens."""

    def __init__(self, sequences_per_row: int = 1) -> None:
        self._each = sequences_per_row  # 2 for pairs: chosen, then rejected
        self._ids = array("i")
        self._trained = bytearray()
        self._ends = array("q", [0])  # a sequence begins where the one before it ends
        self._rows, self._parts, self._desirable = array("q"), array("i"), array("b")
        self._prompts: list[PromptFacts | None] = []  # of each sequence, where prompts are answered
        self._images: dict[int, tuple[ImageRef, ...]] = {}  # of the sequences that have some
        self._numbers = array("q")  # numbers of the rows' first sequences in the arrays above

    def append(self, row: TokenizedRow, desirable: bool | None = None) -> None:
        """Append a sequence, and how it was rated, if it was."""
        if len(self._rows) % self._each == 0:
            self._numbers.append(len(self._rows))
        if row.images:
            self._images[len(self._rows)] = row.images
        self._ids.extend(row.input_ids)
        self._trained.extend(label != IGNORED_LABEL for label in row.labels)
        self._ends.append(len(self._ids))
        self._rows.append(row.row)
        self._parts.append(row.part)
        self._desirable.append(-1 if desirable is None else desirable)
        if row.prompt is not None:
            self._prompts.append(row.prompt)

    def select(self, positions: Iterable[int]) -> "TokenizedRows":
        """Return the rows at these positions."""
        subset = copy(self)
        subset._numbers = array("q", [self._numbers[position] for position in positions])
        return subset

    def __or__(self, other: "TokenizedRows") -> "TokenizedRows":
        """Return the rows of two parts of a dataset, in its order."""
        both = copy(self)
        both._numbers = array("q", sorted((*self._numbers, *other._numbers)))
        return both

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> TokenizedRow: ...

    @overload
    def __getitem__(self, index: slice) -> "TokenizedRows": ...

    def __getitem__(self, index: int | slice) -> "TokenizedRow | TokenizedRows":
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        number = self._numbers[index]
        first, *others = (self._sequence(number + side) for side in range(self._each))
        return replace(first, rejected=others[0]) if others else first

    def _sequence(self, number: int) -> TokenizedRow:
        span, rating = self._span(number), self._desirable[number]
        ids = self._ids[span].tolist()
        labels = [token if counts else IGNORED_LABEL for token, counts in zip(ids, self._trained[span], strict=True)]
        desirable = None if rating < 0 else bool(rating)
        prompt = self._prompts[number] if self._prompts else None
        images = self._images.get(number, ())
        return TokenizedRow(
            self._rows[number], self._parts[number], ids, labels, desirable=desirable, prompt=prompt, images=images
        )

    def _span(self, number: int, count: int = 1) -> slice:
        return slice(self._ends[number], self._ends[number + count])

    def lengths(self) -> list[int]:
        """Return the tokens of each row, for grouping by length."""
        return [self._ends[number + self._each] - self._ends[number] for number in self._numbers]

    def image_counts(self) -> list[int]:
        """Return the images of each row, for grouping by their number."""
        sides = range(self._each)
        return [sum(len(self._images.get(number + side, ())) for side in sides) for number in self._numbers]

    def sha256(self) -> str:
        """Return a hash of every sequence's tokens, labels, rating and images, in order, in hexadecimal digits."""
        digest = hashlib.sha256()
        for number in (number + side for number in self._numbers for side in range(self._each)):
            span = self._span(number)
            digest.update(f"{span.stop - span.start} {self._desirable[number]} ".encode())
            digest.update(memoryview(self._ids)[span])
            digest.update(memoryview(self._trained)[span])
            for image in self._images.get(number, ()):
                digest.update(image.digest.encode())
        return digest.hexdigest()

    @property
    def trained_tokens(self) -> int:
        """Trained tokens of all of them."""
        spans = (self._span(number, self._each) for number in self._numbers)
        return sum(self._trained.count(1, span.start, span.stop) for span in spans)


@dataclass(frozen=True)
class PreparedDataset:
    """The rows to train on and to evaluate on. No row of one part repeats a row of the other."""

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
    objective: Objective | None = None,
    on_progress: Callable[[CheckProgress], None] | None = None,
) -> PreparedDataset:
    """Read, render and split a dataset; `on_progress` is called a few times a second, and may raise to stop.

    Without an objective, a pair is only its chosen answer, for evaluation.

    Raises:
        DatasetError: If the source cannot be read, or nothing in it can be trained on.
    """
    sequences_per_row = objective.sequences_per_example if objective is not None else 1
    rows = TokenizedRows(sequences_per_row)
    first_rows = array("q", [0])  # of each kept row, the number of its first one

    def append_row(row: DatasetRow) -> None:
        assert row.rendering is not None
        assert row.example is not None
        if objective is not None and objective.samples_answers:
            rows.append(prompt_row(row, tokenizer))
            first_rows.append(len(rows))
            return
        is_compared = len(row.example.sides()) > sequences_per_row
        desirable = getattr(row.example, "desirable", None) if objective is not None else None
        for sequence in row.rendering.rows[:1] if is_compared else row.rendering.rows:
            rows.append(sequence, desirable)
        first_rows.append(len(rows))

    def select(positions: Positions) -> TokenizedRows:
        ranges = (range(first_rows[position], first_rows[position + 1]) for position in positions.tolist())
        return rows.select(chain.from_iterable(ranges))

    reader = DatasetReader(config, SourceOptions(home=home), Renderer(tokenizer, max_length))
    if objective is not None:
        require_rows_of(objective, [part.detection.format for part in reader.parts], config)
    report, split, _ = finish(pass_steps(reader, seed, append_row), on_progress)
    return PreparedDataset(train=select(split.train), held_out=select(split.held_out), report=report)


def prompt_row(row: DatasetRow, tokenizer: ChatTokenizer) -> TokenizedRow:
    """Return the prompt of a row, whose answer in the data, if it has one, is for scorers alone."""
    example, columns = row.example, dict(row.record.value or {})
    if not isinstance(example, Conversation):
        raise DatasetError(
            "Plain text has no prompts to answer.", "Choose rows with prompts, or training.objective sft."
        )
    messages = example.messages
    last = max((index for index, turn in enumerate(messages) if turn.role == "assistant"), default=len(messages))
    prompt = messages[: len(messages) if example.kind == "prompts" else last]
    if last < len(messages) and example.kind != "prompts":
        columns = {"answer": messages[last].content, **columns}
    ids, images = prompt_ids(prompt, tokenizer, example.tools), images_of(prompt)
    facts = PromptFacts("\n".join(turn.content for turn in prompt).replace(IMAGE_MARK, ""), columns, tuple(prompt))
    return TokenizedRow(row.record.row, 0, ids, [IGNORED_LABEL] * len(ids), prompt=facts, images=images)


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


def spread_evenly(elements: Sequence[Element], count: int | None) -> list[Element]:
    """Return so many of the elements, evenly spaced; all if there are fewer."""
    if count is None or count >= len(elements):
        return list(elements)
    return [elements[index * len(elements) // count] for index in range(count)]
