"""Reads runs from their directories: a person's own, and in a lab those of other people, within the rights."""

import contextlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.accounts.people import Action, Person
from loratory.engine.chat.target import list_checkpoints
from loratory.engine.config.derived_defaults import given_settings
from loratory.engine.config.run import RunConfig, RunSection, by_section
from loratory.engine.errors import ConfigError, EngineError, RunError, StorageError
from loratory.engine.files import size_and_time
from loratory.engine.lab.rules import LabRuns, is_shared, lab_problems
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.control import RunNotes, read_notes, resume_is_requested
from loratory.engine.runs.history.run_history import HistoryReader, RunHistory
from loratory.engine.runs.names import run_label
from loratory.engine.runs.provenance import Provenance, read_provenance, run_title
from loratory.engine.runs.run import LIVE_STATES, STARTS_ANYWAY, Run, RunState
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import Glance, RunIndex, RunSummary
from loratory.engine.runs.usage import Cost, energy_of, read_electricity
from loratory.engine.supervision.launch import with_absolute_paths
from loratory.ui.backend.background import Cache, stamp

FINAL, FINAL_WORDS = "final", "final result"  # the checkpoint of a run that is not one of its checkpoints

_MOST_HISTORIES = 400
_MOST_STEPS = 3_000_000  # of all histories together; a million steps take 80 MB
_OFFERED_AT_ONCE = 200
_NEWEST = 20  # runs that are compared with a draft at every change of it
_LOG_TAIL_BYTES = 24_000
_AT_ONCE_SECONDS = 0.1  # for runs that were never read


@dataclass(frozen=True)
class RunSnapshot:
    """A run as read from disk at one moment."""

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
        return self.notes.name or (run_title(self.config) if self.config is not None else self.run.id)

    @property
    def label(self) -> str:
        """Its name in lists, in which no two runs look the same."""
        return run_label(self.title, self.run.id)

    @property
    def is_live(self) -> bool:
        """Whether its state can change without a user."""
        return not self.state.is_final or self.resume_requested

    @property
    def stamp(self) -> str:
        """A stamp that changes with everything that the page shows."""
        state = self.state
        requests = f"{self.stop_requested:d}{self.cancel_requested:d}{self.resume_requested:d}{self.waits_for_memory:d}"
        # A silent worker changes no file, but the page shows for how long it has been silent.
        silent = "" if state.silent_since is None else f"{(time.time() - state.silent_since) // 10:.0f}"
        parts = (state.changed, state.state, silent, requests, self.title, self.notes.star)
        return stamp(self.run.id, self.history.next_offset, *parts)

    @property
    def waits_for_memory(self) -> bool:
        """Whether it waits for free memory or other programs and may still be started anyway."""
        waits = self.state.state == "queued" and self.state.reason in STARTS_ANYWAY
        return waits and not self.run.folder.start_anyway_request.exists()


def has_adapter(run: Run) -> bool:
    """Return whether there is a final result to chat with and to export."""
    return run.folder.adapter.is_dir()


def can_chat(run: Run) -> bool:
    """Return whether an adapter or a complete checkpoint exists."""
    return has_adapter(run) or bool(list_checkpoints(run.folder.path))


