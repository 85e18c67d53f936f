"""Where rows begin in a file, every thousandth of them: what makes a jump to row 900,000 quick."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from engine.data.records import Position
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
        """The last known position at or before `row`."""
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
