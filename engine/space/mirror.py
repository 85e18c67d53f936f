"""The mirror of a Space: its disk is gone after a restart, so its runs, people and settings are kept in a private bucket.

Runs never happen on the bucket, which has neither locks nor renames: a thread sends what changed, and `restore` brings it back
into an empty home. `mirror_index` describes what is in the bucket.
"""

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from engine.errors import EngineError, HubUnreachableError, PushError
from engine.files import read_model, write_atomically
from engine.hub_bucket import RunBucket
from engine.hub_errors import MIRROR
from engine.paths import LoratoryHome
from engine.runs.store import RunStore, list_owners
from engine.runs.supervision.states import ProblemLog
from engine.space.environment import SpaceEnvironment
from engine.space.mirror_bucket import MirrorBucket
from engine.space.mirror_files import MirrorFiles
from engine.space.mirror_index import HOME_INDEX, INCOMING, UPLOADS, Bucket, MirroredFile, RunKey, read_contents
from engine.space.mirror_restore import Restorer, RestoreResult
from engine.space.mirror_scan import HomeScan, RunScan
from engine.space.unsaved import Unsaved, View

_RECORD = "mirror.json"
_LAST_PAUSE_SECONDS = 0.5  # between tries while the process ends

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MirrorSettings:
    """How often and how long, in seconds."""

    look: float = 15.0  # between two looks at what changed
    longest_pause: float = 300.0  # between two tries while saving fails
    patience: float = 120.0  # for the bucket to answer before a restore is given up


def mirror_of(space: SpaceEnvironment, home: LoratoryHome) -> "Mirror | None":
    """Return the mirror of a Space; None where its owner gave it no bucket or no token."""
    if space.bucket is None or space.token is None:
        return None
    from huggingface_hub import HfApi

    return Mirror(home, RunBucket(HfApi(token=space.token), space.bucket, MIRROR.explained), space.space_id)


class _Record(BaseModel, frozen=True):
    """`server/mirror.json`: whose mirror this disk has, and which runs it sent or got; what is missing was deleted."""

    bucket: str
    space: str
    runs: tuple[str, ...] = ()


