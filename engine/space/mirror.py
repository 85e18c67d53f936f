"""The mirror of a Space: its disk is gone after a restart, so its runs, people and settings are kept in a private bucket.

Runs never happen on the bucket, which has neither locks nor renames: a thread sends what changed, and `restore` brings it back
into an empty home.
"""

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.errors import EngineError, HubUnreachableError, PushError
from loratory.engine.files import FileStamp, read_model, write_atomically
from loratory.engine.hub import MIRROR, RunBucket
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.provenance import read_provenance
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore, list_owners
from loratory.engine.space.environment import SpaceEnvironment
from loratory.engine.space.mirror_bucket import MirrorBucket
from loratory.engine.space.mirror_files import CHECKPOINTS, INCOMING, RUNS, UPLOADS, HomeScan, RunScan, run_of
from loratory.engine.space.mirror_restore import Restorer, RestoreResult
from loratory.engine.supervision.states import ProblemLog

_RECORD = "mirror.json"
_TIMEOUT_SECONDS = 120.0  # for the bucket to answer before a restore is given up
_LONGEST_PAUSE_SECONDS = 300.0  # between two tries while saving fails
_LAST_PAUSE_SECONDS = 0.5  # between tries while the process ends

_log = logging.getLogger(__name__)


def mirror_of(space: SpaceEnvironment, home: LoratoryHome) -> "Mirror | None":
    """Return the mirror of a Space; None where its owner gave it no bucket or no token."""
    if space.bucket is None or space.token is None:
        return None
    from huggingface_hub import HfApi

    return Mirror(home, RunBucket(HfApi(token=space.token), space.bucket, MIRROR.explain_errors), space.space_id)


class Unsaved(NamedTuple):
    """What a restart at this moment would lose of a person."""

    runs: tuple[str, ...] = ()  # titles of runs that are not saved at all yet
    # Titles of runs at work, each with the step from which it would continue; None where it would start over.
    training: tuple[tuple[str, int | None], ...] = ()
    uploads: int = 0  # how many uploaded files no run uses
    exports: int = 0  # how many exports
    trouble: str = ""  # why saving does not work at present; empty where it does

    @property
    def text(self) -> str:
        """A notice for the page; empty where nothing would be lost."""
        parts = [f"all of “{title}”" for title in self.runs]
        parts += [
            f"the training of “{title}” since step {step:,}" if step is not None else f"the training of “{title}”"
            for title, step in self.training
        ]
        parts += [_count(self.uploads, "upload that no run uses", "uploads that no run uses")] if self.uploads else []
        parts += [_count(self.exports, "export", "exports")] if self.exports else []
        parts = parts if len(parts) <= 4 else [*parts[:3], f"{len(parts) - 3} more"]
        losses = " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
        return " ".join(filter(None, (f"A restart of this Space would lose {losses}." if parts else "", self.trouble)))


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


class _Record(BaseModel, frozen=True):
    """`server/mirror.json`: whose mirror this disk has, and which runs stay in the bucket although they are not here."""

    bucket: str
    space: str
    left: frozenset[str] = frozenset()


class _View(NamedTuple):
    """What pages see; replaced as a whole by the mirror's thread."""

    saved_paths: frozenset[str] = frozenset()  # paths in the bucket
    training: frozenset[str] = frozenset()  # folders of the runs at work
    trouble: EngineError | None = None


