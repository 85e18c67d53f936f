"""The operations on a set: to add one, write its class and name it in `Operation`.

Rows are numbered by the untouched source, and operations in force apply in their order. In JSON, numbers count from 1.
"""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
import regex
from pydantic import BaseModel, Field, PlainSerializer, PlainValidator, model_validator

from loratory.engine.data.records import MAX_ROW_BYTES, Record, one_line
from loratory.engine.errors import DatasetError

REPLACE_SECONDS, REPLACE_LETTERS = 2.0, 8 * MAX_ROW_BYTES  # of computing and of new text, in one row
_RANGE = re.compile(r"\s*([1-9]\d{0,15})\s*(?:-\s*([1-9]\d{0,15})\s*)?")
REMARKS = ("flag", "note")  # kinds that change no row and make no version

RowRanges = tuple[tuple[int, int], ...]  # sorted, apart: first row, and the one after the last, from 0


def parse_rows(value: Any) -> RowRanges:
    """Return the rows that a text such as 1-40,77 means; any other is a ValueError."""
    matches = [_RANGE.fullmatch(part) for part in str(value).split(",")]
    rows = tuple((int(match[1]) - 1, int(match[2] or match[1])) for match in matches if match is not None)
    edges = [edge for bounds in rows for edge in bounds]
    if len(rows) < len(matches) or edges != sorted(edges):
        raise ValueError("rows are written as 1-40,77, ascending from 1")
    return rows


def rows_text(rows: Sequence[tuple[int, int]]) -> str:
    """Return rows as people write them."""
    return ",".join(f"{start + 1}" if end == start + 1 else f"{start + 1}-{end}" for start, end in rows)


def text_of_rows(rows: Iterable[int]) -> str:
    """Return rows, which ascend from 0, as people write them."""
    runs = (list(run) for _, run in groupby(enumerate(rows), lambda item: item[1] - item[0]))
    return rows_text([(run[0][1], run[-1][1] + 1) for run in runs])


def shared_rows(left: RowRanges, right: RowRanges) -> str:
    """Return the first range that both have, as people write it; empty where they have no row in common."""
    pairs = pairwise(sorted((*left, *right)))
    return next((rows_text([(start, min(end, last))]) for (_, end), (start, last) in pairs if start < end), "")


_MaskText = Annotated[str, Field(pattern=r"^\[\w{1,20}\]$")]
Rows = Annotated[RowRanges, PlainValidator(parse_rows), PlainSerializer(rows_text, return_type=str)]


class Editor:
    """Applies operations in force to the rows of a source."""

    def __init__(self, operations: Sequence["Operation"], rows: int) -> None:
        self.excluded, self.held_out = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_)
        self.edits: dict[int, tuple[int, dict[str, Any]]] = {}  # how many replacements came before, and the row
        self.replacements: list[Replace | Mask] = []
        for operation in operations:
            operation.apply(self)

    def apply(self, record: Record) -> Record | None:
        """Return a row as it is now, None where it is left out; a replacement that fails is a DatasetError."""
        row = record.row
        if self.excluded[row]:
            return None
        count, value = self.edits.get(row, (0, record.value))
        for replacement in self.replacements[count:]:
            value = value and replacement.replace_in(value, row)  # an unreadable row waits for an edit
        if value is not record.value:
            record = Record(row, record.line, value)
        return record._replace(is_held_out=True) if self.held_out[row] else record


class _Operation(BaseModel, frozen=True, extra="forbid"):
    kind: str

    def apply(self, editor: Editor) -> None:
        """Tell the editor what it does to rows; some tell nothing."""

    def content(self) -> bytes:
        """Return what it adds to the hash of a version: nothing where it changes no row by itself."""
        return b"" if self.kind in (*REMARKS, "undo") else self.model_dump_json().encode()


class Edit(_Operation, frozen=True):
    """A row has another content."""

    kind: Literal["edit"]
    row: int = Field(ge=1)
    record: dict[str, Any] = Field(min_length=1)

    def apply(self, editor: Editor) -> None:
        editor.edits[self.row - 1] = len(editor.replacements), self.record


