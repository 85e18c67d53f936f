"""From a mirror back into a home: what is damaged is left out, and nothing here is overwritten."""

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from loratory.engine.accounts.backup import check_accounts
from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.errors import AccountError, explain_os_errors
from loratory.engine.files import FileStamp, size_and_time, stamp_of, write_atomically
from loratory.engine.hub import RunBucket
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.checkpoints import MANIFEST, Checkpoint, damage, read_manifest
from loratory.engine.runs.disk import free_bytes
from loratory.engine.runs.run import RunFolder, WorkerRecord
from loratory.engine.space.mirror_files import CHECKPOINTS, INCOMING, MEDIA, UPLOADS, may_mirror, run_of

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

_KEPT_FREE_BYTES = 1_000_000_000  # for what runs write
_MOST_SENTENCES = 20  # about what is left out


class RestoreResult(NamedTuple):
    """What came back."""

    runs: int = 0
    bytes: int = 0
    left_out: tuple[str, ...] = ()  # what is damaged, foreign or too large, in sentences
    stamps: Mapping[str, FileStamp] = {}  # of the files that are here as they are in the bucket

    @property
    def text(self) -> str:
        """One paragraph for people; empty where there was nothing."""
        runs = "1 run" if self.runs == 1 else f"{self.runs:,} runs"
        parts = [f"Restored {runs} ({self.bytes / 1e9:.1f} GB)."] if self.runs else []
        more = len(self.left_out) - _MOST_SENTENCES
        return " ".join([*parts, *self.left_out[:_MOST_SENTENCES], *([f"And {more:,} more."] if more > 0 else [])])


class Restorer:
    """Puts the files of a bucket into a home.

    Args:
        bucket_files: By their path below the home, as the bucket names them.
    """

    def __init__(self, bucket: RunBucket, bucket_files: "Mapping[str, BucketFile]", home: LoratoryHome) -> None:
        self._bucket = bucket
        self._bucket_files = bucket_files
        self._home = home
        self._left_out: list[str] = []
        self._sizes: list[int] = []  # of the runs that came back

    def restore(self) -> RestoreResult:
        """Restore people, settings and uploads, and runs where there are none; as many as fit, the newest first.

        Raises:
            EngineError: If the bucket cannot be read, or the home cannot be written; what is there by then is whole.
        """
        with (
            explain_os_errors("The mirror cannot be restored", "Free some space."),
            tempfile.TemporaryDirectory(prefix=INCOMING, dir=self._home.root) as folder,
        ):
            self._incoming = Path(folder)
            paths = self._choose()
            stamps = self._fetch(paths)
            self._remove_damaged(paths)
            for path in dict.fromkeys(run_of(path) or path for path in paths):
                if path in self._bucket_files:
                    self._place(path)
                else:
                    self._place_run(path)
        stamps = {path: stamp for path, stamp in stamps.items() if stamp_of(self._home.root / path) == stamp}
        return RestoreResult(len(self._sizes), sum(self._sizes), tuple(self._left_out), stamps)

    def _choose(self) -> list[str]:
        """Return the files that are not here as far as the disk has room: settings, then runs, then uploads."""
        folders = {str(folder) for path in self._bucket_files for folder in PurePosixPath(path).parents}
        together: dict[str, list[str]] = {}  # files of a run, by its folder; other files by themselves
        for path in self._bucket_files:
            name = run_of(path) or path
            if not may_mirror(path) or path in folders:
                self._left_out.append(f"{path[:80]!r} in the bucket is not part of a mirror and was left out.")
            elif not os.path.lexists(self._home.root / name):
                together.setdefault(name, []).append(path)
        runs = sorted(filter(run_of, together), key=lambda name: name.split("/")[2], reverse=True)
        uploads = [name for name in together if name.startswith((f"{UPLOADS}/", f"{MEDIA}/"))]
        settings = together.keys() - {*runs, *uploads}
        chosen: list[str] = []
        room, failures = free_bytes(self._home) - _KEPT_FREE_BYTES, 0
        for name in (*settings, *runs, *uploads):
            size = sum(self._bucket_files[path].size for path in together[name])
            if size <= room:
                chosen += together[name]
                room -= size
            else:
                failures += 1
        if failures:
            self._left_out.append(
                f"{failures:,} {'run or upload does' if failures == 1 else 'runs or uploads do'} not fit on the disk of this "
                "Space; the bucket keeps what does not come back."
            )
        return chosen

    def _fetch(self, paths: Collection[str]) -> dict[str, FileStamp]:
        """Write whole files into the folder for what arrives; what comes torn is fetched once more."""
        missing = list(paths)
        for _ in range(2):
            self._bucket.get([(self._bucket_files[path], self._incoming / path) for path in missing])
            missing = [
                path for path in missing if size_and_time(self._incoming / path)[0] != self._bucket_files[path].size
            ]
        for path in missing:
            (self._incoming / path).unlink(missing_ok=True)
        for entry in self._incoming.rglob("*"):
            entry.chmod(0o700 if entry.is_dir() else 0o600)
        stamps = ((path, stamp_of(self._incoming / path)) for path in paths)
        return {path: stamp for path, stamp in stamps if stamp is not None}

    def _remove_damaged(self, paths: Collection[str]) -> None:
        """Remove checkpoints that did not arrive whole, and accounts that cannot be read."""
        missing = [path for path in paths if CHECKPOINTS not in path and not (self._incoming / path).is_file()]
        for checkpoint in self._incoming.glob("runs/*/*/checkpoints/*"):
            if not _is_whole_checkpoint(checkpoint):
                missing.append(checkpoint.relative_to(self._incoming).as_posix())
                shutil.rmtree(checkpoint, ignore_errors=True)
        self._left_out += [f"{path} is damaged in the bucket and was left out." for path in sorted(missing)]
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