class RunReader:
    """Reads the runs of one store."""

    def __init__(self, runs: RunStore) -> None:
        self._runs = runs
        self._lock = threading.Lock()  # guards what follows: handlers run in many threads
        self._histories: OrderedDict[str, HistoryReader] = OrderedDict()
        self._configs: dict[str, tuple[RunConfig, Provenance]] = {}
        # The rows, with the time of reading and the folder's.
        self._rows: tuple[float, int, list[RunSummary]] = (-math.inf, 0, [])
        self._catching_up: threading.Thread | None = None
        self._index = RunIndex(runs, self._history_of)

    def observe(self, run_id: str) -> RunSnapshot:
        """Read one run; only the new part of its log is parsed.

        Raises:
            RunError: If there is no such run.
        """
        run = self._runs.get(run_id)
        config, provenance = self._config_of(run)
        # The state first: "completed" must never come with a history that lacks the last step.
        state = run.folder.as_offered(run.folder.read_state())
        return RunSnapshot(
            run=run,
            config=config,
            state=state,
            history=self._history_of(run),
            notes=read_notes(run.folder),
            provenance=provenance,
            stop_requested=run.folder.stop_request.exists(),
            cancel_requested=run.folder.cancel_request.exists(),
            resume_requested=resume_is_requested(self._runs.home, run),
            log_bytes=size_and_time(run.folder.log)[0],
        )

    def newest_active(self, *, or_waiting: bool = True) -> str | None:
        """Return the id of the newest active run, else of the newest that waits."""
        waiting = None
        for run in self._runs.list()[:200]:
            state = run.folder.read_state().state
            if state in LIVE_STATES:
                return run.id
            if state == "queued" and or_waiting:
                waiting = run.id
        return waiting

    def newest_where(self, condition: Callable[[Run], bool], *extra_ids: str | None) -> list[RunSummary]:
        """Return rows of the newest runs that `condition` accepts, and of those that are `extra_ids`, however old they are."""
        rows = self.summaries()
        near = rows[:_OFFERED_AT_ONCE] + [row for row in rows[_OFFERED_AT_ONCE:] if row.id in extra_ids]
        # A run that was just stopped is chosen next: its state must be current.
        near = [self.summary(row.id) if row.id in extra_ids else row for row in near]
        return [row for row in near if condition(self._runs.get(row.id))]

    def newest_of(
        self, config: RunConfig, apart_from: Iterable[str] = (), condition: Callable[[Run], bool] = lambda _: True
    ) -> RunSummary | None:
        """Return the newest run with these settings that `condition` accepts; its name, its devices and what is `apart_from` them may differ."""
        ignored_settings = tuple(apart_from)
        settings = _settings_of(with_absolute_paths(config), ignored_settings)
        for row in self.glance().rows[:_NEWEST]:
            with contextlib.suppress(RunError):  # it may be deleted meanwhile
                run = self._runs.get(row.id)
                run_config, _ = self._config_of(run)
                if run_config is not None and _settings_of(run_config, ignored_settings) == settings and condition(run):
                    # The row may be a second old, and a page asks only once when its run ends.
                    return self.summary(row.id)
        return None

    def exists(self, run_id: str) -> bool:
        """Return whether a run that a browser remembers still exists."""
        return bool(run_id) and run_id in self._runs.ids()

    def summaries(self) -> list[RunSummary]:
        """Return rows of all runs, newest first; pages that ask within a second share one scan."""
        return self._refresh(math.inf).rows

    def glance(self) -> Glance:
        """Return rows without waiting; unread runs are read in the background."""
        glance = self._refresh(_AT_ONCE_SECONDS)
        with self._lock:
            if glance.unread and (self._catching_up is None or not self._catching_up.is_alive()):
                self._catching_up = threading.Thread(target=self._catch_up, name="read-runs", daemon=True)
                self._catching_up.start()
        return glance

    def _refresh(self, patience_seconds: float) -> Glance:
        now, (_, folder_time) = time.monotonic(), size_and_time(self._runs.folder)
        with self._lock:
            last_look, last_modified, rows = self._rows
            if now - last_look < 1.0 and last_modified == folder_time:
                return Glance(rows, 0)
        glance = self._index.glance(patience_seconds)
        if not glance.unread:
            with self._lock:
                self._rows = (now, folder_time, glance.rows)
        return glance

    def _catch_up(self) -> None:
        # In slices, between which a page gets what there is.
        while self._index.glance(_AT_ONCE_SECONDS).unread:
            time.sleep(0.05)

    def invalidate(self) -> None:
        """Drop the cached list, so the next call shows a change that was just made."""
        with self._lock:
            self._rows = (-math.inf, 0, [])

    def summary(self, run_id: str) -> RunSummary:
        """Return the row of one run.

        Raises:
            RunError: If there is no such run.
        """
        return self._index.summary(self._runs.get(run_id))

    def cost(self, snapshot: RunSnapshot) -> Cost | None:
        """Return what a run has cost: its jobs at Hugging Face so far, or its electricity once it has ended; None if unknown."""
        if (job := JobRecord.read(snapshot.run.folder)) is not None:
            return Cost(job.cost_usd, "USD") if job.cost_usd else None
        electricity = read_electricity(self._runs.home)
        if electricity.price_per_kwh is None or not snapshot.state.is_final:
            return None
        energy = energy_of(self.summary(snapshot.run.id), electricity)
        return Cost(energy.cost, electricity.currency) if energy is not None and energy.cost else None

    def forget(self, run_id: str) -> None:
        """Drop a deleted run."""
        with self._lock:
            self._histories.pop(run_id, None)
            self._configs.pop(run_id, None)
        self.invalidate()

    def _history_of(self, run: Run) -> RunHistory:
        with self._lock:
            reader = self._histories.setdefault(run.id, HistoryReader(run.folder.events))
            self._histories.move_to_end(run.id)
        history = reader.update()
        with self._lock:
            steps = sum(reader.steps_read for reader in self._histories.values())
            while len(self._histories) > 1 and (steps > _MOST_STEPS or len(self._histories) > _MOST_HISTORIES):
                _, oldest = self._histories.popitem(last=False)
                steps -= oldest.steps_read
        return history

    def _config_of(self, run: Run) -> tuple[RunConfig | None, Provenance]:
        with self._lock:
            entry = self._configs.get(run.id)
        if entry is not None:
            return entry
        try:
            config = run.folder.read_config()
        except (ConfigError, StorageError):
            config = None
        provenance = read_provenance(run.folder)
        if config is not None:  # a broken file may be repaired
            with self._lock:
                self._configs[run.id] = (config, provenance)
        return config, provenance


