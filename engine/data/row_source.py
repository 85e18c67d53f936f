"""What every source of rows can do, and several of them read as one."""

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from engine.data.access import open_regular
from engine.data.records import Record

_FINGERPRINT_BLOCK_BYTES = 1 << 16


SourceKind = Literal[
    "json_lines", "list_lines", "json_array", "json_objects", "delimited", "lines", "paragraphs", "parquet", "hub"
]
_KIND_WORDS: dict[SourceKind, str] = {
    "json_lines": "JSON Lines",
    "list_lines": "lists of turns, one on each line",
    "json_array": "JSON array",
    "json_objects": "JSON objects over several lines",
    "delimited": "CSV",
    "lines": "plain text, a row for each line",
    "paragraphs": "plain text, a row for each paragraph",
    "parquet": "Parquet",
    "hub": "Hub dataset",
}
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}


class SourceForm(NamedTuple):
    """What rows come in; of several files, that of the first."""

    kind: SourceKind
    encoding: str = "utf-8"  # of Python's codec; a mark at the beginning is not part of it
    delimiter: str = ""  # between the cells of a table
    is_gzipped: bool = False

    @property
    def words(self) -> str:
        """The same for people."""
        delimiter = f", {DELIMITERS[self.delimiter]} between cells" if self.delimiter else ""
        encoding = "" if self.encoding == "utf-8" else f", {self.encoding.upper()}"
        return f"{_KIND_WORDS[self.kind]}{delimiter}{encoding}{', gzip' if self.is_gzipped else ''}"


class RowSource(Protocol):
    """Something that rows come from, in order and again."""

    name: str  # safe to show
    form: SourceForm
    kind: str  # the same in words, such as "JSON Lines, gzip"
    size_bytes: int | None
    columns: tuple[str, ...]  # where the source itself names them; else empty

    @property
    def notes(self) -> Sequence[str]:
        """What is odd about it as a whole; complete once it has been read to its end."""

    @property
    def bytes_read(self) -> int:
        """How far the reading under way has come."""

    @property
    def total_rows(self) -> int | None:
        """Rows, where that is known; once it has been read to its end, it is."""

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Rows from `first_row` on."""

    def approach(self, first_row: int, /) -> Iterator[None]:
        """Do in small steps what `records(first_row)`, asked next, has to do before its first row."""

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Rows with these numbers, which ascend, in one pass; None for rows that are passed over."""

    def fingerprint(self) -> str:
        """Changes when the content does, as far as a quick look tells."""


def numbered_rows(sources: Sequence[RowSource], first_row: int = 0) -> Iterator[tuple[int, Record]]:
    """Rows of several sources as if they were one, from `first_row` on, each with the number of its source."""
    start = 0
    for number, source in enumerate(sources):
        if source.total_rows is None or start + source.total_rows > first_row:
            for record in source.records(max(0, first_row - start)):
                yield number, record._replace(row=start + record.row) if start else record
        start += source.total_rows or 0


def approach_row(sources: Sequence[RowSource], first_row: int) -> Iterator[None]:
    """Do in small steps what `numbered_rows` has to do before it yields `first_row`."""
    start = 0
    for source in sources:
        if source.total_rows is None or start + source.total_rows > first_row:
            yield from source.approach(max(0, first_row - start))
        if source.total_rows is None or start + source.total_rows > first_row:
            return
        start += source.total_rows


def picked_rows(sources: Sequence[RowSource], rows: Sequence[int]) -> Iterator[tuple[int, Record] | None]:
    """Some rows of several sources as if these were one: see `RowSource.pick`."""
    start = 0
    waiting = deque(rows)
    for number, source in enumerate(sources):
        total = source.total_rows
        here = [row - start for row in waiting if total is None or row < start + total]
        for record in source.pick(here) if here else ():
            if record is None:
                yield None
                continue
            waiting.popleft()
            yield number, record._replace(row=start + record.row)
        start += source.total_rows or 0


def picked(records: Iterator[Record], rows: Sequence[int]) -> Iterator[Record | None]:
    """Pick rows, which ascend, out of records that begin at or before the first of them."""
    wanted = frozenset(rows)
    for record in records:
        yield record if record.row in wanted else None
        if record.row >= rows[-1]:
            return


def fingerprint_of(path: Path) -> str:
    """Sha256 over a file's size, time of change, and its first, middle and last 64 KiB."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(f"{size} {path.stat().st_mtime_ns}".encode())
        middle, end = (size - _FINGERPRINT_BLOCK_BYTES) // 2, size - _FINGERPRINT_BLOCK_BYTES
        for offset in sorted({0, max(0, middle), max(0, end)}):
            file.seek(offset)
            digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()
