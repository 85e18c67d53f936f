"""What a kind of file is: its endings, how its content is recognized, and what cuts it into rows."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.data.files.access import UnpackedFile, shown_name
from engine.data.files.text_stream import TextStream
from engine.data.records import Position, Record, RowSource, SourceForm
from engine.errors import DatasetError


@dataclass(frozen=True)
class BinaryKind:
    """A kind whose files begin with fixed bytes.

    Attributes:
        label: What people call it.
        endings: Of file names.
        magics: First bytes of its files.
        open: Opens a file, and what it holds unpacked where it is gzipped.
    """

    label: str
    endings: tuple[str, ...]
    magics: tuple[bytes, ...]
    open: Callable[[Path, UnpackedFile | None], RowSource]


class TextStart(NamedTuple):
    """How a text file begins, by which its kind is recognized."""

    stream: TextStream
    head: bytes  # without leading white space
    named: "TextKind | BinaryKind | None"  # the kind that the ending of its name means


@dataclass(frozen=True)
class TextKind:
    """A kind of text file.

    Attributes:
        label: What people call it.
        endings: Of file names.
        recognize: Returns the reader of a file of this kind; None for any other.
        trusts_ending: Whether its endings decide, whatever a file begins with.
    """

    label: str
    endings: tuple[str, ...]
    recognize: Callable[[TextStart], "TextReader | None"]
    trusts_ending: bool = False


def require_unique(columns: Sequence[str], name: str) -> None:
    """Require that the header of a table names each column once.

    Raises:
        DatasetError: With the column that it names twice.
    """
    twice = next((column for column, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise DatasetError(
            f"The column {shown_name(twice)!r} appears twice in the header of {name}.", "Rename one of the two."
        )


class TextReader(ABC):
    """Cuts one text file into its rows."""

    form: SourceForm
    columns: tuple[str, ...] = ()  # where the file itself names them
    notes: Sequence[str] = ()  # what is odd about the file as a whole, once it has been read to its end

    @abstractmethod
    def read(self, start: Position) -> Iterator[Record]:
        """Yield rows from `start` on; `Position(0, 1, 0)` is the beginning of the file."""

    def pick(self, start: Position, wanted: frozenset[int]) -> Iterator[Record | None]:
        """Yield rows from `start` on, with None in place of those that are not wanted."""
        return (record if record.row in wanted else None for record in self.read(start))

    def positions(self, start: Position) -> Iterator[Position]:
        """Yield where rows begin, from `start` on."""
        return (Position(record.row, record.line or 1, record.offset) for record in self.read(start))