def _settings_of(config: RunConfig, ignored_settings: Iterable[str]) -> RunConfig:
    """Return the settings without revision and place, which the check before a start sets."""
    changes = by_section(dict.fromkeys(("model.revision", *ignored_settings)))
    sections = {name: getattr(config, name).model_copy(update=fields) for name, fields in changes.items()}
    return config.model_copy(update={**sections, "run": RunSection()})


def log_tail(path: Path) -> str:
    """Return the end of a worker's log, without overwritten progress bars."""
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


_MOST_RUNS = 200


class SharedReaders:
    """Readers and HTML of runs, shared by the pages of a lab: each run is read and drawn once."""

    def __init__(self) -> None:
        self.html_cache: Cache[str] = Cache()
        self._readers: dict[Path, RunReader] = {}  # by an owner's folder of runs

    def reader_of(self, runs: RunStore) -> RunReader:
        """Return the reader of an owner's runs."""
        return self._readers.setdefault(runs.folder, RunReader(runs))


@dataclass(frozen=True)
class SharedRuns(LabRuns):
    """Reads other users' runs, named `owner/run-id`; rights are checked at every read."""

    readers: SharedReaders

    @classmethod
    def for_person(cls, home: LoratoryHome, person: Person, readers: SharedReaders) -> "SharedRuns":
        """Return the runs as one person may see them."""
        return cls(home, person, AuditLog(audit_log_path(home)), readers)

    def observe(self, name: str, action: Action) -> RunSnapshot:
        """Return a run as it is now.

        Raises:
            RunError: If there is none, or the person may not.
        """
        run = self.open(name, action)
        return self._reader(run.owner).observe(run.id)

    def summary(self, run: Run) -> RunSummary:
        """Return the row of a run that was opened; its id is the name by which it can be opened."""
        row = self._reader(run.owner).summary(run.id)
        return row.model_copy(update={"id": name_of(run)})

    def rows(self) -> list[RunSummary]:
        """Return rows of what this person may open, newest first; one that cannot be read is left out.

        Of a run that is not shared, an admin sees here that it exists; looking into it is logged.
        """
        summaries = []
        for run in self.others()[:_MOST_RUNS]:
            try:
                if is_shared(run.folder):
                    summaries.append(self.summary(run))
                    continue
                state, created = run.folder.read_state().state, read_provenance(run.folder).created
            except (EngineError, OSError):
                continue
            identity = name_of(run)
            summaries.append(RunSummary(id=identity, owner=run.owner, name="Not shared", state=state, created=created))
        return summaries

    def settings(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """Return the settings of a run for the form, and which are left empty: they name what only its owner may use.

        Raises:
            EngineError: If the person may not copy it, or it cannot be read.
        """
        folder = self.open(name, Action.COPY).folder
        config = folder.read_config()
        mapping = given_settings(config, read_provenance(folder).open_settings)
        left_out = sorted({problem.field for problem in lab_problems(config, self.home)} & set(_EMPTY))
        for field in left_out:
            section, setting = field.split(".")
            mapping[section] = {**mapping[section], setting: _EMPTY[field]}
        return {**mapping, "run": {**mapping["run"], "name": ""}}, left_out

    def _reader(self, owner: str) -> RunReader:
        return self.readers.reader_of(RunStore(self.home, owner))


_EMPTY: dict[str, Any] = {"dataset.source": "", "dataset.mix": {}, "model.id": "", "adapter.warm_start": None}


def name_of(run: Run) -> str:
    """Return the name by which another person opens a run."""
    return f"{run.owner}/{run.id}"
