"""From a mirror back into a home: nothing is believed that does not match its hash, and nothing here is overwritten."""

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from engine.accounts.backup import check_accounts
from engine.accounts.limits import DATABASE_FILE
from engine.errors import AccountError, StorageError
from engine.files import sha256_of, size_and_time, write_atomically
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, read_manifest
from engine.runs.disk import free_bytes
from engine.runs.run import EVENTS_FILE, RunFolder, WorkerRecord
from engine.space.mirror_index import (
    HOME_INDEX,
    INCOMING,
    Bucket,
    Contents,
    Index,
    MirroredFile,
    RunKey,
    may_be_in_home,
)

_KEPT_FREE_BYTES = 1_000_000_000  # for what runs write
_LINKED_BYTES = 1_000_000  # larger files are not copied into their place
_BYTES_AT_ONCE = 500_000_000
_FILES_AT_ONCE = 500
_MOST_WORDS = 20  # about what is left out


class RestoreResult(NamedTuple):
    """What came back."""

    runs: int = 0
    people: int = 0
    bytes: int = 0
    left_out: tuple[str, ...] = ()  # what is damaged, foreign or too large, in sentences

    @property
    def words(self) -> str:
        """One paragraph for people; empty where there was nothing."""
        runs = "1 run" if self.runs == 1 else f"{self.runs:,} runs"
        parts = [f"Restored {runs} ({self.bytes / 1e9:.1f} GB)."] if self.runs else []
        more = len(self.left_out) - _MOST_WORDS
        return " ".join([*parts, *self.left_out[:_MOST_WORDS], *([f"And {more:,} more."] if more > 0 else [])])


