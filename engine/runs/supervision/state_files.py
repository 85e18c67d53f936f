"""State files that something else than the supervisor deleted or damaged: noticed, kept aside, and rebuilt."""

import os
import shutil
import stat
import time
from pathlib import Path

from engine.errors import StorageError
from engine.runs.run import Run, RunState
from engine.runs.store import RunStore

DAMAGED_STATE_FILE = "state.json.damaged"  # the newest alone

_Stamp = tuple[int, int, int]


class StateFiles:
    """Writes the state of every run of a home, and notices where a file is no longer what was written.

    An unchanged file costs one `stat`.
    """

    def __init__(self) -> None:
        self._stamps: dict[str, _Stamp] = {}  # of files that were written or read here, by run

    def save(self, run: Run, state: RunState) -> None:
        """Replace a state; does nothing where the run was deleted.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        if run.folder.path.is_dir():
            if run.folder.state.is_dir():
                _keep_aside(run.folder.state)
            run.folder.write_state(state)
            self._note(run)

    def load(self, run: Run) -> RunState | None:
        """Return the state as it was saved; None where the file is missing, damaged, or closed to us.

        Raises:
            StorageError: If the disk or a file server fails at present.
        """
        try:
            state = run.folder.read_saved_state()
        except StorageError:
            if os.access(run.folder.state, os.R_OK):
                raise
            return None
        if state is not None:
            self._note(run)
        return state

    def is_intact(self, run: Run) -> bool:
        """Whether a state can be read, or the run was deleted.

        Raises:
            StorageError: If the disk or a file server fails at present.
        """
        known = self._stamps.get(run.id)
        if known is not None and _stamp_of(run.folder.state) == known:
            return True
        return self.load(run) is not None or not run.folder.path.is_dir()

    def rebuild(self, run: Run, state: RunState) -> RunState:
        """Keep a damaged file aside, and save what its run's other files and its worker show.

        Returns:
            `state` with a sentence about it for the person.

        Raises:
            StorageError: If the disk is full or the folder cannot be written.
        """
        is_missing = not os.path.lexists(run.folder.state)
        if not is_missing:
            _keep_aside(run.folder.state)
        what = "missing" if is_missing else f"damaged (it is kept as {DAMAGED_STATE_FILE})"
        sources = "the event log, process.json and the worker's lock"
        rebuilt = state.model_copy(update={"notice": f"state.json was {what}; it was rebuilt from {sources}."})
        self.save(run, rebuilt)
        return rebuilt

    def forget(self, run_id: str) -> None:
        """It was deleted."""
        self._stamps.pop(run_id, None)

    def _note(self, run: Run) -> None:
        stamp = _stamp_of(run.folder.state)
        if stamp is not None:
            self._stamps[run.id] = stamp


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return (seen.st_ino, seen.st_size, seen.st_mtime_ns) if stat.S_ISREG(seen.st_mode) else None


def _keep_aside(path: Path) -> None:
    aside = path.with_name(DAMAGED_STATE_FILE)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    if path.is_dir() and not path.is_symlink():
        aside.unlink(missing_ok=True)
    path.replace(aside)


_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time
_LOOK_AGAIN_SECONDS = 30.0  # however unchanged a folder looks: network filesystems cache its times


class OwnerFolder:
    """Remembers when an owner's folder was last looked at, so an unchanged one costs nothing.

    Args:
        store: The owner's runs.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.known: set[str] = set()
        self._modified = 0
        self._looked = 0.0

    def has_changed(self) -> bool:
        """Whether to look; the caller does so."""
        try:
            modified = self.store.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return bool(self.known)  # gone with all that was in it, or away: what comes back is taken in again
        now = time.time()
        settled = now - modified / 1e9 > _UNSETTLED_SECONDS
        if modified == self._modified and settled and now - self._looked < _LOOK_AGAIN_SECONDS:
            return False
        self._modified, self._looked = modified, now
        return True
