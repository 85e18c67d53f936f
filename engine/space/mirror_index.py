"""What a mirror has in its bucket: an index of each run with its short files, and the longer ones under their own paths.

An index is put after the files that it names, and a file is removed after the last index that names it. A checkpoint has
paths of its own, so a reader finds a whole one at any moment; other files are replaced in place.

    mirror/space.json          whose bucket this is
    mirror/lab.json            index of people and settings
    runs/<owner>/<run>.json    index of a run
    home/<path>                a file of the home
"""

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, StringConstraints

from engine.accounts.backup import HOME_FILES, belongs_to_backup
from engine.accounts.limits import DATABASE_FILE
from engine.files import read_model
from engine.hub_bucket import RunBucket
from engine.paths import LoratoryHome
from engine.runs.run import RUN_ID

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

MIRROR = "mirror"
RUNS = "runs"
HOME = "home"
UPLOADS = "uploads"
CHECKPOINTS = "/checkpoints/"  # in the path of a file of one
MARKER = "space.json"
HOME_INDEX = f"{MIRROR}/lab.json"
_EARLIER_HOME_INDEX = f"{MIRROR}/home.json"

MOST_FILES = 5_000  # of one index
_LARGEST_INDEX_BYTES = 100_000_000  # that many short files
INCOMING = ".mirror-"  # begin of the names of folders for what arrives
_MOST_INDEXES = 10_000
_LONGEST_PATH, _LONGEST_NAME, _DEEPEST = 400, 255, 12  # in characters, bytes and names

_RUN_INDEX = re.compile(rf"{RUNS}/[A-Za-z0-9_-]{{1,64}}/{RUN_ID.pattern}\.json")
_VOTES = re.compile(r"votes/[A-Za-z0-9_-]{1,64}/votes\.jsonl")
_UNIT = re.compile(r"(runs/[^/]+/[^/]+/(?:checkpoints/[^/]+|adapter))/.+")


class StoredFile(BaseModel, frozen=True):
    """A file below `home/`, as it was when it was described; one without a hash may be newer."""

    size: int = Field(ge=0)
    changed: int = Field(ge=0, lt=2**63)  # when, in nanoseconds
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None


class Index(BaseModel, frozen=True):
    """The files of a run, or those of people and settings, by their path below the home."""

    format: Literal[2]
    files: dict[str, str | StoredFile] = Field(max_length=MOST_FILES)  # the text of a short one

    @property
    def stored(self) -> dict[str, StoredFile]:
        """The files that it does not have itself."""
        return {path: file for path, file in self.files.items() if isinstance(file, StoredFile)}


class _EarlierIndex(BaseModel):
    """An index whose files are below `data/`, by their hashes."""

    format: Literal[1] = 1
    files: dict[str, object]


class Marker(BaseModel, frozen=True):
    """`mirror/space.json`: the Space whose bucket this is, and the process of it that writes there."""

    space: str
    instance: str


def index_of(owner: str, run_id: str) -> str:
    """Return the name of a run's index: its folder below the home, with `.json`."""
    return f"{RUNS}/{owner}/{run_id}.json"


def may_name(index: str, path: str) -> bool:
    """Whether an index may name a path: of a run its files and uploads of its owner, or people and settings."""
    if index == HOME_INDEX:
        return path in (DATABASE_FILE, *HOME_FILES) or _VOTES.fullmatch(path) is not None
    names = path.split("/")
    is_plain = len(path) <= _LONGEST_PATH and len(names) <= _DEEPEST and all(map(_is_plain, names))
    if path.startswith(f"{index.removesuffix('.json')}/"):
        return is_plain and all(map(belongs_to_backup, names[3:]))
    return is_plain and path.startswith(f"{UPLOADS}/{index.split('/')[1]}/")


def _is_plain(name: str) -> bool:
    is_hidden = name.startswith(".") or not name
    return not is_hidden and name.isprintable() and "\\" not in name and len(name.encode()) <= _LONGEST_NAME


def unit_of(path: str) -> str:
    """Return what is useless without a file: its checkpoint, the adapter, or the file alone."""
    match = _UNIT.fullmatch(path)
    return match[1] if match else path


class Contents(NamedTuple):
    """What is in the bucket."""

    stored: "dict[str, BucketFile]"  # by their path below `home/`
    indexes: dict[str, Index]  # by name: people and settings, then runs, the newest first
    unreadable: tuple[str, ...]  # names of other indexes
    earlier: tuple[str, ...]  # names of indexes that an earlier version put there


def read_contents(bucket: RunBucket, home: LoratoryHome) -> Contents:
    """List a bucket and read all its indexes.

    Raises:
        EngineError: If the bucket cannot be read, or holds too much.
    """
    stored = bucket.list(HOME)
    files = {f"{folder}/{name}": file for folder in (MIRROR, RUNS) for name, file in bucket.list(folder).items()}
    runs = sorted(filter(_RUN_INDEX.fullmatch, files), key=lambda name: name.split("/")[2], reverse=True)
    names = [HOME_INDEX, *runs] if HOME_INDEX in files else runs
    readable = [name for name in names[:_MOST_INDEXES] if files[name].size <= _LARGEST_INDEX_BYTES]
    with tempfile.TemporaryDirectory(prefix=INCOMING, dir=home.root) as folder:
        bucket.get([(files[name], Path(folder, name)) for name in readable])
        read = {name: read_model(Path(folder, name), Index) for name in readable}
        indexes = {name: index for name, index in read.items() if index is not None}
        refused = [name for name in names if name not in indexes]
        earlier = [name for name in refused if read_model(Path(folder, name), _EarlierIndex) is not None]
    unreadable = [name for name in refused if name not in earlier]
    earlier += [_EARLIER_HOME_INDEX] if _EARLIER_HOME_INDEX in files else []
    return Contents(stored, indexes, tuple(unreadable), tuple(earlier))