class Restorer:
    """Puts what indexes name into a home.

    Args:
        contents: What is there.
        on_placed: Gets the name of the index, the path and the description of each file that is in its place.

    Attributes:
        damaged: Hashes of contents that are not in the bucket, or differ there.
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
        self._verified_contents: set[str] = set()  # contents that arrived whole
        self._on_placed = on_placed
        self.damaged: set[str] = set()

    def restore(self) -> RestoreResult:
        """Restore people and settings, then runs, the newest first.

        Raises:
            EngineError: If the bucket cannot be read, or the home cannot be written; what is there by then is whole.
        """
        indexes = self._contents.indexes
        for name in self._contents.unreadable:
            self._left_out.append(
                f"{name} in the bucket cannot be read and was left out; remove it there if this lasts."
            )
        runs = sorted(filter(None, map(RunKey.parse, indexes)), key=lambda key: key.run_id, reverse=True)
        try:
            with tempfile.TemporaryDirectory(prefix=INCOMING, dir=self._home.root) as folder:
                self._incoming = Path(folder)
                if HOME_INDEX in indexes:
                    self._restore_home(indexes[HOME_INDEX])
                for batch in self._batches(runs):
                    self._fetch(indexes[key.index] for key in batch)
                    for key in batch:
                        self._restore_run(key, indexes[key.index])
                    self._verified_contents.clear()
                    for path in self._incoming.iterdir():
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise StorageError(f"The mirror cannot be restored ({error.strerror}).", "Free some space.") from error
        return RestoreResult(self._runs, self._people, self._bytes, tuple(self._left_out))

    def _batches(self, runs: Iterable[RunKey]) -> Iterator[list[RunKey]]:
        """Yield runs that are fetched together, and leave out those for which the disk has no room."""
        batch: list[RunKey] = []
        size = files = failures = 0
        for key in runs:
            if (self._home.root / key.folder).exists():
                continue
            index = self._contents.indexes[key.index]
            more = sum(file.size for file in index.files.values())
            if batch and (size + more > _BYTES_AT_ONCE or files > _FILES_AT_ONCE):
                yield batch
                batch, size, files = [], 0, 0
            if free_bytes(self._home) - size - more < _KEPT_FREE_BYTES:
                failures += 1
                continue
            batch.append(key)
            size, files = size + more, files + len(index.files)
        if batch:
            yield batch
        if failures:
            self._left_out.append(
                f"{failures:,} {'run does' if failures == 1 else 'runs do'} not fit on the disk of this Space; the bucket keeps "
                "what does not come back."
            )

    def _fetch(self, indexes: Iterable[Index]) -> None:
        """Fetch contents into the folder for what arrives; what comes torn is fetched once more."""
        sizes = {part.sha256: part.size for index in indexes for part in index.parts}
        for _ in range(2):
            missing = [one for one, size in sizes.items() if self._is_there(one, size) and not self._has(one)]
            self._bucket.get([(self._contents.data[one], self._incoming / one) for one in missing])
        self.damaged |= {one for one in sizes if not self._has(one)}

    def _is_there(self, sha256: str, size: int) -> bool:
        """Whether the bucket has contents of that very size: no index makes us fetch more than it names."""
        file = self._contents.data.get(sha256)
        return file is not None and file.size == size

    def _has(self, sha256: str) -> bool:
        path = self._incoming / sha256
        if sha256 in self._verified_contents or not path.is_file():
            return sha256 in self._verified_contents
        if sha256_of(path) == sha256:
            self._verified_contents.add(sha256)
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

    def _place(self, path: str, file: MirroredFile, *, is_log: bool = False) -> bool:
        """Write a file of the home next to its place, then let it appear at once; returns whether it is whole."""
        target, staging = self._home.root / path, self._incoming / "staged"
        staging.unlink(missing_ok=True)
        is_whole = self._write(staging, file, is_log=is_log)
        if staging.exists() and (path != DATABASE_FILE or self._may_take(staging)):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            staging.rename(target)
        return is_whole

    def _restore_home(self, index: Index) -> None:
        """Restore people and settings, each file where there is none."""
        self._fetch([index])
        for path, file in index.files.items():
            if not may_be_in_home(path):
                self._left_out.append(f"{path[:80]!r} is not a part of a Space's settings and was left out.")
            elif os.path.lexists(self._home.root / path):
                continue
            elif self._place(path, file, is_log=path.endswith(".jsonl")):
                self._on_placed(HOME_INDEX, path, file)
            else:
                self._left_out.append(f"{path} is damaged in the bucket.")

    def _may_take(self, accounts: Path) -> bool:
        try:
            self._people = check_accounts(accounts, "the bucket")
        except AccountError as error:
            self._left_out.append(f"{error.what} Invite people again.")
            return False
        return True

    def _restore_run(self, key: RunKey, index: Index) -> None:
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
                    is_whole = os.path.lexists(self._home.root / path) or self._place(path, file)
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
            self._on_placed(key.index, path, file)


def _unit(inside: str) -> str:
    """Return what is useless without a file: its checkpoint, the adapter, or the file alone."""
    parts = inside.split("/")
    if parts[0] == "checkpoints":
        return "/".join(parts[:2])
    return "adapter" if parts[0] == "adapter" else inside


def _consequence(unit: str) -> str:
    return "; its events end early" if unit == EVENTS_FILE else " and was left out"


def _broken_checkpoints(folder: Path, key: RunKey, index: Index) -> set[str]:
    """Return checkpoints whose manifest does not name the very files that came, by their hashes in the index."""
    broken_names = set()
    for checkpoint in (folder / "checkpoints").glob("*"):
        manifest = read_manifest(checkpoint)
        files = manifest.files if manifest is not None else {}
        prefix = f"{key.folder}/checkpoints/{checkpoint.name}/"
        there = {path.removeprefix(prefix) for path in index.files if path.startswith(prefix)}
        is_whole = there == {*files, MANIFEST} and all(
            size_and_time(checkpoint / name)[0] == one.size_bytes and _is_named(index.files[prefix + name], one.sha256)
            for name, one in files.items()
        )
        if not is_whole:
            broken_names.add(f"checkpoints/{checkpoint.name}")
    return broken_names


def _is_named(file: MirroredFile, sha256: str) -> bool:
    if file.text is not None:
        return hashlib.sha256(file.text.encode()).hexdigest() == sha256
    return not file.parts or (len(file.parts) == 1 and file.parts[0].sha256 == sha256)


def _name_worker(folder: RunFolder) -> None:
    """Leave word that the worker of the last attempt is gone, as after a restart of its machine.

    A container that starts again may have another name on the same boot of its host, so the record of its worker would
    prove nothing. A run on a job elsewhere has no worker here.
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
