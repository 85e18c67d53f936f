"""Rows of one text file, with an index of where they begin."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from engine.data.files.access import fingerprint_of, shown_name
from engine.data.files.kinds import TextReader
from engine.data.files.text_stream import TextStream
from engine.data.records import (
    Position,
    Record,
)
from engine.errors import StorageError
from engine.files import write_atomically

STRIDE = 1024


class _Saved(BaseModel):
    v: int = 1
    positions: tuple[Position, ...]
    total_rows: int


class RowIndex:
    """Positions of rows 0, 1024, 2048 …, as far as a file has been read, and the number of rows once its end was seen.

    Args:
        cache_file: Where a finished index is kept; None keeps it nowhere.
    """

    def __init__(self, cache_file: Path | None = None) -> None:
        self._cache_file = cache_file
        self._positions: list[Position] = []
        self.total_rows: int | None = None
        self._load()

    def nearest(self, row: int) -> Position:
        """Return the last known position at or before `row`."""
        place = min(row // STRIDE, len(self._positions) - 1)
        return self._positions[place] if place >= 0 else Position(0, 1, 0)

    @property
    def known_rows(self) -> int:
        """Rows up to which a jump needs no reading ahead."""
        return self.total_rows if self.total_rows is not None else max(0, len(self._positions) - 1) * STRIDE

    @property
    def last(self) -> Position:
        """The furthest known position."""
        return self._positions[-1] if self._positions else Position(0, 1, 0)

    def saw(self, position: Position) -> None:
        """Note a row that was read; rows come in order, and those that are known already change nothing."""
        if position.row == len(self._positions) * STRIDE:
            self._positions.append(position)

    def finish(self, total_rows: int) -> None:
        """Note the end of the file, and keep the index for other processes."""
        if self.total_rows is not None:
            return
        self.total_rows = total_rows
        if self._cache_file is None:
            return
        saved = _Saved(positions=tuple(self._positions), total_rows=total_rows)
        try:
            self._cache_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._cache_file, saved.model_dump_json())
        except (OSError, StorageError):
            return  # a cache that cannot be written costs time, nothing else

    def _load(self) -> None:
        if self._cache_file is None:
            return
        try:
            saved = _Saved.model_validate_json(self._cache_file.read_bytes())
        except (OSError, ValidationError):
            return
        self._positions = list(saved.positions)
        self.total_rows = saved.total_rows


class TextFileRows:
    """Rows of one text file.

    Args:
        stream: The file.
        reader: Cuts it into rows.
        index_folder: Where its row index is kept; None keeps none.
    """

    def __init__(self, stream: TextStream, reader: TextReader, index_folder: Path | None = None) -> None:
        self.name = shown_name(stream.path.name)
        self._stream = stream
        self._reader = reader
        self.size_bytes: int | None = stream.size_bytes
        self.columns = reader.columns
        self.form = reader.form._replace(encoding=stream.encoding, is_gzipped=stream.is_gzipped)
        self.kind = self.form.words
        self._index = RowIndex(index_folder / f"{self.fingerprint()}.rows.json" if index_folder is not None else None)

    @property
    def notes(self) -> Sequence[str]:
        return self._reader.notes

    @property
    def bytes_read(self) -> int:
        return self._stream.bytes_read

    @property
    def total_rows(self) -> int | None:
        return self._index.total_rows

    def records(self, first_row: int = 0) -> Iterator[Record]:
        """Yield rows from `first_row` on; what is passed over is read once, and never again after that."""
        if self.total_rows is not None and first_row >= self.total_rows:
            return
        for _ in self._skim(first_row):
            pass
        row = -1
        for record in self._reader.read(self._index.nearest(first_row)):
            row = record.row
            if row % STRIDE == 0:
                self._index.saw(Position(row, record.line or 1, record.offset))
            if row >= first_row:
                yield record
        if row >= 0 or first_row == 0:
            self._index.finish(row + 1)

    def approach(self, first_row: int, /) -> Iterator[None]:
        """Note where rows begin up to `first_row`, and unpack the file up to there, step by step."""
        yield from self._skim(first_row)
        if self.total_rows is None or first_row < self.total_rows:
            yield from self._stream.approach(self._index.nearest(first_row).offset)

    def pick(self, rows: Sequence[int]) -> Iterator[Record | None]:
        """Yield some rows, in one pass; rows between them are passed over by a jump, where the file allows one."""
        wanted = frozenset(rows)
        waiting = deque(rows)
        while waiting:
            for record in self._reader.pick(self._index.nearest(waiting[0]), wanted):
                yield record
                if record is None:
                    continue
                waiting.popleft()
                if not waiting or (self._stream.seeks and self._index.nearest(waiting[0]).row > record.row):
                    break
            else:
                if self.total_rows is None:  # there are fewer rows; now it is known how many
                    yield from (None for _ in self.records(self._index.known_rows))
                return

    def _skim(self, row: int) -> Iterator[None]:
        """Note where rows begin, up to `row`, without parsing them where the kind allows."""
        if self.total_rows is not None or row < self._index.known_rows + STRIDE:
            return
        for position in self._reader.positions(self._index.last):
            self._index.saw(position)
            if position.row >= row:
                return
            yield

    def fingerprint(self) -> str:
        return fingerprint_of(self._stream.path)
