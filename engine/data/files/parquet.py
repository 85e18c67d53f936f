"""Rows of a Parquet file, a few at a time, in bounded memory for any compression ratio."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.data.files.access import UnpackedFile
from engine.data.files.arrow_rows import ColumnarRows, batch_records, in_bounded_steps
from engine.data.records import Record, SourceForm, lookup

_BATCH_ROWS = 256
_BATCH_BYTES = 64 << 20  # of a batch of rows of average size


class ParquetRows(ColumnarRows):
    """A Parquet file."""

    label = "Parquet"
    endings = (".parquet",)
    magics = (b"PAR1",)
    form = SourceForm("parquet", "Parquet")
    what_is_smaller = "pages and row groups"

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        super().__init__(path, unpacked)
        with self._errors_explained(), self._open() as file:
            self._metadata = file.metadata
            self.columns = tuple(file.schema_arrow.names)
        self._groups = [self._metadata.row_group(group) for group in range(self._metadata.num_row_groups)]
        self._rows: int = self._metadata.num_rows

    @property
    def total_rows(self) -> int | None:
        return self._rows

    @property
    def bytes_read(self) -> int:
        return round((self.size_bytes or 0) * self._rows_read / max(1, self._rows))

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows; groups that hold none of them are not read."""
        numbers = lookup(rows)
        first = 0  # row of the group
        with self._errors_explained():
            for number, group in enumerate(self._groups):
                here = rows[bisect_left(rows, first) : bisect_left(rows, first + group.num_rows)]
                for record in self._group_records(number, first, here[0]) if here else ():
                    self._rows_read = record.row
                    yield record if record.row in numbers else None
                    if record.row == here[-1]:
                        break
                first += group.num_rows

    def _group_records(self, number: int, row: int, first_row: int) -> Iterator[Record]:
        """Yield rows of a group whose first one is `row`, from `first_row` on."""
        group = self._groups[number]
        at_once = int(_BATCH_BYTES / max(1.0, group.total_byte_size / max(1, group.num_rows)))
        chunks = [group.column(column) for column in range(group.num_columns)]
        # What rows share stays shared; other types have no dictionary in memory.
        shared = [
            chunk.path_in_schema
            for chunk in chunks
            if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
        ]
        with self._open(self._metadata, shared) as reader:
            batches = reader.iter_batches(batch_size=max(1, min(_BATCH_ROWS, at_once)), row_groups=[number])
            for batch in in_bounded_steps(batches):
                skip = max(0, first_row - row)
                if skip < batch.num_rows:
                    for piece in in_bounded_steps(batch_records(batch.slice(skip), row + skip)):
                        yield from piece
                row += batch.num_rows

    def _open(self, metadata: Any = None, shared: Sequence[str] = ()) -> Any:
        # Imported here: half the programs that import this module never see a Parquet file.
        from pyarrow.parquet import ParquetFile

        # Else a whole row group is read, and held together with what is made of it.
        reading = {"memory_map": False, "pre_buffer": False, "buffer_size": 1 << 20}
        return ParquetFile(self._path, metadata=metadata, read_dictionary=list(shared), **reading)
