"""What the page knows about runs: read from their directories, one reader a run for all pages together."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.chat.target import list_checkpoints
from engine.config.run import RunConfig
from engine.errors import ConfigError, StorageError
from engine.runs.control import (
    ResumeRequest,
    cancel_is_requested,
    resume_requests,
    start_anyway_is_requested,
    stop_is_requested,
)
from engine.runs.history.reader import HistoryReader
from engine.runs.history.run_history import RunHistory
from engine.runs.index import Glance, RunIndex
from engine.runs.notes import RunNotes, read_notes
from engine.runs.provenance import Provenance, read_provenance, run_title
from engine.runs.run import LIVE_STATES, Run, RunState
from engine.runs.store import RunStore
from engine.runs.summary import RunSummary

_FOLLOWED_AT_ONCE = 400
_FOLLOWED_STEPS = 3_000_000  # of all of them together; a million steps take 80 megabytes
_OFFERED_AT_ONCE = 200
_LOOKED_THROUGH = 200  # runs that are looked at for one under way
_LOG_TAIL_BYTES = 24_000
_SAME_LOOK_SECONDS = 1.0
_AT_ONCE_SECONDS = 0.1  # for runs that were never looked at
_BETWEEN_SLICES_SECONDS = 0.05
_SILENCE_SHOWN_SECONDS = 10.0


@dataclass(frozen=True)
class ObservedRun:
    """One run as it lies on the disk at this moment."""

    run: Run
    config: RunConfig | None  # None where config.yaml cannot be read
    state: RunState
    history: RunHistory
    notes: RunNotes
    provenance: Provenance
    stop_requested: bool
    cancel_requested: bool
    resume_requested: bool
    log_bytes: int

    @property
    def title(self) -> str:
        if self.notes.name:
            return self.notes.name
        return run_title(self.config) if self.config is not None else self.run.id

    @property
    def is_live(self) -> bool:
        """Whether something is, or will be, happening by itself."""
        return not self.state.is_final or self.resume_requested

    @property
    def stamp(self) -> str:
        """Changes whenever something that the page shows has changed."""
        asked = f"{self.stop_requested:d}{self.cancel_requested:d}{self.resume_requested:d}{self.waits_for_memory:d}"
        # Nothing changes while a worker says nothing, and still the page says for how long.
        since = self.state.silent_since
        silent = "" if since is None else f"{(time.time() - since) // _SILENCE_SHOWN_SECONDS:.0f}"
        told = f"{self.state.changed}:{self.state.state}:{silent}:{self.state.notice}"
        return f"{self.run.id}:{self.history.next_offset}:{told}:{asked}:{self.title}"

    @property
    def waits_for_memory(self) -> bool:
        """Whether it waits for free memory alone, and nobody has let it start anyway yet."""
        waits = self.state.state == "queued" and self.state.reason == "memory"
        return waits and not start_anyway_is_requested(self.run.folder)

    @property
    def has_adapter(self) -> bool:
        return has_adapter(self.run)

    @property
    def can_be_talked_to(self) -> bool:
        return can_be_talked_to(self.run)


def has_adapter(run: Run) -> bool:
    """Whether there is a final result to talk to and to take away."""
    return run.folder.adapter.is_dir()


def can_be_talked_to(run: Run) -> bool:
    """Whether an adapter or a whole checkpoint exists."""
    return has_adapter(run) or bool(list_checkpoints(run.folder.path))


class RunReader:
    """Reads the runs of one store.

    Args:
        runs: The store.
    """

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._lock = threading.Lock()  # guards what stands below: handlers run in many threads
        self._histories: OrderedDict[str, HistoryReader] = OrderedDict()
        self._fixed: dict[str, tuple[RunConfig, Provenance]] = {}
        self._rows: tuple[float, int, list[RunSummary]] = (-math.inf, 0, [])  # when, of which folder, what
        self._catching_up: threading.Thread | None = None
        self._index = RunIndex(runs, self._history_of)

    def observe(self, run_id: str) -> ObservedRun:
        """Look at one run; only what is new of its log is read.

        Raises:
            RunError: If there is no such run.
        """
        run = self._runs.get(run_id)
        config, provenance = self._config_of(run)
        # The state first: a state that says "completed" must never stand beside a history that lacks the last step.
        state = run.folder.read_state_as_offered()
        return ObservedRun(
            run=run,
            config=config,
            state=state,
            history=self._history_of(run),
            notes=read_notes(run.folder),
            provenance=provenance,
            stop_requested=stop_is_requested(run.folder),
            cancel_requested=cancel_is_requested(run.folder),
            resume_requested=ResumeRequest(run.owner, run.id) in resume_requests(self._runs.home),
            log_bytes=_size(run.folder.log),
        )

    def newest_under_way(self) -> str | None:
        """Id of the newest run that works, else of the newest that waits."""
        waiting = None
        for run in self._runs.list()[:_LOOKED_THROUGH]:
            state = run.folder.read_state().state
            if state in LIVE_STATES:
                return run.id
            if state == "queued":
                waiting = run.id
        return waiting

    def offered(self, wanted: Callable[[Run], bool], *chosen: str | None) -> list[RunSummary]:
        """Rows of the newest runs that `wanted` says yes to, and of those that are `chosen`, however old they are."""
        rows = self.summaries()
        near = rows[:_OFFERED_AT_ONCE] + [row for row in rows[_OFFERED_AT_ONCE:] if row.id in chosen]
        return [row for row in near if wanted(self._runs.get(row.id))]

    def exists(self, run_id: str) -> bool:
        """Whether a browser's memory of a run still means something."""
        return bool(run_id) and run_id in self._runs.ids()

    def summaries(self) -> list[RunSummary]:
        """Rows of all runs, newest first; pages that ask within a second share one look."""
        return self._look(math.inf).rows

    def glance(self) -> Glance:
        """Rows for a page that cannot wait; runs that no server has seen yet are read in the background from then on."""
        glance = self._look(_AT_ONCE_SECONDS)
        with self._lock:
            if glance.unread and (self._catching_up is None or not self._catching_up.is_alive()):
                self._catching_up = threading.Thread(target=self._catch_up, name="read-runs", daemon=True)
                self._catching_up.start()
        return glance

    def _look(self, patience_seconds: float) -> Glance:
        now, modified = time.monotonic(), _modified(self._runs.folder)
        with self._lock:
            looked, seen, rows = self._rows
            if now - looked < _SAME_LOOK_SECONDS and seen == modified:
                return Glance(rows, 0)
        glance = self._index.glance(patience_seconds)
        if not glance.unread:
            with self._lock:
                self._rows = (now, modified, glance.rows)
        return glance

    def _catch_up(self) -> None:
        # In slices, between which a page gets what there is.
        while self._index.glance(_AT_ONCE_SECONDS).unread:
            time.sleep(_BETWEEN_SLICES_SECONDS)

    def look_again(self) -> None:
        """Something was just changed that the next look must show."""
        with self._lock:
            self._rows = (-math.inf, 0, [])

    def summary(self, run_id: str) -> RunSummary:
        """Row of one run.

        Raises:
            RunError: If there is no such run.
        """
        return self._index.summary(self._runs.get(run_id))

    def forget(self, run_id: str) -> None:
        """Let go of a deleted run."""
        with self._lock:
            self._histories.pop(run_id, None)
            self._fixed.pop(run_id, None)
        self.look_again()

    def _history_of(self, run: Run) -> RunHistory:
        with self._lock:
            reader = self._histories.setdefault(run.id, HistoryReader.of_run(run))
            self._histories.move_to_end(run.id)
        history = reader.update()
        with self._lock:
            while len(self._histories) > 1 and self._follows_too_much():
                self._histories.popitem(last=False)
        return history

    def _follows_too_much(self) -> bool:
        steps = sum(reader.steps_read for reader in self._histories.values())
        return steps > _FOLLOWED_STEPS or len(self._histories) > _FOLLOWED_AT_ONCE

    def _config_of(self, run: Run) -> tuple[RunConfig | None, Provenance]:
        with self._lock:
            known = self._fixed.get(run.id)
        if known is not None:
            return known
        try:
            config = run.folder.read_config()
        except (ConfigError, StorageError):
            config = None
        provenance = read_provenance(run.folder)
        if config is not None:  # what cannot be read now may be mended
            with self._lock:
                self._fixed[run.id] = (config, provenance)
        return config, provenance


def log_tail(path: Path) -> str:
    """The newest lines of a worker's log; a progress bar's overwritten states are left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    if size > _LOG_TAIL_BYTES:
        text = text.partition("\n")[2]
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n"))


def _modified(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
