"""A row as its source holds it, why it may be left out, and what every source of rows can do."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

ProblemKind = Literal[
    "not_json",
    "not_utf8",
    "not_an_object",
    "too_long",
    "too_deep",
    "duplicate_key",
    "bad_text",
    "bad_number",
    "weight",
    "csv",
    "missing_column",
    "not_text",
    "empty",
    "unknown_role",
    "no_assistant_turn",
    "nothing_to_learn",
    "tools",
    "template",
    "template_leaves_out",
    "special_token",
    "cut_away",
    "unanswered",
    "order",
]


class RowProblemError(Exception):
    """A row cannot be trained on; `problem` is the reason, with the value."""

    def __init__(self, kind: ProblemKind, problem: str) -> None:
        super().__init__(problem)
        self.kind: ProblemKind = kind
        self.problem = problem


def shortened(text: str, limit: int = 60) -> str:
    """Return the beginning of a text, safe to show in one line."""
    piece = text[: limit * 2]
    clean = "".join(letter if letter.isprintable() else " " for letter in piece).strip()
    return clean if len(clean) <= limit and len(text) <= limit * 2 else f"{clean[: limit - 1]}…"


# Far beyond any max_length (some two million tokens), and small enough that a few copies of it do no harm.
MAX_ROW_BYTES = 8 << 20


class Position(NamedTuple):
    """Where a row begins."""

    row: int  # from 0
    line: int  # from 1
    offset: int  # in the UTF-8 stream


class Record(NamedTuple):
    """One row: its columns, or why it could not be read."""

    row: int
    line: int | None  # None where the source has no lines
    value: Mapping[str, Any] | None
    raw: bytes | str = b""  # as it is in the file; empty for sources without text
    offset: int = 0
    kind: ProblemKind | None = None
    problem: str = ""

    @property
    def size_bytes(self) -> int:
        """About what it holds in memory; sources without text have it counted."""
        return len(self.raw) if self.raw else _text_length(self.value)

    def sample(self, limit: int = 120) -> str:
        """Return how the row begins, on one line."""
        if not self.raw and self.value is not None:
            return shortened(json.dumps(self.value, ensure_ascii=False, default=str)[: limit * 4], limit)
        raw = self.raw[: limit * 4]
        return shortened(raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw, limit)


def _text_length(value: Any) -> int:
    length = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            length += len(item)
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return length


def bad_record(position: Position, raw: bytes, kind: ProblemKind, problem: str) -> Record:
    """Return a row that could not be read."""
    return Record(position.row, position.line, None, raw[:1000], position.offset, kind, problem)


def not_utf8(error: UnicodeDecodeError, before: int = 0) -> str:
    """Return why text is not read whose decoding failed, `before` bytes after the beginning of its row."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02X} at position {before + error.start + 1}"


def too_long(size_bytes: int) -> str:
    """Return why a row of that size is not read."""
    return f"the row is {size_bytes / 1e6:,.0f} MB long; {MAX_ROW_BYTES >> 20} MiB is the most"


def describe_kind(value: Any) -> str:
    """Return what a value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "an infinite number"
    if isinstance(value, int | float):
        return f"the number {shortened(str(value)[:40], 20)}"
    if isinstance(value, list | tuple):
        return "a list"
    return "an object" if isinstance(value, Mapping) else "text" if isinstance(value, str) else type(value).__name__


class SourceForm(NamedTuple):
    """What rows come in; of several files, that of the first."""

    kind: str  # such as "json_lines"; exported scripts have their own code for each
    label: str  # the same for people
    encoding: str = "utf-8"  # of Python's codec; a mark at the beginning is not part of it
    delimiter: str = ""  # between the cells of a table
    is_gzipped: bool = False

    @property
    def words(self) -> str:
        """The whole form for people."""
        encoding = "" if self.encoding == "utf-8" else f", {self.encoding.upper()}"
        return f"{self.label}{encoding}{', gzip' if self.is_gzipped else ''}"


class RowSource(Protocol):
    """Something that rows come from, in order and again."""

    name: str  # safe to show
    form: SourceForm
    kind: str  # the same in words, such as "JSON Lines, gzip"
    columns: tuple[str, ...]  # where the source itself names them; else empty

    @property
    def notes(self) -> Sequence[str]:
        """What is odd about it as a whole; complete once it has been read to its end."""

    @property
    def size_bytes(self) -> int | None:
        """Of the file or files."""

    @property
    def bytes_read(self) -> int:
        """How far the reading under way has come."""

    @property
    def total_rows(self) -> int | None:
        """Rows, where that is known; once it has been read to its end, it is."""

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Yield rows from `first_row` on."""

    def approach(self, first_row: int, /) -> Iterator[None]:
        """Do in small steps what `records(first_row)`, asked next, has to do before its first row."""

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield rows with these numbers, which ascend, in one pass; None for rows that are passed over."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the content does, as far as size, time and samples show."""


class SeveralSources:
    """Several sources of rows, read as if they were one; each row comes with the number of its source."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self._sources = sources

    @property
    def total_rows(self) -> int | None:
        """Rows, once they are known."""
        return _known_sum(source.total_rows for source in self._sources)

    @property
    def size_bytes(self) -> int | None:
        return _known_sum(source.size_bytes for source in self._sources)

    @property
    def bytes_read(self) -> int:
        return sum(source.bytes_read for source in self._sources)

    def fingerprint(self) -> str:
        """Return a hash that changes when the content of any source does."""
        prints = [source.fingerprint() for source in self._sources]
        return prints[0] if len(prints) == 1 else hashlib.sha256(" ".join(prints).encode()).hexdigest()

    def numbered(self, first_row: int = 0) -> Iterator[tuple[int, Record]]:
        """Yield rows from `first_row` on."""
        start = 0
        for number, source in enumerate(self._sources):
            if source.total_rows is None or start + source.total_rows > first_row:
                for record in source.records(max(0, first_row - start)):
                    yield number, record._replace(row=start + record.row) if start else record
            start += source.total_rows or 0

    def approach(self, first_row: int, /) -> Iterator[None]:
        """Do in small steps what `numbered(first_row)`, called next, has to do before its first row."""
        start = 0
        for source in self._sources:
            if source.total_rows is None or start + source.total_rows > first_row:
                yield from source.approach(max(0, first_row - start))
            if source.total_rows is None or start + source.total_rows > first_row:
                return
            start += source.total_rows

    def pick_numbered(self, rows: Sequence[int]) -> Iterator[tuple[int, Record] | None]:
        """Yield rows with these numbers, which ascend, in one pass; None for rows that are passed over."""
        start = 0
        waiting = deque(rows)
        for number, source in enumerate(self._sources):
            total = source.total_rows
            here = [row - start for row in waiting if total is None or row < start + total]
            for record in source.pick(here) if here else ():
                if record is None:
                    yield None
                    continue
                waiting.popleft()
                yield number, record._replace(row=start + record.row)
            start += source.total_rows or 0


def _known_sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def picked(records: Iterator[Record], rows: Sequence[int]) -> Iterator[Record | None]:
    """Pick rows, which ascend, out of records that begin at or before the first of them."""
    wanted = frozenset(rows)
    for record in records:
        yield record if record.row in wanted else None
        if record.row >= rows[-1]:
            return
