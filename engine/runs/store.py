"""The runs of one owner: created once per request, looked up by id, listed, deleted."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from loratory.engine.config.load import config_to_yaml
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.errors import RunError, StorageError, explain_os_errors, shorten
from loratory.engine.files import fsync_folder, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.runs.control import change_notes, resume_is_requested
from loratory.engine.runs.names import automatic_name, words_of
from loratory.engine.runs.provenance import Provenance, describe_config, read_provenance
from loratory.engine.runs.run import RUN_ID, Run, RunFolder

KEYS_FOLDER = "keys"  # of requests to start: a repeated one returns its run
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DOOMED_PREFIX = ".deleted-"
_UNBORN_PREFIX = ".new-"
_MAKING_SECONDS = 3600.0  # it takes a moment; clocks of two hosts may differ by minutes
_CLOCK_MAY_GO_BACK_MILLISECONDS = 24 * 3600 * 1000
_MOST_CANDIDATES = 64  # for an id whose two words no other run has


class RunStore:
    """The runs of one owner.

    Ids from outside are looked up in the owner's folder; what is not formed like an id never becomes a path.

    Raises:
        StorageError: If the owner's name cannot be a folder.
    """

    def __init__(self, home: LoratoryHome, owner: str, clock: Callable[[], float] = time.time) -> None:
        if not _OWNER.fullmatch(owner):
            raise StorageError("That owner's name cannot be a folder.", "Use letters, digits, - and _.")
        self.home = home
        self.owner = owner
        self.folder = home.runs / owner  # of the run directories
        self._clock = clock

    def create(
        self,
        config: RunConfig,
        provenance: Provenance | None = None,
        key: str | None = None,
        report: DatasetReport | None = None,
        *,
        names_run: bool = False,
        complete: Callable[[RunFolder], None] | None = None,
    ) -> Run:
        """Make the run directory; the run then waits in the queue until a supervisor starts it.

        Args:
            key: Names the request: a second call with the same key returns the run of the first.
            report: What the check of its dataset found; saved with the run, to show what was left out.
            names_run: Whether a run without a name gets an automatic one.
            complete: Gives the folder its result and final state, where it comes from elsewhere than training.

        Raises:
            StorageError: If the disk is full or the home cannot be written.
        """
        now = self._clock()
        with explain_os_errors("The run's folder cannot be made", "Free some space, or check LORATORY_HOME."):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Between looking the key up and having made the run, no other process may do the same.
            with FileLock(self.home.server / f"create-{self.owner}.lock"):
                existing = None if key is None else self.find_by_key(key)
                if existing is not None:
                    return existing
                run_id = self._new_id(now)
                unborn = self.folder / f"{_UNBORN_PREFIX}{run_id}"
                unborn.mkdir(mode=0o700)
                folder = RunFolder(unborn)
                folder.control.mkdir(mode=0o700)
                if names_run and not config.run.name:
                    section = config.run.model_copy(update={"name": automatic_name(config, run_id)})
                    config = config.model_copy(update={"run": section})
                facts = {**describe_config(config), "created": now, "key": key}
                provenance = (provenance or Provenance()).model_copy(update=facts)
                write_atomically(folder.config, config_to_yaml(config))
                write_atomically(folder.provenance, provenance.model_dump_json(indent=1))
                if config.run.project:
                    change_notes(folder, project=config.run.project)
                if report is not None:
                    write_atomically(folder.dataset_report, report.model_dump_json(indent=1))
                if complete is not None:
                    complete(folder)
                if key is not None:
                    # First the key: one whose run is missing counts as unused, while a run whose key is missing would
                    # be made a second time.
                    write_atomically(self._key_file(key), run_id, makes_folder=True)
                unborn.rename(self.folder / run_id)
                fsync_folder(self.folder)
        return self._run(run_id)

    def get(self, run_id: str) -> Run:
        """Look up one run by its id, or by any end of it that only one run has, such as its last four characters.

        Raises:
            RunError: If there is none, or more than one.
        """
        if self._exists(run_id):
            return self._run(run_id)
        matches = [candidate for candidate in self.ids() if len(run_id) >= 4 and candidate.endswith(run_id)]
        if len(matches) == 1:
            return self._run(matches[0])
        if matches:
            raise RunError(f"{shorten(run_id)!r} means {len(matches)} runs.", "Give more of the id.")
        raise RunError(f"Run {shorten(run_id)!r} was not found.", "List the runs with `loratory runs`.")

    def find_by_key(self, key: str) -> Run | None:
        """Return the run that an earlier `create` with this key made; None where there was none, or it was deleted."""
        try:
            run_id = self._key_file(key).read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        return self._run(run_id) if self._exists(run_id) else None

    def ids(self) -> list[str]:
        """Ids of all runs, newest first."""
        try:
            with os.scandir(self.folder) as entries:
                return sorted((entry.name for entry in entries if RUN_ID.fullmatch(entry.name)), reverse=True)
        except FileNotFoundError:
            return []

    def list(self) -> list[Run]:
        """All runs, newest first."""
        return [self._run(run_id) for run_id in self.ids()]

    def delete(self, run_id: str) -> int:
        """Remove a run that has ended, with everything it saved; returns the bytes that this freed.

        Raises:
            RunError: If there is no such run, or it waits, runs, or is about to be resumed.
            StorageError: If its files cannot be removed.
        """
        run = self.get(run_id)
        trash = self.folder / f"{_DOOMED_PREFIX}{run.id}"
        key = read_provenance(run.folder).key
        with explain_os_errors(f"{run.id} cannot be removed", "Check the permissions of its folder."):
            self._set_aside(run, trash)
            if key is not None:
                self._key_file(key).unlink(missing_ok=True)
            size = folder_size_bytes(trash)
            with contextlib.suppress(FileNotFoundError):  # a server that starts sweeps it away at the same time
                shutil.rmtree(trash)
        return size

    def _set_aside(self, run: Run, trash: Path) -> None:
        try:
            # With the lock in our hands no worker can claim it, and no supervisor resumes it.
            with run.folder.keep_workers_away(timeout_seconds=1.0) as is_ours:
                self._refuse_to_delete(run, is_ours)
                run.folder.path.rename(trash)  # it disappears from every list at once, even if the rest takes long
        except StorageError:
            self.get(run.id)  # it may have been deleted meanwhile
            raise

    def _refuse_to_delete(self, run: Run, is_ours: bool) -> None:
        state = run.folder.read_state()
        if not is_ours or not state.is_final:
            raise RunError(f"{run.id} is {state.state} and cannot be deleted.", "Stop it first.")
        if resume_is_requested(self.home, run):
            raise RunError(f"{run.id} is about to be resumed and cannot be deleted.", "Stop it first, once it waits.")

    def sweep(self) -> None:
        """Remove what an interrupted creation or deletion left behind.

        A run that is an hour old at most may be in the making on another host, whose lock is not seen here.
        """
        with contextlib.suppress(FileNotFoundError), FileLock(self.home.server / f"create-{self.owner}.lock"):
            for path in (*self.folder.glob(f"{_DOOMED_PREFIX}*"), *self.folder.glob(f"{_UNBORN_PREFIX}*")):
                run_id = path.name.removeprefix(_UNBORN_PREFIX)
                created = _milliseconds_of(run_id) / 1000 if RUN_ID.fullmatch(run_id) is not None else 0.0
                if self._clock() - created > _MAKING_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _exists(self, run_id: str) -> bool:
        # Nothing but an id passes the pattern, so no path can be smuggled in.
        return RUN_ID.fullmatch(run_id) is not None and (self.folder / run_id).is_dir()

    def _run(self, run_id: str) -> Run:
        return Run(id=run_id, owner=self.owner, folder=RunFolder(self.folder / run_id))

    def _new_id(self, now: float) -> str:
        """Return an id later than every other, even when the clock stops or goes back a little, with two words of its own."""
        milliseconds, ids = int(now * 1000), self.ids()
        newest = max((_milliseconds_of(run_id) for run_id in ids[:1]), default=0)
        if milliseconds <= newest < milliseconds + _CLOCK_MAY_GO_BACK_MILLISECONDS:
            milliseconds = newest + 1
        moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
        used_words, beginning = set(map(words_of, ids)), f"{moment:%Y%m%d-%H%M%S}-{milliseconds % 1000:03d}"
        candidates = [f"{beginning}-{secrets.token_hex(2)}" for _ in range(_MOST_CANDIDATES)]
        return next((run_id for run_id in candidates if words_of(run_id) not in used_words), candidates[0])

    def _key_file(self, key: str) -> Path:
        digest = hashlib.sha256(f"{self.owner}\0{key}".encode()).hexdigest()
        return self.home.server / KEYS_FOLDER / digest


def list_owners(home: LoratoryHome) -> list[str]:
    """Return the owners with a folder of runs, accessible or not."""
    try:
        with os.scandir(home.runs) as entries:
            return sorted(entry.name for entry in entries if _OWNER.fullmatch(entry.name) and _is_folder(entry))
    except FileNotFoundError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return True  # out of reach, like a mount that is gone: looking into it shows why


def folder_size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{parent}/{name}").st_size
    return total


def _milliseconds_of(run_id: str) -> int:
    moment = datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    return int(moment.timestamp()) * 1000 + int(run_id[16:19])
