"""Runs shared by other users of a lab: listed, and read within the user's rights."""

import threading
from pathlib import Path
from typing import Any

from engine.accounts.audit import AuditLog
from engine.accounts.lab import audit_log_path
from engine.accounts.people import Action, Person
from engine.config.run import RunConfig
from engine.config.suited import given_settings
from engine.errors import EngineError
from engine.paths import LoratoryHome
from engine.runs.lab_rules import LabRuns, is_shared, lab_problems
from engine.runs.provenance import read_provenance
from engine.runs.run import Run
from engine.runs.store import RunStore
from engine.runs.summary import RunSummary
from ui.backend.background import Cache
from ui.backend.run_reader import RunReader, RunSnapshot

_MOST_RUNS = 200


class SharedReaders:
    """Readers and HTML of runs, shared by the pages of a lab: each run is read and drawn once."""

    def __init__(self) -> None:
        self.html_cache: Cache[str] = Cache()
        self._lock = threading.Lock()  # guards _readers
        self._readers: dict[Path, RunReader] = {}  # by an owner's folder of runs

    def of(self, runs: RunStore) -> RunReader:
        """Return the reader of an owner's runs."""
        with self._lock:
            return self._readers.setdefault(runs.folder, RunReader(runs))


class SharedRuns:
    """Reads other users' runs, named `owner/run-id`; rights are checked at every read."""

    def __init__(self, home: LoratoryHome, person: Person, readers: SharedReaders) -> None:
        self.readers = readers
        self.audit = AuditLog(audit_log_path(home))
        self._home = home
        self._lab = LabRuns(home, person, self.audit)

    def open(self, name: str, action: Action) -> Run:
        """Look up a run for an action.

        Raises:
            RunError: If there is none, or the person may not.
        """
        return self._lab.open(name, action)

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
        for run in self._lab.others()[:_MOST_RUNS]:
            try:
                shared = is_shared(run.folder)
                summaries.append(self.summary(run) if shared else _summary_without_details(run))
            except (EngineError, OSError):
                continue
        return summaries

    def settings(self, name: str) -> tuple[dict[str, Any], list[str]]:
        """Return the settings of a run for the form, and which are left empty: they name what only its owner may use.

        Raises:
            EngineError: If the person may not copy it, or it cannot be read.
        """
        folder = self.open(name, Action.COPY).folder
        config = folder.read_config()
        mapping = given_settings(config, read_provenance(folder).open_settings)
        left_out = sorted({problem.field for problem in lab_problems(config, self._home)} & set(_EMPTY))
        for field in left_out:
            section, setting = field.split(".")
            mapping[section] = {**mapping[section], setting: _EMPTY[field]}
        return {**mapping, "run": {**mapping["run"], "name": ""}}, left_out

    def _reader(self, owner: str) -> RunReader:
        return self.readers.of(RunStore(self._home, owner))


def _summary_without_details(run: Run) -> RunSummary:
    return RunSummary(
        id=name_of(run), owner=run.owner, name="Not shared", state=run.folder.read_state().state,
        created=read_provenance(run.folder).created,
    )  # fmt: skip


_EMPTY: dict[str, Any] = {"dataset.source": "", "dataset.mix": {}, "model.id": "", "adapter.warm_start": None}


def name_of(run: Run) -> str:
    """Return the name by which another person opens a run."""
    return f"{run.owner}/{run.id}"


def without_folders(config: RunConfig) -> RunConfig:
    """Return a configuration for other people's eyes: of paths, the last name alone."""

    def last(text: str) -> str:
        return Path(text).name if Path(text).is_absolute() else text

    dataset, start = config.dataset, config.adapter.warm_start
    paths = {"source": last(dataset.source), "mix": {last(source): weight for source, weight in dataset.mix.items()}}
    return config.model_copy(
        update={
            "dataset": dataset.model_copy(update=paths),
            "model": config.model.model_copy(update={"id": last(config.model.id)}),
            "adapter": config.adapter.model_copy(update={"warm_start": last(start) if start else start}),
        }
    )