class Mark(_Operation, frozen=True):
    """Rows are left out by hand or by a check, are back, are held out whatever `eval_fraction` draws, or have a flag or a note."""

    kind: Literal["exclude", "drop", "include", "split", "flag", "note"]
    rows: Rows
    text: str = Field(default="", max_length=10_000)  # the name of the check, the flag (none where empty), or the note

    def apply(self, editor: Editor) -> None:
        marks = editor.held_out if self.kind == "split" else editor.excluded
        for start, end in self.rows if self.kind not in REMARKS else ():
            marks[start:end] = self.kind != "include"


class Replace(_Operation, frozen=True):
    """A text is replaced in columns of all rows, also within their lists and turns; each reading finds it again."""

    kind: Literal["replace"]
    columns: tuple[str, ...] = ()  # all where none is named
    pattern: str = Field(min_length=1, max_length=1000)
    is_regex: bool = False
    replacement: str = Field(max_length=1000)  # of a regular expression, with its groups as \1

    @model_validator(mode="after")
    def _require_usable(self) -> Self:
        try:
            if self.is_regex:  # with | it matches, and its groups are looked up
                regex.compile(f"{self.pattern}|").sub(self.replacement, "")
        except (regex.error, IndexError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(f"the pattern {one_line(self.pattern)} cannot be used ({error})") from error
        return self

    def apply(self, editor: Editor) -> None:
        editor.replacements.append(self)

    def replace_in(self, record: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """Return a row with the text replaced, or the same object; taking too long or growing too much is a DatasetError."""
        pattern = regex.compile(self.pattern if self.is_regex else regex.escape(self.pattern))  # which it caches
        ends, left = time.process_time() + REPLACE_SECONDS, REPLACE_LETTERS

        def expand(match: regex.Match[str]) -> str:
            nonlocal left
            group = max(map(len, (match[0], *match.groups("")))) if self.is_regex else 0
            left -= len(self.replacement) + self.replacement.count("\\") * group  # at most, and before it is made
            if left < 0:
                raise OverflowError
            return match.expand(self.replacement) if self.is_regex else self.replacement

        def replaced(value: Any) -> Any:
            if isinstance(value, str):
                # The clock is that of `regex`.
                return pattern.sub(expand, value, timeout=max(ends - time.process_time(), 0.001))
            if isinstance(value, Mapping):
                return {key: replaced(part) for key, part in value.items()}
            return [replaced(part) for part in value] if isinstance(value, list | tuple) else value

        try:
            changes = {name: replaced(record[name]) for name in self.columns or record if name in record}
        except (TimeoutError, OverflowError) as error:
            why = "adds too much text" if isinstance(error, OverflowError) else f"takes over {REPLACE_SECONDS:g} s"
            what = f"Replacing {one_line(self.pattern)} {why} in row {row + 1:,}."
            raise DatasetError(what, "Undo that operation of the set, and write a simpler pattern.") from None
        return {**record, **changes} if any(changes[name] != record[name] for name in changes) else record


class Mask(_Operation, frozen=True):
    """Texts of some rows, such as personal data, are replaced in all columns, where they are whole words."""

    kind: Literal["mask"]
    values: dict[Annotated[int, Field(ge=1)], dict[str, _MaskText]] = Field(min_length=1)  # by row: texts, and masks
    text: str = Field(default="", max_length=100)  # the name of the check

    @property
    def rows(self) -> RowRanges:
        """The rows that it changes."""
        return tuple((row - 1, row) for row in sorted(self.values))

    def apply(self, editor: Editor) -> None:
        editor.replacements.append(self)

    def replace_in(self, record: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """Return a row with its texts replaced, the longest first, as `Replace` does."""
        for text, mask in sorted(self.values.get(row + 1, {}).items(), key=lambda item: -len(item[0])):
            pattern = rf"(?<!\w){regex.escape(text)}(?!\w)"
            record = Replace.model_construct(pattern=pattern, is_regex=True, replacement=mask).replace_in(record, row)
        return record


class Undo(_Operation, frozen=True):
    """An earlier operation stops being in force; one that is undone in turn is in force again."""

    kind: Literal["undo"]
    id: int = Field(ge=1)


Operation = Annotated[Edit | Mark | Mask | Replace | Undo, Field(discriminator="kind")]
