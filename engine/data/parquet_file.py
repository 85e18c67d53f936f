"""Rows of a Parquet file, a few at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.data.access import open_regular, shown_name
from engine.data.records import MAX_ROW_BYTES, Record, too_long
from engine.data.row_source import fingerprint_of
from engine.errors import DatasetError

PARQUET_MAGIC = b"PAR1"

_BATCH_ROWS = 256
_MAX_FOOTER_BYTES = 64 << 20


class ParquetRows:
    """A Parquet file.

    Args:
        path: A regular file that begins with PARQUET_MAGIC.

    Raises:
        DatasetError: If it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.name = shown_name(path.name)
        self.kind = "Parquet"
        self.notes: tuple[str, ...] = ()
        self._path = path
        with self._open() as file:
            self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)
            self._group_rows: list[int] = [
                file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)
            ]
        self.size_bytes: int | None = path.stat().st_size
        self._rows_read = 0

    @property
    def total_rows(self) -> int | None:
        return sum(self._group_rows)

    @property
    def bytes_read(self) -> int:
        return round((self.size_bytes or 0) * self._rows_read / max(1, sum(self._group_rows)))

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Rows from `first_row` on."""
        start = 0  # of the row group
        groups = []
        for group, rows in enumerate(self._group_rows):
            if start + rows > first_row:
                groups = list(range(group, len(self._group_rows)))
                break
            start += rows
        if not groups:
            return
        row = start
        with self._open() as file:
            try:
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
                    skip = max(0, first_row - row)
                    if skip < batch.num_rows:
                        for offset, record in enumerate(_records(batch.slice(skip), row + skip)):
                            self._rows_read = row + skip + offset
                            yield record
                    row += batch.num_rows
            except (OSError, ValueError) as error:  # pyarrow's errors are of these
                raise self._damaged() from error

    def fingerprint(self) -> str:
        return fingerprint_of(self._path)

    def _open(self) -> Any:
        # Imported here: half the programs that import this module never see a Parquet file.
        from pyarrow.parquet import ParquetFile

        with open_regular(self._path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            tail = file.read(8)
        if tail[4:] != PARQUET_MAGIC or int.from_bytes(tail[:4], "little") > min(size, _MAX_FOOTER_BYTES):
            raise self._damaged()
        try:
            return ParquetFile(self._path, memory_map=False)
        except (OSError, ValueError) as error:
            raise self._damaged() from error

    def _damaged(self) -> DatasetError:
        return DatasetError(
            f"{self.name} is a Parquet file that is cut off or damaged.", "Download or export it again."
        )


def _records(batch: Any, first_row: int) -> Iterator[Record]:
    if batch.nbytes <= MAX_ROW_BYTES:
        for row, value in enumerate(batch.to_pylist(), start=first_row):
            yield Record(row, None, value)
        return
    for offset in range(batch.num_rows):
        row = batch.slice(offset, 1)
        if row.nbytes > MAX_ROW_BYTES:
            yield Record(first_row + offset, None, None, kind="too_long", problem=too_long(row.nbytes))
        else:
            yield Record(first_row + offset, None, row.to_pylist()[0])
