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
from collections.abc import Iterable

from pydantic import BaseModel

from engine.errors import EngineError, HubUnreachableError, PushError
from engine.files import read_model, write_atomically
from engine.hub import MIRROR, RunBucket
from engine.paths import LoratoryHome
from engine.runs.store import RunStore, list_owners
from engine.runs.supervision.states import ProblemLog
from engine.space.environment import SpaceEnvironment
from engine.space.mirror_bucket import MirrorBucket
from engine.space.mirror_index import HOME_INDEX, INCOMING, Index, index_of, read_contents
from engine.space.mirror_restore import Restorer, RestoreResult
from engine.space.mirror_scan import HomeScan, RunScan
from engine.space.unsaved import Unsaved, View

_RECORD = "mirror.json"
_PATIENCE_SECONDS = 120.0  # for the bucket to answer before a restore is given up
_LONGEST_PAUSE_SECONDS = 300.0  # between two tries while saving fails
_LAST_PAUSE_SECONDS = 0.5  # between tries while the process ends

_log = logging.getLogger(__name__)


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
        look_seconds: Between two looks at what changed.
    """

    def __init__(self, home: LoratoryHome, bucket: RunBucket, space: str, look_seconds: float = 15.0) -> None:
        self._home = home
        self._bucket = bucket
        self._space = space
        self._look_seconds = look_seconds
        self._mirror_bucket = MirrorBucket(bucket, home, space)
        self._is_restored = False
        self._ours: set[str] = set()  # indexes of runs that this disk has or had
        self._runs: dict[str, RunScan] = {}
        self._people = HomeScan(home)
        self._problems = ProblemLog()
        self._view = View()
        self._wake, self._ending = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None

    def restore(self, patience_seconds: float = _PATIENCE_SECONDS) -> RestoreResult:
        """Take the bucket for this Space, and bring back what this home does not have.

        A home that is the same as before, after a restart of the process alone, stays as it is.

        Args:
            patience_seconds: For the bucket to answer.

        Raises:
            PushError: If the bucket is another Space's, or Hugging Face refuses it; nothing will be saved then.
            HubUnreachableError: If it does not answer; nothing will be saved then either, as an empty home must not
                replace what is there.
            StorageError: If the home cannot be written.
        """
        give_up, pause = time.monotonic() + patience_seconds, 1.0
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
        self._mirror_bucket.take()
        contents = read_contents(self._bucket, self._home)
        self._mirror_bucket.know(contents)
        record = read_model(self._home.server / _RECORD, _Record)
        result = RestoreResult()
        if record is not None and (record.bucket, record.space) == (self._bucket.name, self._space):
            self._ours = set(record.runs)
        else:
            result = Restorer(self._bucket, contents, self._home).restore()
            self._ours = set()
            self._record(filter(self._has, contents.indexes))
        if result.words:
            _log.warning("%s", result.words)
        self._is_restored = True
        self._publish()
        return result

    def start(self) -> None:
        """Begin to save, in a thread of its own; does nothing where nothing could be restored."""
        if self._is_restored and self._thread is None:
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
        return self._view.unsaved(self._home, owner)

    def save(self) -> None:
        """Look at everything, and send what changed; asks the bucket nothing where nothing did.

        Raises:
            EngineError: If the bucket cannot be written, or the accounts cannot be read.
        """
        changes = self._changed_runs()
        if not changes.keys() <= self._ours:
            self._record(changes)  # before they are sent: a run that is deleted later must not come back
        deletions = {name for name in self._ours if self._was_deleted(name)}
        try:
            self._mirror_bucket.write(changes, deletions)
            self._mirror_bucket.write({HOME_INDEX: self._people.look()})
        finally:
            self._publish()
        if deletions:
            self._ours -= deletions
            self._record(())

    def _changed_runs(self) -> dict[str, Index]:
        scans, changes = dict[str, RunScan](), dict[str, Index]()
        for owner in list_owners(self._home):
            for run in RunStore(self._home, owner).list():
                name = index_of(owner, run.id)
                before = self._mirror_bucket.indexes.get(name)
                scan = scans[name] = self._runs.get(name) or RunScan(self._home, run, before)
                with self._problems.guard(run.id, "cannot be saved to the bucket"):
                    index = scan.look(before)
                    if index is not None:
                        changes[name] = index
        self._runs = scans
        return changes

    def _has(self, index: str) -> bool:
        return (self._home.root / index.removesuffix(".json")).is_dir()

    def _was_deleted(self, index: str) -> bool:
        """Whether a run is gone from a folder that is there: a folder out of reach proves nothing."""
        return not self._has(index) and (self._home.root / index).parent.is_dir()

    def _record(self, indexes: Iterable[str]) -> None:
        """Note runs as being on this disk."""
        self._ours |= set(indexes)
        record = _Record(bucket=self._bucket.name, space=self._space, runs=tuple(sorted(self._ours)))
        write_atomically(self._home.server / _RECORD, record.model_dump_json())

    def _publish(self) -> None:
        training = frozenset(name for name, scan in self._runs.items() if scan.is_training)
        self._view = self._view._replace(indexes=dict(self._mirror_bucket.indexes), training=training)

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
            except Exception as error:  # whatever it is, the next look comes
                _log.exception("the mirror could not save")
                trouble = PushError(f"Runs cannot be saved ({type(error).__name__}).", "See the log of the Space.")
            self._set_trouble(trouble)
            failures = failures + 1 if trouble is not None else 0
            if self._mirror_bucket.is_taken or (is_last and (trouble is None or time.monotonic() > self._deadline)):
                return
            pause = min(self._look_seconds * 2.0**failures, _LONGEST_PAUSE_SECONDS)
            self._wake.wait(min(pause, _LAST_PAUSE_SECONDS) if self._ending.is_set() else pause)
            self._wake.clear()

    def _set_trouble(self, trouble: EngineError | None) -> None:
        before = self._view.trouble
        if trouble is not None and (before is None or before.what != trouble.what):
            _log.error("%s", trouble)
        self._view = self._view._replace(trouble=trouble)


def _end_workers(home: LoratoryHome, seconds: float) -> None:
    """Ask the workers on this machine to save and end, and wait for them."""
    asked = []
    for folder in [run.folder for owner in list_owners(home) for run in RunStore(home, owner).list()]:
        worker = folder.read_worker()
        if worker is not None and worker.is_alive():
            with contextlib.suppress(OSError):
                os.kill(worker.pid, signal.SIGTERM)
                asked.append(folder)
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up and any(folder.has_living_worker() for folder in asked):
        time.sleep(0.1)
