"""Rows of an Excel workbook: of its first sheet with rows, streamed, with the text that a CSV export would have."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

from loratory.engine.data.files.access import UnpackedFile, open_regular, shown_name
from loratory.engine.data.files.base import BinaryRows, require_unique
from loratory.engine.data.files.columnar import in_bounded_steps
from loratory.engine.data.records import MAX_ROW_BYTES, Position, Record, RowProblemError, SourceForm, lookup
from loratory.engine.errors import DatasetError
from loratory.engine.processes.limits import TimeLimitError, memory_limited, time_limit

_OPEN_SECONDS = 10.0  # of computing: the strings of a workbook of the largest size take about half of it
_OPEN_BYTES = 1 << 30
_ROWS_AT_ONCE = 100
_MOST_ROWS = 1_048_576  # of a sheet, as in Excel; a larger row number would mean as many blank rows


class XlsxRows(BinaryRows):
    """An Excel workbook."""

    label = "Excel"
    endings = (".xlsx",)
    magics = (b"PK\x03\x04",)
    form = SourceForm("xlsx", "Excel workbook")
    bytes_read = 0
    total_rows: int | None = None

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        super().__init__(path, unpacked)
        self._header: dict[int, str] = {}
        with self._explain_errors(), self._open_book() as book:
            titles = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"]
            for self._title in titles:
                _, cells = next(self._rows(book), (0, {}))
                self._header = {column: text.strip() for column, text in cells.items() if text.strip()}
                if self._header:
                    break
            else:
                raise DatasetError(f"The sheets of {self.name} are empty.", "Choose a workbook with rows in it.")
        self.columns = tuple(self._header.values())
        require_unique(self.columns, self.name)
        if len(titles) > 1:
            title = shown_name(self._title, 40)
            self.notes = [f"Only the sheet {title} is read; the workbook has {len(titles):,} sheets."]

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows, with None for each before and between them, as all of those are read again."""
        numbers = lookup(rows)
        with self._explain_errors(), self._open_book() as book:
            for record in self._read(book):
                yield record if record.row in numbers else None
                if record.row == rows[-1]:
                    return

    def _read(self, book: Any) -> Iterator[Record]:
        row = -1
        for row, (line, cells) in enumerate(self._rows(book), start=-1):
            if row < 0:  # the header
                continue
            self.bytes_read = self._file.tell()
            value = {name: cells.get(column, "") for column, name in self._header.items()}
            size = sum(map(len, value.values()))
            if size > MAX_ROW_BYTES:
                yield Record.bad(Position(row, line, 0), b"", RowProblemError.too_long(size))
            else:
                yield Record(row, line, value)
        self.total_rows, self.bytes_read = row + 1, self.size_bytes or 0

    def _rows(self, book: Any) -> Iterator[tuple[int, dict[int, str]]]:
        """Yield rows that are not blank: their numbers in the sheet, and texts of cells by the numbers of columns."""
        sheet = book[self._title]
        sheet.reset_dimensions()  # what the file gives may be wrong
        rows = sheet.iter_rows(max_row=_MOST_ROWS, values_only=True)
        pieces = in_bounded_steps(iter(lambda: list(itertools.islice(rows, _ROWS_AT_ONCE)) or None, None))
        for line, cells in enumerate(itertools.chain.from_iterable(pieces), start=1):
            texts = {column: _text(value) for column, value in enumerate(cells) if value is not None}
            if any(map(str.strip, texts.values())):
                yield line, texts

    @contextmanager
    def _open_book(self) -> Iterator[Any]:
        from openpyxl import load_workbook

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which are not read
            with open_regular(self._path) as file:
                with memory_limited(_OPEN_BYTES), time_limit(_OPEN_SECONDS):
                    book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
                self._file = file
                yield book

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except DatasetError:
            raise
        except (MemoryError, TimeLimitError) as error:
            raise DatasetError(
                f"The sheets or strings of {self.name} are too large, or decompress to far more than their size on disk.",
                "Export the rows as CSV or JSONL, and choose that file.",
            ) from error
        except Exception as error:  # readers of XML and zip archives raise nearly anything
            raise DatasetError(
                f"{self.name} cannot be read as an Excel workbook: it is damaged, encrypted or another kind of zip archive.",
                "Save it again as .xlsx, or export the rows as CSV.",
            ) from error


def _text(value: Any) -> str:
    """Return a cell as in a CSV export."""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds") if value.time() != datetime.min.time() else value.date().isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)