class Mirror:
    """Keeps the home of a Space in a bucket.

    `restore` comes first, before the accounts are opened and before runs are supervised; then `start`, and `stop` at the
    end of the process.

    Args:
        bucket: Of its owner; a `RunBucket` with the words of `MIRROR`.
        space: As owner/name: no other Space may have the bucket.
    """

    def __init__(self, home: LoratoryHome, bucket: RunBucket, space: str, poll_seconds: float = 15.0) -> None:
        self._home = home
        self._bucket = bucket
        self._space = space
        self._poll_seconds = poll_seconds
        self._mirror_bucket = MirrorBucket(bucket, home, space)
        self._record: _Record | None = None  # once the home is restored
        self._runs: dict[str, RunScan] = {}
        self._people = HomeScan(home)
        self._problems = ProblemLog()
        self._view = _View()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None

    def restore(self, timeout_seconds: float = _TIMEOUT_SECONDS) -> RestoreResult:
        """Take the bucket for this Space, and bring back what this home does not have.

        A home that is the same as before, after a restart of the process alone, stays as it is.

        Raises:
            PushError: If the bucket is another Space's, or Hugging Face refuses it; nothing will be saved then.
            HubUnreachableError: If it does not answer; nothing will be saved then either, as an empty home must not
                replace what is there.
            StorageError: If the home cannot be written.
        """
        give_up, pause = time.monotonic() + timeout_seconds, 1.0
        while True:
            try:
                result = self._restore()
            except EngineError as error:
                self._set_trouble(error)
                if not isinstance(error, HubUnreachableError) or time.monotonic() + pause > give_up:
                    raise
                time.sleep(pause)
                pause *= 2
            else:
                self._set_trouble(None)
                return result

    def _restore(self) -> RestoreResult:
        self._home.make_writable()
        self._home.server.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._home.root.glob(f"{INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        bucket_files = self._mirror_bucket.take()
        record = read_model(self._home.server / _RECORD, _Record)
        result = RestoreResult()
        if record is None or (record.bucket, record.space) != (self._bucket.name, self._space):
            result = Restorer(self._bucket, bucket_files, self._home).restore()
            self._mirror_bucket.sent_stamps = dict(result.stamps)
            runs = {run for run in map(run_of, self._mirror_bucket.paths) if run is not None}
            left = frozenset(run for run in runs if not (self._home.root / run).is_dir())
            record = _Record(bucket=self._bucket.name, space=self._space, left=left)
            write_atomically(self._home.server / _RECORD, record.model_dump_json())
        if result.text:
            _log.warning("%s", result.text)
        self._record = record
        self._publish()
        return result

    def start(self) -> None:
        """Begin to save, in a thread of its own; does nothing where nothing could be restored."""
        if self._record is not None and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
            self._thread.start()

    def stop(self, deadline_seconds: float) -> bool:
        """Let workers save and end as when a machine is shut down, then save; returns whether all of it arrived.

        Args:
            deadline_seconds: After which the process is ended. Hugging Face gives a Space ten seconds by default.
        """
        self._deadline = time.monotonic() + deadline_seconds
        if self._thread is None:
            return False
        self._wake.set()  # the small things are sent while workers save
        _end_workers(self._home, deadline_seconds / 2)
        self._ending.set()
        self._wake.set()
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        return not self._thread.is_alive() and self._view.trouble is None

    def unsaved(self, owner: str) -> Unsaved:
        """Return what a restart at this moment would lose of a person."""
        view, own = self._view, self._home.for_person(owner)
        fresh, training = [], []
        for run in RunStore(self._home, owner).list():
            folder = _folder_of(run)
            if f"{folder}/config.yaml" not in view.saved_paths:
                fresh.append(_title(run))
            elif folder in view.training:
                training.append((_title(run), _newest_step(view.saved_paths, folder)))
        files = (file.relative_to(self._home.root).as_posix() for file in own.uploads.rglob("*") if not file.is_dir())
        uploads = sum("/." not in path and path not in view.saved_paths for path in files)
        exports = sum(not path.name.startswith(".") for path in own.exports.glob("*"))
        trouble = f"{view.trouble.what} {view.trouble.fix}" if view.trouble is not None else ""
        return Unsaved(tuple(fresh), tuple(training), uploads, exports, trouble)

    def save(self) -> None:
        """Send what changed; make no request where nothing did.

        What is gone here is removed there once all else of its run is there: a checkpoint after the next one.

        Raises:
            EngineError: If the bucket cannot be written, or the accounts cannot be read.
        """
        files_by_run = self._scan_runs()
        try:
            complete_runs = {folder for folder, files in files_by_run.items() if self._mirror_bucket.send(files)}
            people = self._people.scan()
            self._mirror_bucket.send(people)
            current_paths = {path for files in (people, *files_by_run.values()) for path in files}
            self._mirror_bucket.remove(
                [path for path in self._mirror_bucket.paths - current_paths if self._is_garbage(path, complete_runs)]
            )
        finally:
            self._publish()

    def _scan_runs(self) -> dict[str, Mapping[str, FileStamp]]:
        """Return the files of each run that can be read, by its folder below the home."""
        scans, files_by_run = dict[str, RunScan](), dict[str, Mapping[str, FileStamp]]()
        for owner in list_owners(self._home):
            for run in RunStore(self._home, owner).list():
                folder = _folder_of(run)
                scan = scans[folder] = self._runs.get(folder) or RunScan(self._home, run)
                with self._problems.guard(run.id, "cannot be saved to the bucket"):
                    files = scan.scan(self._mirror_bucket.sent_stamps)
                    if f"{folder}/config.yaml" in files:  # else it was deleted just now, or is out of reach
                        files_by_run[folder] = files
        self._runs = scans
        return files_by_run

    def _is_garbage(self, path: str, complete_runs: set[str]) -> bool:
        """Whether what is not wanted any more can be removed: what is out of reach or not restored stays."""
        assert self._record is not None
        run = run_of(path)
        if run is not None:
            is_gone = run not in self._runs and (self._home.root / run).parent.is_dir()
            return run in complete_runs or (is_gone and run not in self._record.left)
        return not path.startswith(f"{UPLOADS}/") or (complete_runs == self._runs.keys() and not self._record.left)

    def _publish(self) -> None:
        training = frozenset(folder for folder, scan in self._runs.items() if scan.is_training)
        self._view = self._view._replace(saved_paths=frozenset(self._mirror_bucket.sent_stamps), training=training)

    # The thread.

    def _run(self) -> None:
        failures = 0
        while True:
            is_last = self._ending.is_set()
            trouble: EngineError | None = None
            try:
                self.save()
            except EngineError as error:
                trouble = error
            except Exception as error:  # whatever it is, the next save comes
                _log.exception("the mirror could not save")
                trouble = PushError(f"Runs cannot be saved ({type(error).__name__}).", "See the log of the Space.")
            self._set_trouble(trouble)
            failures = failures + 1 if trouble is not None else 0
            if self._mirror_bucket.is_taken or (is_last and (trouble is None or time.monotonic() > self._deadline)):
                return
            pause = min(self._poll_seconds * 2.0**failures, _LONGEST_PAUSE_SECONDS)
            self._wake.wait(min(pause, _LAST_PAUSE_SECONDS) if self._ending.is_set() else pause)
            self._wake.clear()

    def _set_trouble(self, trouble: EngineError | None) -> None:
        before = self._view.trouble
        if trouble is not None and (before is None or before.what != trouble.what):
            _log.error("%s", trouble)
        self._view = self._view._replace(trouble=trouble)


def _folder_of(run: Run) -> str:
    return f"{RUNS}/{run.owner}/{run.id}"


def _title(run: Run) -> str:
    return read_provenance(run.folder).title or run.id


def _newest_step(saved_paths: frozenset[str], folder: str) -> int | None:
    start = f"{folder}{CHECKPOINTS}step-"
    return max(
        (int(path.removeprefix(start).split("/")[0]) for path in saved_paths if path.startswith(start)), default=None
    )


def _end_workers(home: LoratoryHome, seconds: float) -> None:
    """Ask the workers on this machine to save and end, and wait for them."""
    folders = []
    for folder in [run.folder for owner in list_owners(home) for run in RunStore(home, owner).list()]:
        worker = folder.read_worker()
        if worker is not None and worker.is_alive():
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGTERM)
                folders.append(folder)
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up and any(folder.has_living_worker() for folder in folders):
        time.sleep(0.1)
