"""From a mirror back into a home: what is damaged is left out, and nothing here is overwritten."""

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from engine.accounts.backup import check_accounts
from engine.accounts.limits import DATABASE_FILE
from engine.errors import AccountError, StorageError
from engine.files import sha256_of, size_and_time, write_atomically
from engine.hub import RunBucket
from engine.paths import LoratoryHome
from engine.runs.checkpoints import MANIFEST, Checkpoint, damage, read_manifest
from engine.runs.disk import free_bytes
from engine.runs.run import RunFolder, WorkerRecord
from engine.space.mirror_index import INCOMING, RUNS, Contents, StoredFile, may_name, unit_of

_KEPT_FREE_BYTES = 1_000_000_000  # for what runs write
_MOST_WORDS = 20  # about what is left out


class RestoreResult(NamedTuple):
    """What came back."""

    runs: int = 0
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
    """Puts what indexes name into a home."""

    def __init__(self, bucket: RunBucket, contents: Contents, home: LoratoryHome) -> None:
        self._bucket = bucket
        self._contents = contents
        self._home = home
        self._left_out: list[str] = []
        self._sizes: list[int] = []  # of the runs that came back

    def restore(self) -> RestoreResult:
        """Restore people and settings, and runs where there are none; as many as fit, the newest first.

        Raises:
            EngineError: If the bucket cannot be read, or the home cannot be written; what is there by then is whole.
        """
        for name in self._contents.unreadable:
            self._left_out.append(
                f"{name} in the bucket cannot be read and was left out; remove it there if this lasts."
            )
        for name in self._contents.earlier:
            self._left_out.append(
                f"{name} was saved by an earlier version of Loratory and was left out; the bucket keeps it for that version."
            )
        try:
            with tempfile.TemporaryDirectory(prefix=INCOMING, dir=self._home.root) as folder:
                self._incoming = Path(folder)
                files = self._choose()
                self._fetch(files)
                self._remove_damaged(files)
                runs = dict.fromkeys("/".join(path.split("/")[:3]) for path in files if path.startswith(f"{RUNS}/"))
                for path in files:
                    if not path.startswith(f"{RUNS}/"):
                        self._place(path)
                for path in runs:
                    self._place_run(path)
        except OSError as error:
            raise StorageError(f"The mirror cannot be restored ({error.strerror}).", "Free some space.") from error
        return RestoreResult(len(self._sizes), sum(self._sizes), tuple(self._left_out))

    def _choose(self) -> dict[str, str | StoredFile]:
        """Return the files that are not here, by their path below the home, as far as the disk has room."""
        chosen: dict[str, str | StoredFile] = {}
        folders: set[str] = set()
        room, failures = free_bytes(self._home) - _KEPT_FREE_BYTES, 0
        for name, index in self._contents.indexes.items():
            if (self._home.root / name.removesuffix(".json")).exists():
                continue
            files: dict[str, str | StoredFile] = {}
            for path, file in index.files.items():
                above = [str(folder) for folder in PurePosixPath(path).parents]
                if not may_name(name, path) or path in folders or any(one in files or one in chosen for one in above):
                    self._left_out.append(f"{path[:80]!r} does not belong to {name} and was left out.")
                elif path not in chosen and not os.path.lexists(self._home.root / path):
                    files[path] = file
                    folders.update(above)
            size = sum(map(self._bytes_of, files))
            if size <= room:
                chosen.update(files)
                room -= size
            else:
                failures += 1
        if failures:
            self._left_out.append(
                f"{failures:,} {'run does' if failures == 1 else 'runs do'} not fit on the disk of this Space; the bucket keeps "
                "what does not come back."
            )
        return chosen

    def _bytes_of(self, path: str) -> int:
        """Return how much is fetched: what an index says proves nothing."""
        return self._contents.stored[path].size if path in self._contents.stored else 0

    def _fetch(self, files: Mapping[str, str | StoredFile]) -> None:
        """Write whole files into the folder for what arrives; what comes torn is fetched once more."""
        wanted: dict[str, StoredFile] = {}
        for path, file in files.items():
            if isinstance(file, str):
                (self._incoming / path).parent.mkdir(parents=True, exist_ok=True)
                (self._incoming / path).write_bytes(file.encode())
            elif path in self._contents.stored:
                wanted[path] = file
        for _ in range(2):
            self._bucket.get([(self._contents.stored[path], self._incoming / path) for path in wanted])
            wanted = {path: file for path, file in wanted.items() if not self._is_whole(path, file)}
        for path in wanted:
            (self._incoming / path).unlink(missing_ok=True)
        for place in self._incoming.rglob("*"):
            place.chmod(0o700 if place.is_dir() else 0o600)

    def _is_whole(self, path: str, file: StoredFile) -> bool:
        """Whether a file arrived whole; it gets the time by which a mirror knows that it did not change."""
        place = self._incoming / path
        if size_and_time(place)[0] != self._bytes_of(path) or (file.sha256 and sha256_of(place) != file.sha256):
            return False
        os.utime(place, ns=(file.changed, file.changed))
        return True

    def _remove_damaged(self, files: Collection[str]) -> None:
        """Remove what did not arrive whole, and what is useless without it."""
        lost = {unit_of(path) for path in files if not (self._incoming / path).is_file()}
        for checkpoint in self._incoming.glob("runs/*/*/checkpoints/*"):
            if not _is_whole_checkpoint(checkpoint):
                lost.add(checkpoint.relative_to(self._incoming).as_posix())
        for unit in sorted(lost):
            self._left_out.append(f"{unit} is damaged in the bucket and was left out.")
            shutil.rmtree(self._incoming / unit, ignore_errors=True)
        accounts = self._incoming / DATABASE_FILE
        try:
            if accounts.is_file():
                check_accounts(accounts, "the bucket")
        except AccountError as error:
            self._left_out.append(f"{error.what} Invite people again.")
            accounts.unlink()

    def _place_run(self, path: str) -> None:
        """Let a run appear at once."""
        folder = RunFolder(self._incoming / path)
        if not folder.config.is_file():
            self._left_out.append(f"{path} has no configuration in the bucket and was left out.")
            return
        folder.control.mkdir(mode=0o700, exist_ok=True)
        _name_worker(folder)
        self._sizes.append(sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file()))
        self._place(path)

    def _place(self, path: str) -> None:
        """Let a file or a folder appear, if it arrived whole and nothing is in its place."""
        source, target = self._incoming / path, self._home.root / path
        with contextlib.suppress(FileExistsError, NotADirectoryError):  # an upload has the name of its folder
            if source.exists() and not os.path.lexists(target):
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                source.rename(target)


def _is_whole_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint has the very files of its manifest."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return names == {*manifest.files, MANIFEST} and not damage(Checkpoint(manifest.step, folder, manifest))


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
