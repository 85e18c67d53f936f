"""What a mirror has in its bucket: contents by their hash, and for each run an index that names them.

An index is put after everything that it names, and contents are removed after the last index that names them, so a reader
finds a whole run at any moment: the present one or the one before.

    mirror/space.json          whose bucket this is
    mirror/home.json           index of people and settings
    runs/<owner>/<run>.json    index of a run
    data/<sha256>              contents
"""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

from pydantic import BaseModel, Field, StringConstraints

from engine.accounts.backup import HOME_FILES, belongs_to_backup
from engine.accounts.limits import DATABASE_FILE
from engine.files import read_model
from engine.paths import LoratoryHome
from engine.runs.store import RUN_ID

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

MIRROR = "mirror"
RUNS = "runs"
DATA = "data"
UPLOADS = "uploads"
CHECKPOINTS = "/checkpoints/"  # in the path of a file of one
MARKER = "space.json"
MARKER_NAME = f"{MIRROR}/{MARKER}"
HOME_INDEX = f"{MIRROR}/home.json"

LARGEST_INDEX_BYTES = 8_000_000
MOST_FILES = 5_000  # of one run
INCOMING = ".mirror-"  # begin of the names of folders for what arrives
_MOST_INDEXES = 10_000
_INDEXES_AT_ONCE = 200
_LONGEST_NAME = 400
_DEEPEST = 12

_INDEX = re.compile(rf"{RUNS}/([A-Za-z0-9_-]{{1,64}})/({RUN_ID.pattern})\.json")

_VOTES = re.compile(r"votes/[A-Za-z0-9_-]{1,64}/votes\.jsonl")

_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Bucket(Protocol):
    """What a mirror asks of its bucket; `RunBucket` is one."""

    name: str

    def make(self) -> None: ...
    def list(self, folder: str) -> "dict[str, BucketFile]": ...
    def put(self, files: Mapping[str, bytes | Path]) -> None: ...
    def get(self, files: "Sequence[tuple[BucketFile, Path]]") -> None: ...
    def remove(self, names: Sequence[str]) -> None: ...


class Part(BaseModel, frozen=True):
    """One file below `data/`."""

    sha256: _Sha256
    size: int = Field(ge=0)


class MirroredFile(BaseModel, frozen=True):
    """A file of the home: its text where it is short, or the contents that follow each other in it."""

    text: str | None = None
    parts: tuple[Part, ...] = ()

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.size for part in self.parts) if self.text is None else len(self.text.encode())


class Index(BaseModel, frozen=True):
    """The files of a run, or those of people and settings, by their path below the home."""

    format: Literal[1] = 1
    files: dict[str, MirroredFile] = Field(default={}, max_length=MOST_FILES)

    @property
    def parts(self) -> Iterator[Part]:
        """All contents that it names."""
        return (part for file in self.files.values() for part in file.parts)


class Marker(BaseModel, frozen=True):
    """`mirror/space.json`: the Space whose bucket this is, and the process of it that writes there."""

    space: str
    instance: str


@dataclass(frozen=True)
class RunKey:
    """A run, as indexes are named after it."""

    owner: str
    run_id: str

    @property
    def index(self) -> str:
        """Name of its index."""
        return f"{RUNS}/{self.owner}/{self.run_id}.json"

    @property
    def folder(self) -> str:
        """Its folder below the home."""
        return f"runs/{self.owner}/{self.run_id}"

    @classmethod
    def parse(cls, index: str) -> "RunKey | None":
        """Return the run of an index; None for other names."""
        match = _INDEX.fullmatch(index)
        return cls(match[1], match[2]) if match else None

    def may_have(self, path: str) -> bool:
        """Whether a path in its index is one of its own files, or an upload of its owner."""
        if path.startswith(f"{self.folder}/"):
            return _is_plain(path) and all(map(belongs_to_backup, path.split("/")[3:]))
        return path.startswith(f"{UPLOADS}/{self.owner}/") and _is_plain(path)


def may_be_in_home(path: str) -> bool:
    """Whether a path in the index of people and settings is one of them."""
    return path in (DATABASE_FILE, *HOME_FILES) or _VOTES.fullmatch(path) is not None


def _is_plain(path: str) -> bool:
    """Whether a path stays below the folder that it is joined to, and can be a name there."""
    parts = path.split("/")
    is_bounded = len(path) <= _LONGEST_NAME and len(parts) <= _DEEPEST
    return is_bounded and all(
        part and not part.startswith(".") and part.isprintable() and "\\" not in part for part in parts
    )


def data_name(sha256: str) -> str:
    """Return the name of contents in the bucket."""
    return f"{DATA}/{sha256}"


def named_by(indexes: Iterable[Index]) -> set[str]:
    """Return the hashes of all contents that indexes name."""
    return {part.sha256 for index in indexes for part in index.parts}


class Contents(NamedTuple):
    """What is in the bucket."""

    data: "dict[str, BucketFile]"  # contents by hash
    indexes: dict[str, Index]  # by name, those that can be read
    unreadable: tuple[str, ...]  # names of indexes that cannot


def read_contents(bucket: Bucket, home: LoratoryHome) -> Contents:
    """List a bucket and read all its indexes.

    Raises:
        EngineError: If the bucket cannot be read, or holds too much.
    """
    data = bucket.list(DATA)
    files = {f"{folder}/{name}": file for folder in (MIRROR, RUNS) for name, file in bucket.list(folder).items()}
    runs = sorted(filter(None, map(RunKey.parse, files)), key=lambda key: key.run_id, reverse=True)
    names = [name for name in (HOME_INDEX, *(key.index for key in runs)) if name in files]
    readable = [name for name in names[:_MOST_INDEXES] if files[name].size <= LARGEST_INDEX_BYTES]
    indexes: dict[str, Index] = {}
    for start in range(0, len(readable), _INDEXES_AT_ONCE):
        with tempfile.TemporaryDirectory(prefix=INCOMING, dir=home.root) as folder:
            places = {
                name: Path(folder) / str(number) for number, name in enumerate(readable[start:][:_INDEXES_AT_ONCE])
            }
            bucket.get([(files[name], place) for name, place in places.items()])
            batch = {name: read_model(place, Index) for name, place in places.items()}
        indexes |= {name: index for name, index in batch.items() if index is not None}
    return Contents(data, indexes, tuple(name for name in names if name not in indexes))