class Mirror:
    """Keeps the home of a Space in a bucket.

    `restore` comes first, before the accounts are opened and before runs are supervised; then `start`, and `stop` at the
    end of the process.

    Args:
        bucket: Of its owner; a `RunBucket` with the words of `MIRROR`.
        space: As owner/name: no other Space may have the bucket.
    """

    def __init__(self, home: LoratoryHome, bucket: Bucket, space: str, settings: MirrorSettings | None = None) -> None:
        self._home = home
        self._bucket = bucket
        self._space = space
        self._settings = settings or MirrorSettings()
        self._mirror_bucket = MirrorBucket(bucket, home, space, self._record)
        self._is_restored = False
        self._ours: set[str] = set()  # indexes of runs that this disk has or had
        self._runs: dict[str, RunScan] = {}
        self._people: HomeScan | None = None
        self._problems = ProblemLog()
        self._view = View()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None

    @property
    def trouble(self) -> EngineError | None:
        """Why saving does not work at present; None where it does."""
        return self._view.trouble

    def restore(self) -> RestoreResult:
        """Take the bucket for this Space, and bring back what this home does not have.

        A home that is the same as before, after a restart of the process alone, stays as it is.

        Raises:
            PushError: If the bucket is another Space's, or Hugging Face refuses it; nothing will be saved then.
            HubUnreachableError: If it does not answer for `patience`; nothing will be saved then either, as an empty home
                must not replace what is there.
            StorageError: If the home cannot be written.
        """
        give_up, pause = time.monotonic() + self._settings.patience, 1.0
        while True:
            try:
                result = self._restore()
            except EngineError as error:
                self._set_trouble(error)
                if not isinstance(error, HubUnreachableError) or time.monotonic() + pause > give_up:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, self._settings.longest_pause)
            else:
                self._set_trouble(None)
                return result

    def _restore(self) -> RestoreResult:
        self._home.make_writable()
        self._home.server.mkdir(mode=0o700, exist_ok=True)
        for leftover in self._home.root.glob(f"{INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._mirror_bucket.take()
        contents = read_contents(self._bucket, self._home)
        self._mirror_bucket.know(contents)
        record = read_model(self._home.server / _RECORD, _Record)
        result = RestoreResult()
        if record is not None and (record.bucket, record.space) == (self._bucket.name, self._space):
            self._ours = set(record.runs)
        else:
            self._ours = set()
            restorer = Restorer(self._bucket, contents, self._home, self._remember)
            result = restorer.restore()
            self._mirror_bucket.distrust(restorer.damaged)
            self._record(name for name in contents.indexes if (key := RunKey.parse(name)) and self._has(key))
        if result.words:
            _log.warning("%s", result.words)
        self._is_restored = True
        self._publish()
        return result

    def _remember(self, index: str, path: str, file: MirroredFile) -> None:
        """Take a file that came from the mirror for one that is there."""
        key = RunKey.parse(index)
        files = self._scan_of(key).files if key is not None else self._home_scan().files
        files.remember(path, file)

    def start(self) -> None:
        """Begin to save, in a thread of its own; does nothing where nothing could be restored."""
        if self._is_restored and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
            self._thread.start()

    def stop(self, deadline_seconds: float, *, ends_training: bool = True) -> bool:
        """Save what is left, at the latest by the deadline; returns whether all of it arrived.

        Args:
            deadline_seconds: After which the process is ended. Hugging Face gives a Space ten seconds by default.
            ends_training: Whether workers are asked to save and end first, as they are when a machine is shut down.
        """
        self._deadline = time.monotonic() + deadline_seconds
        if self._thread is None:
            return False
        if ends_training:
            self._wake.set()  # the small things are sent while workers save
            _end_workers(self._home, deadline_seconds / 2)
        self._ending.set()
        self._wake.set()
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        return not self._thread.is_alive() and self.trouble is None

    def unsaved(self, owner: str) -> Unsaved:
        """Return what a restart at this moment would lose of a person; looks at no file of a run."""
        return self._view.unsaved(self._home, owner)

    # The thread.

    def _run(self) -> None:
        failures = 0
        while True:
            is_last = self._ending.is_set()
            trouble: EngineError | None = None
            try:
                self._save()
            except EngineError as error:
                trouble = error
            except Exception as error:  # whatever it is, the next look comes
                _log.exception("the mirror could not save")
                trouble = PushError(f"Runs cannot be saved ({type(error).__name__}).", "See the log of the Space.")
            self._set_trouble(trouble)
            failures = failures + 1 if trouble is not None else 0
            if self._mirror_bucket.is_taken or (is_last and (trouble is None or time.monotonic() > self._deadline)):
                self._home_scan().close()
                return
            pause = min(self._settings.look * 2.0**failures, self._settings.longest_pause)
            self._wake.wait(min(pause, _LAST_PAUSE_SECONDS) if self._ending.is_set() else pause)
            self._wake.clear()

    def _set_trouble(self, trouble: EngineError | None) -> None:
        before = self._view.trouble
        if trouble is not None and (before is None or before.what != trouble.what):
            _log.error("%s", trouble)
        self._view = self._view._replace(trouble=trouble)

    def _save(self) -> None:
        """Look at everything, and send what changed; asks the bucket nothing where nothing did.

        Raises:
            EngineError: If the bucket cannot be written, or the accounts cannot be read.
        """
        late: EngineError | None = None
        changes = self._changed_runs()
        try:
            people = self._home_scan().look()
            if self._mirror_bucket.differs(HOME_INDEX, people.index):
                changes[HOME_INDEX] = people
        except EngineError as error:  # the runs come first
            late = error
        deletions = {name for name in self._ours if self._was_deleted(name)}
        try:
            failures = self._mirror_bucket.write(changes, deletions)
        finally:
            if changes or deletions or self._view.training.keys() != self._training():
                self._publish()
        if deletions:
            self._ours -= deletions
            self._record(())
        for name, scan in self._runs.items():
            if name not in failures:
                scan.settle()
        if late is not None:
            raise late

    def _changed_runs(self) -> dict[str, MirrorFiles]:
        present: set[str] = set()
        changes: dict[str, MirrorFiles] = {}
        for owner in list_owners(self._home):
            for run_id in RunStore(self._home, owner).ids():
                key = RunKey(owner, run_id)
                present.add(key.index)
                with self._problems.guard(run_id, "cannot be saved to the bucket"):
                    files = self._scan_of(key).look()
                    if files is not None and self._mirror_bucket.differs(key.index, files.index):
                        changes[key.index] = files
        for name in self._runs.keys() - present:
            del self._runs[name]
            self._problems.forget(name.split("/")[-1].removesuffix(".json"))
        return changes

    def _scan_of(self, key: RunKey) -> RunScan:
        if key.index not in self._runs:
            run = RunStore(self._home, key.owner).get(key.run_id)
            self._runs[key.index] = RunScan(self._home, run, self._mirror_bucket.indexes.get(key.index))
        return self._runs[key.index]

    def _home_scan(self) -> HomeScan:
        if self._people is None:
            self._people = HomeScan(self._home, self._mirror_bucket.indexes.get(HOME_INDEX))
        return self._people

    def _has(self, key: RunKey) -> bool:
        return (self._home.root / key.folder).is_dir()

    def _was_deleted(self, name: str) -> bool:
        """Whether a run is gone from a folder that is there: a folder out of reach proves nothing."""
        key = RunKey.parse(name)
        return key is not None and (self._home.runs / key.owner).is_dir() and not self._has(key)

    def _record(self, names: Iterable[str]) -> None:
        """Note runs on the disk before they are sent: one that is deleted later must not come back."""
        self._ours |= {name for name in names if name != HOME_INDEX}
        record = _Record(bucket=self._bucket.name, space=self._space, runs=tuple(sorted(self._ours)))
        path, content = self._home.server / _RECORD, record.model_dump_json()
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == content:
                return
        write_atomically(path, content)

    def _training(self) -> set[str]:
        return {name for name, scan in self._runs.items() if scan.is_training}

    def _publish(self) -> None:
        indexes = self._mirror_bucket.indexes
        training = {name: _newest_step(indexes[name].files if name in indexes else {}) for name in self._training()}
        uploads = {path for index in indexes.values() for path in index.files if path.startswith(f"{UPLOADS}/")}
        titles = {name: scan.title for name, scan in self._runs.items()}
        self._view = self._view._replace(
            saved=frozenset(indexes), titles=titles, training=training, uploads=frozenset(uploads)
        )


def _newest_step(files: Mapping[str, MirroredFile]) -> int | None:
    steps = [int(path.split("/")[4].removeprefix("step-")) for path in files if "/checkpoints/step-" in path]
    return max(steps, default=None)


def _end_workers(home: LoratoryHome, seconds: float) -> None:
    """Ask the workers on this machine to save and end, and wait for them."""
    folders = [run.folder for owner in list_owners(home) for run in RunStore(home, owner).list()]
    workers = []
    for folder in folders:
        worker = folder.read_worker()
        if worker is not None and worker.is_alive():
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGTERM)
                workers.append(folder)
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up and any(folder.has_living_worker() for folder in workers):
        time.sleep(0.1)
