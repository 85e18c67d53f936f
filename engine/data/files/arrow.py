"""Rows of Arrow files and streams, Feather among them, a record batch at a time."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.data.files.access import UnpackedFile
from engine.data.files.arrow_rows import ColumnarRows, batch_records, in_bounded_steps
from engine.data.records import Record, SourceForm, lookup

_FILE_MAGIC = b"ARROW1"


class ArrowRows(ColumnarRows):
    """An Arrow file, or a stream, which gives the number of its rows when it has been read to its end."""

    label = "Arrow"
    endings = (".arrow", ".feather")
    magics = (_FILE_MAGIC, b"\xff\xff\xff\xff")
    form = SourceForm("arrow", "Arrow")
    article = "an"
    what_is_smaller = "record batches"
    total_rows: int | None = None
    bytes_read = 0

    def __init__(self, path: Path, unpacked: UnpackedFile | None = None) -> None:
        super().__init__(path, unpacked)
        with self._errors_explained(), self._open() as (reader, _):
            self.columns = tuple(reader.schema.names)
            if hasattr(reader, "count_rows"):  # the file has the places of its batches
                self.total_rows = reader.count_rows()

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows; what comes before them is read, and not written out."""
        numbers = lookup(rows)
        first = 0  # row of the batch
        with self._errors_explained(), self._open() as (reader, source):
            for batch in in_bounded_steps(_batches(reader)):
                self.bytes_read = source.tell()
                end = first + batch.num_rows
                here = rows[bisect_left(rows, first) : bisect_left(rows, end)]
                if here:
                    batch.validate(full=True)  # offsets in the file are not used before they are checked
                    pieces = in_bounded_steps(batch_records(batch.slice(here[0] - first), here[0]))
                    for record in (record for piece in pieces for record in piece):
                        yield record if record.row in numbers else None
                        if record.row == here[-1]:
                            break
                first = end
                if not rows[bisect_left(rows, end) :]:
                    return
        self.total_rows = first

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        import pyarrow

        with pyarrow.OSFile(str(self._path)) as source:
            is_file = source.read(len(_FILE_MAGIC)) == _FILE_MAGIC
            source.seek(0)
            yield (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source), source


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "get_batch"):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)
