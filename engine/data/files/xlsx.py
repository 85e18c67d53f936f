"""Rows of an Excel workbook: of its first sheet with rows, streamed, with the text that a CSV export would have.

`openpyxl` reads everything except the rows, which are parsed from their XML one by one. Sizes in the archive are checked
before anything is unpacked, and so is how much of a sheet there may be without the end of a row.
"""

import functools
import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any, BinaryIO

from engine.data.files.access import MAX_RATIO, RATIO_COUNTS_FROM_BYTES, UnpackedFile, open_regular, shown_name
from engine.data.files.base import BinaryRows, require_unique
from engine.data.records import MAX_ROW_BYTES, Position, Record, RowProblemError, SourceForm, lookup
from engine.errors import DatasetError
from engine.processes.limits import TimeLimitError, time_limit

_END_OF_ARCHIVE = b"PK\x05\x06"
_END_BYTES = 22 + 65_535  # with the longest comment
_MAX_LISTING_BYTES = 1 << 20
_CONTENT_TYPES = "[Content_Types].xml"
_SHEETS = "xl/worksheets/"
_OPEN_SECONDS = 10.0  # of computing: the strings of a workbook of the largest size take about half of it
_MAX_STRINGS_BYTES = 64 << 20  # held in memory, as rows refer to them by number
_MAX_PART_BYTES = 4 << 20  # of every other part: styles, relations and the like
_MAX_OPEN_BYTES = 4 * MAX_ROW_BYTES  # of XML without the end of a row
_MAX_OPEN_TAGS = 65_536  # Excel has 16,384 columns


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
        with self._errors_explained(), self._archive() as archive, time_limit(_OPEN_SECONDS):
            sheets = self._open(archive)
        self._header: dict[int, str] = {}
        for self._sheet in sheets.values():
            self._header = self._read_header()
            if self._header:
                break
        else:
            raise DatasetError(f"The sheets of {self.name} are empty.", "Choose a workbook with rows in it.")
        self.columns = tuple(self._header.values())
        require_unique(self.columns, self.name)
        if len(sheets) > 1:
            title = next(title for title, path in sheets.items() if path == self._sheet)
            self.notes = [f"Only the sheet {shown_name(title, 40)} is read; the workbook has {len(sheets):,} sheets."]

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows, with None for each before and between them, as all of those are read again."""
        numbers = lookup(rows)
        for record in self._read():
            yield record if record.row in numbers else None
            if record.row == rows[-1]:
                return

    def _open(self, archive: zipfile.ZipFile) -> dict[str, str]:
        """Return the paths of the sheets that are not hidden, by their titles."""
        import warnings

        from openpyxl.reader.excel import ExcelReader
        from openpyxl.styles.stylesheet import apply_stylesheet
        from openpyxl.worksheet._reader import WorkSheetParser

        self._require_bounded(archive)
        reader = ExcelReader(archive.fp, read_only=True, data_only=True, keep_links=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which are not read
            reader.read_manifest()
            reader.read_strings()
            reader.read_workbook()
            apply_stylesheet(reader.archive, reader.wb)  # distinguishes dates from numbers
        self._parser = functools.partial(
            WorkSheetParser,
            shared_strings=reader.shared_strings,
            data_only=True,
            epoch=reader.wb.epoch,
            date_formats=reader.wb._date_formats,
            timedelta_formats=reader.wb._timedelta_formats,
        )
        # The workbook's own sheets are left alone: for one that does not give its dimensions, they read all of it.
        return {
            sheet.name: relation.target
            for sheet, relation in reader.parser.find_sheets()
            if sheet.state == "visible" and relation.target in archive.namelist()
        }

    def _require_bounded(self, archive: zipfile.ZipFile) -> None:
        from openpyxl.packaging.manifest import Manifest
        from openpyxl.xml.constants import SHARED_STRINGS, WORKSHEET_TYPE
        from openpyxl.xml.functions import fromstring

        parts = archive.infolist()
        names = {part.filename for part in parts}
        if _CONTENT_TYPES not in names or not any(name.startswith(_SHEETS) for name in names):
            raise DatasetError(
                f"{self.name} is a zip archive without the sheets of an Excel workbook.",
                "Export the rows as JSON, JSONL, CSV or Parquet, and choose that file.",
            )
        if archive.getinfo(_CONTENT_TYPES).file_size > _MAX_PART_BYTES or len(names) < len(parts):
            raise self._too_large()
        manifest = Manifest.from_tree(fromstring(archive.read(_CONTENT_TYPES)))
        kinds = {override.PartName.lstrip("/"): override.ContentType for override in manifest.Override}
        for part in parts:
            largest = _MAX_STRINGS_BYTES if kinds.get(part.filename) == SHARED_STRINGS else _MAX_PART_BYTES
            is_sheet = part.filename.startswith(_SHEETS) and kinds.get(part.filename) == WORKSHEET_TYPE
            is_media = part.filename.startswith("xl/media/")
            ratio_counts_from = RATIO_COUNTS_FROM_BYTES if is_sheet else 1 << 20
            grows = part.file_size > ratio_counts_from and part.file_size > MAX_RATIO * max(part.compress_size, 1)
            if grows or (part.file_size > largest and not is_sheet and not (is_media and part.filename not in kinds)):
                raise self._too_large()

    def _read_header(self) -> dict[int, str]:
        """Return names of columns by their numbers; empty for a sheet without rows."""
        _, cells = next(self._rows(), (0, {}))
        return {column: text.strip() for column, text in sorted(cells.items()) if text.strip()}

    def _read(self) -> Iterator[Record]:
        row = -1
        for row, (line, cells) in enumerate(self._rows(), start=-1):
            if row < 0:  # the header
                continue
            value = {name: cells.get(column, "") for column, name in self._header.items()}
            size = sum(map(len, value.values()))
            if size > MAX_ROW_BYTES:
                yield Record.bad(Position(row, line, 0), b"", RowProblemError.too_long(size))
            else:
                yield Record(row, line, value)
        self.total_rows = row + 1

    def _rows(self) -> Iterator[tuple[int, dict[int, str]]]:
        """Yield rows that are not blank: their numbers in the sheet, and texts of cells by the numbers of columns."""
        from openpyxl.worksheet._reader import DATA_TAG, ROW_TAG
        from openpyxl.xml.functions import iterparse

        with self._errors_explained(), self._archive() as archive, archive.open(self._sheet) as stream:
            xml = _GuardedXml(stream)
            size = max(1, archive.getinfo(self._sheet).file_size)
            parser = self._parser(xml)
            rows = None
            for event, element in iterparse(xml, events=("start", "end")):
                if element.tag == DATA_TAG:
                    if event == "end":
                        return
                    rows = element
                elif element.tag == ROW_TAG and event == "end":
                    line, cells = parser.parse_row(element)
                    self.bytes_read = round((self.size_bytes or 0) * xml.bytes_read / size)
                    texts = {cell["column"]: _text(cell["value"]) for cell in cells}
                    if any(map(str.strip, texts.values())):
                        yield line, texts
                    if rows is not None:
                        rows.clear()  # else every row leaves its empty element behind

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with open_regular(self._path) as file:
            _require_short_listing(file)
            with zipfile.ZipFile(file) as archive:
                yield archive

    @contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except DatasetError:
            raise
        except (MemoryError, TimeLimitError, _TooLargeError) as error:
            raise self._too_large() from error
        except Exception as error:  # readers of XML and zip archives raise nearly anything
            raise DatasetError(
                f"{self.name} cannot be read as an Excel workbook: it is damaged, encrypted or another kind of zip archive.",
                "Save it again as .xlsx, or export the rows as CSV.",
            ) from error

    def _too_large(self) -> DatasetError:
        return DatasetError(
            f"The sheets or strings of {self.name} are too large, or decompress to far more than their size on disk.",
            "Export the rows as CSV or JSONL, and choose that file.",
        )


class _TooLargeError(Exception):
    """A sheet or an archive is larger than the limit."""


class _GuardedXml(io.RawIOBase):
    """The XML of a sheet, as long as its rows end soon enough."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.bytes_read = 0
        self._open_bytes = self._open_tags = 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size if 0 <= size <= 1 << 16 else 1 << 16)
        self.bytes_read += len(data)
        end = data.rfind(b"row>")  # of </row>, with any prefix of its namespace
        if end >= 0:
            self._open_bytes = self._open_tags = 0
        self._open_bytes += len(data) - max(0, end)
        self._open_tags += data.count(b"<", max(0, end))
        if self._open_bytes > _MAX_OPEN_BYTES or self._open_tags > _MAX_OPEN_TAGS:
            raise _TooLargeError
        return data


def _require_short_listing(file: BinaryIO) -> None:
    """Refuse an archive that lists so many files that listing them takes long; those with 64-bit listings all do."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES))
    tail = file.read()
    end = tail.rfind(_END_OF_ARCHIVE)
    file.seek(0)
    if end < 0 or end + 16 > len(tail):
        raise ValueError("the archive has no end")
    listing = int.from_bytes(tail[end + 12 : end + 16], "little")
    if listing > _MAX_LISTING_BYTES or tail[max(0, end - 20) :].startswith(b"PK\x06\x07"):
        raise _TooLargeError


def _text(value: Any) -> str:
    """Return a cell as in a CSV export."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime):
        return value.isoformat(" ", "seconds") if value.time() != datetime.min.time() else value.date().isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)
