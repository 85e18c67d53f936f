"""One pass over a dataset: every row read, converted, rendered, and accounted for."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any

from engine.config.dataset import DatasetConfig, TrainOn
from engine.data.conversation import Example, PlainText
from engine.data.convert import Converter
from engine.data.detect import Detection, detect_format
from engine.data.problems import ProblemKind, RowProblemError
from engine.data.source import Record, read_records
from engine.data.tokenize import Rendering, RenderOptions, render_conversation
from engine.data.tokenizer import ChatTokenizer

DETECTION_ROWS = 100


@dataclass(frozen=True)
class Rendered:
    """How rows are rendered: with whose tokenizer, what counts, where the cut is."""

    tokenizer: ChatTokenizer
    options: RenderOptions


@dataclass(frozen=True)
class Examined:
    """One row, kept (`example`, and `rendering` where a tokenizer was given) or left out (`problem`)."""

    record: Record
    example: Example | None = None
    rendering: Rendering | None = None
    kind: ProblemKind | None = None
    problem: str = ""
    digest: int = 0  # 64 bits of what the row says: equal for exact duplicates


class DatasetReader:
    """A dataset with its format decided.

    Args:
        config: The dataset.
        rendered: Also renders each row, where given.

    Raises:
        DatasetError: If the source cannot be read, or no format fits.
    """

    def __init__(self, config: DatasetConfig, rendered: Rendered | None = None) -> None:
        self._config = config
        self._rendered = rendered
        self._records = read_records(config)
        self._head = list(islice(self._records, DETECTION_ROWS))
        rows = [record.value for record in self._head if isinstance(record.value, dict)]
        self.columns = tuple(dict.fromkeys(chain.from_iterable(rows)))
        self.detection: Detection = detect_format(config, rows)
        self._converter = Converter(self.detection)

    @property
    def train_on(self) -> TrainOn:
        return "all" if self.detection.format == "text" else self._config.train_on

    def rows(self) -> Iterator[Examined]:
        """Every row, in order."""
        for record in chain(self._head, self._records):
            yield self.examine(record)

    def examine(self, record: Record) -> Examined:
        """Convert and render one row."""
        try:
            if not isinstance(record.value, dict):
                raise RowProblemError("not_an_object", "the row is not an object with columns")
            example = self._converter.convert(record.value)
            digest = digest_of(example)
            rendering = None
            if self._rendered is not None:
                rendering = render_conversation(record.row, example, self._rendered.tokenizer, self._rendered.options)
        except RowProblemError as problem:
            return Examined(record, kind=problem.kind, problem=problem.problem)
        return Examined(record, example, rendering, digest=digest)


def digest_of(example: Example) -> int:
    """64 bits that are equal for rows that say exactly the same.

    Raises:
        RowProblemError: If its text cannot be written as UTF-8.
    """
    said: Any = example.content if isinstance(example, PlainText) else asdict(example)
    try:
        data = said.encode() if isinstance(said, str) else json.dumps(said, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowProblemError("bad_text", "its text holds half of a character (a lone surrogate)") from error
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
