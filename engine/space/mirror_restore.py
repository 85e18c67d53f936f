"""From a mirror back into a home: nothing is believed that does not match its hash, and nothing here is overwritten."""

import contextlib
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from engine.accounts.backup import check_accounts
from engine.accounts.limits import DATABASE_FILE
from engine.errors import AccountError, StorageError
from engine.files import sha256_of, size_and_time, write_atomically
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, read_manifest
from engine.runs.disk import free_bytes
from engine.runs.run import EVENTS_FILE, RunFolder, WorkerRecord
from engine.space.mirror_index import LARGEST_INDEX_BYTES, Bucket, Index, MirroredFile, RunKey, may_be_in_home

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

_KEPT_FREE_BYTES = 1_000_000_000  # for what runs write
_MOST_RUNS = 10_000
_LINKED_BYTES = 1_000_000  # larger files are not copied into their place
_INDEXES_AT_ONCE = 200
_BYTES_AT_ONCE = 500_000_000
_FILES_AT_ONCE = 500
INCOMING = ".mirror-"  # begin of the names of folders for what arrives
_MOST_WORDS = 20  # about what is left out


class Restored(NamedTuple):
    """What came back.

    Attributes:
        runs: How many.
        people: Accounts.
        bytes: Of all files.
        left_out: What is damaged, foreign or too large, in sentences.
    """

    runs: int = 0
    people: int = 0
    bytes: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One paragraph for people; empty where there was nothing."""
        runs = "1 run" if self.runs == 1 else f"{self.runs:,} runs"
        parts = [f"Restored {runs} ({self.bytes / 1e9:.1f} GB)."] if self.runs else []
        more = len(self.left_out) - _MOST_WORDS
        return " ".join([*parts, *self.left_out[:_MOST_WORDS], *([f"And {more:,} more."] if more > 0 else [])])


class Contents(NamedTuple):
    """What is in the bucket.

    Attributes:
        data: Contents by hash.
        indexes: By name, those that can be read.
        unreadable: Names of the others.
    """

    data: "dict[str, BucketFile]"
    indexes: dict[str, Index]
    unreadable: tuple[str, ...]


def read_contents(bucket: Bucket, home: LoratoryHome) -> Contents:
    """List a bucket and read all its indexes.

    Raises:
        EngineError: If the bucket cannot be read, or holds too much.
    """
    data = bucket.list("data")
    named = {f"mirror/{name}": file for name, file in bucket.list("mirror").items() if name == "home.json"}
    runs = {f"runs/{name}": file for name, file in bucket.list("runs").items()}
    ours = sorted((name for name in runs if RunKey.parse(name)), key=lambda name: name.split("/")[2], reverse=True)
    unreadable = list(ours[_MOST_RUNS:])
    named |= {name: runs[name] for name in ours[:_MOST_RUNS]}
    indexes: dict[str, Index] = {}
    for names in _chunks([name for name in named if named[name].size <= LARGEST_INDEX_BYTES], _INDEXES_AT_ONCE):
        with tempfile.TemporaryDirectory(prefix=INCOMING, dir=home.root) as folder:
            places = {name: Path(folder) / str(number) for number, name in enumerate(names)}
            bucket.get([(named[name], place) for name, place in places.items()])
            for name, place in places.items():
                with contextlib.suppress(OSError, ValidationError):
                    indexes[name] = Index.model_validate_json(place.read_bytes())
    unreadable += [name for name in named if name not in indexes]
    return Contents(data, indexes, tuple(unreadable))


def _chunks(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))


class Restorer:
    """Puts what indexes name into a home.

    Args:
        bucket: Where contents come from.
        contents: What is there.
        home: Where they go.
        on_placed: Told the index, the path and the description of each file that is in its place.

    Attributes:
        damaged: Hashes of contents that are not in the bucket, or are others there.
    """

    def __init__(
        self,
        bucket: Bucket,
        contents: Contents,
        home: LoratoryHome,
        on_placed: Callable[[str, str, MirroredFile], None],
    ) -> None:
        self._bucket = bucket
        self._contents = contents
        self._home = home
        self._left_out: list[str] = []
        self._bytes = self._runs = self._people = 0
        self._verified: set[str] = set()  # contents that arrived whole
        self._on_placed = on_placed
        self.damaged: set[str] = set()

    def restore(self) -> Restored:
        """Restore people and settings, then runs, the newest first.

        Raises:
            EngineError: If the bucket cannot be read, or the home cannot be written; what is there by then is whole.
        """
        indexes = self._contents.indexes
        for name in self._contents.unreadable:
            self._left_out.append(
                f"{name} in the bucket cannot be read and was left out; remove it there if this lasts."
            )
        keys = {name: key for name in indexes if (key := RunKey.parse(name)) is not None}
        ordered = sorted(keys, key=lambda name: keys[name].run_id, reverse=True)
        try:
            with tempfile.TemporaryDirectory(prefix=INCOMING, dir=self._home.root) as folder:
                self._incoming = Path(folder)
                for name in indexes:
                    if name not in keys:
                        self._restore_home(name, indexes[name])
                for batch in self._batches(ordered, indexes):
                    self._fetch(indexes[name] for name in batch)
                    for name in batch:
                        self._restore_run(name, keys[name], indexes[name])
                    self._verified.clear()
                    for path in self._incoming.iterdir():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise StorageError(f"The mirror cannot be restored ({error.strerror}).", "Free some space.") from error
        return Restored(self._runs, self._people, self._bytes, tuple(self._left_out))

    def _batches(self, names: list[str], indexes: Mapping[str, Index]) -> Iterator[list[str]]:
        """Yield runs that are fetched together, and leave out those for which the disk has no room."""
        batch: list[str] = []
        size = files = missed = 0
        for name in names:
            if (self._home.root / _key(name).folder).exists():
                continue
            more = sum(file.size for file in indexes[name].files.values())
            if batch and (size + more > _BYTES_AT_ONCE or files > _FILES_AT_ONCE):
                yield batch
                batch, size, files = [], 0, 0
            if free_bytes(self._home) - size - more < _KEPT_FREE_BYTES:
                missed += 1
                continue
            batch.append(name)
            size, files = size + more, files + len(indexes[name].files)
        if batch:
            yield batch
        if missed:
            self._left_out.append(
                f"{missed:,} {'run does' if missed == 1 else 'runs do'} not fit on the disk of this Space; the bucket keeps "
                "what does not come back."
            )

    def _fetch(self, indexes: Iterable[Index]) -> None:
        """Fetch contents into the folder for what arrives; what comes torn is fetched once more."""
        wanted = {part.sha256: part.size for index in indexes for part in index.parts}
        for _ in range(2):
            missing = [one for one, size in wanted.items() if self._is_there(one, size) and not self._has(one)]
            self._bucket.get([(self._contents.data[one], self._incoming / one) for one in missing])
        self.damaged |= {one for one in wanted if not self._has(one)}

    def _is_there(self, sha256: str, size: int) -> bool:
        """Whether the bucket has contents of that very size: no index makes us fetch more than it says."""
        found = self._contents.data.get(sha256)
        return found is not None and found.size == size

    def _has(self, sha256: str) -> bool:
        path = self._incoming / sha256
        if sha256 in self._verified or not path.is_file():
            return sha256 in self._verified
        if sha256_of(path) == sha256:
            self._verified.add(sha256)
            return True
        path.unlink()
        return False

    def _write(self, target: Path, file: MirroredFile, *, is_log: bool = False) -> bool:
        """Write a file; of a log, what comes before the first damaged piece. Returns whether it is whole."""
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parts = file.parts
        if not is_log and not all(self._has(part.sha256) for part in parts):
            return False
        if not is_log and len(parts) == 1 and file.size > _LINKED_BYTES and target.suffix != ".log":
            os.link(self._incoming / parts[0].sha256, target)  # files of this size are replaced, never changed
            target.chmod(0o600)
            return True
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            if file.text is not None:
                out.write(file.text.encode())
            for part in parts:
                if is_log and not self._has(part.sha256):
                    return False
                with (self._incoming / part.sha256).open("rb") as data:
                    shutil.copyfileobj(data, out, 2**20)
        return True

    def _restore_home(self, name: str, index: Index) -> None:
        """Restore people and settings, each file where there is none."""
        self._fetch([index])
        staging = self._incoming / "home"
        for path, file in index.files.items():
            target, staged = self._home.root / path, staging / path
            if not may_be_in_home(path):
                self._left_out.append(f"{path[:80]!r} is not a part of a Space's settings and was left out.")
            elif os.path.lexists(target):
                continue
            else:
                is_whole = self._write(staged, file, is_log=path.endswith(".jsonl"))
                if not is_whole:
                    self._left_out.append(f"{path} is damaged in the bucket.")
                if staged.exists() and self._may_take(path, staged):
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    staged.rename(target)
                if is_whole:
                    self._on_placed(name, path, file)

    def _may_take(self, path: str, staged: Path) -> bool:
        if path != DATABASE_FILE:
            return True
        try:
            self._people = check_accounts(staged, "the bucket")
        except AccountError as error:
            self._left_out.append(f"{error.what} Invite people again.")
            return False
        return True

    def _restore_run(self, name: str, key: RunKey, index: Index) -> None:
        """Build a run next to its place, then let it appear at once."""
        place = self._home.root / key.folder
        unborn = place.with_name(f".new-{key.run_id}")
        shutil.rmtree(unborn, ignore_errors=True)
        unborn.mkdir(mode=0o700, parents=True)
        damaged, whole = set[str](), dict[str, MirroredFile]()
        for path, file in index.files.items():
            if not key.may_have(path):
                self._left_out.append(f"{key.run_id}: {path[:80]!r} is not a file of this run and was left out.")
                continue
            is_own = path.startswith(f"{key.folder}/")
            inside = path.removeprefix(f"{key.folder}/")
            try:
                if is_own:
                    is_whole = self._write(unborn / inside, file, is_log=inside == EVENTS_FILE)
                else:
                    is_whole = self._restore_upload(path, file)
            except (FileExistsError, IsADirectoryError, NotADirectoryError):
                is_whole = False  # a name that is a folder in another one
            if is_whole:
                whole[path] = file
            else:
                damaged.add(_unit(inside) if is_own else path)
        damaged |= _broken_checkpoints(unborn, key, index)
        for unit in sorted(damaged):
            self._left_out.append(f"{key.run_id}: {unit} is damaged in the bucket{_consequence(unit)}.")
            if unit.startswith(("checkpoints/", "adapter")):
                shutil.rmtree(unborn / unit, ignore_errors=True)
        if not (unborn / "config.yaml").is_file():
            self._left_out.append(f"{key.run_id} has no configuration in the bucket and was left out.")
            shutil.rmtree(unborn)
            return
        RunFolder(unborn).control.mkdir(mode=0o700, exist_ok=True)
        _name_worker(RunFolder(unborn))
        unborn.rename(place)
        self._runs, self._bytes = self._runs + 1, self._bytes + sum(file.size for file in whole.values())
        for path, file in whole.items():
            self._on_placed(name, path, file)

    def _restore_upload(self, path: str, file: MirroredFile) -> bool:
        target, staged = self._home.root / path, self._incoming / "upload"
        if os.path.lexists(target):
            return True
        staged.unlink(missing_ok=True)
        if not self._write(staged, file):
            return False
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged.rename(target)
        return True


def _key(name: str) -> RunKey:
    key = RunKey.parse(name)
    assert key is not None, "the caller chose indexes of runs"
    return key


def _unit(inside: str) -> str:
    """Return what is useless without a file: its checkpoint, the adapter, or the file alone."""
    parts = inside.split("/")
    if parts[0] == "checkpoints":
        return "/".join(parts[:2])
    return "adapter" if parts[0] == "adapter" else inside


def _consequence(unit: str) -> str:
    return "; its events end early" if unit == EVENTS_FILE else " and was left out"


def _broken_checkpoints(folder: Path, key: RunKey, index: Index) -> set[str]:
    """Return checkpoints whose manifest does not name the very files that came, by what the index says of them."""
    broken = set()
    for checkpoint in (folder / "checkpoints").glob("*"):
        manifest = read_manifest(checkpoint)
        told = manifest.files if manifest is not None else {}
        prefix = f"{key.folder}/checkpoints/{checkpoint.name}/"
        there = {path.removeprefix(prefix) for path in index.files if path.startswith(prefix)}
        is_whole = there == {*told, MANIFEST} and all(
            size_and_time(checkpoint / name)[0] == one.size_bytes and _is_named(index.files[prefix + name], one.sha256)
            for name, one in told.items()
        )
        if not is_whole:
            broken.add(f"checkpoints/{checkpoint.name}")
    return broken


def _is_named(file: MirroredFile, sha256: str) -> bool:
    if file.text is not None:
        return hashlib.sha256(file.text.encode()).hexdigest() == sha256
    return not file.parts or (len(file.parts) == 1 and file.parts[0].sha256 == sha256)


def _name_worker(folder: RunFolder) -> None:
    """Leave word that the worker of the last attempt is gone, as after a restart of its machine.

    A container that starts again may have another name on the same boot of its host, so what its worker had written would
    say nothing. A run on a job elsewhere has no worker here.
    """
    state = folder.read_saved_state()
    if state is None or folder.job.exists():
        return
    attempt = max(state.attempt, folder.attempts_seen())
    if not attempt:
        return
    if attempt != state.attempt:
        folder.write_state(state.model_copy(update={"attempt": attempt}))
    record = WorkerRecord(
        pid=0, start_time=0.0, boot_id="before the restore", host=platform.node(), process_group=0, attempt=attempt
    )
    write_atomically(folder.process, record.model_dump_json())
