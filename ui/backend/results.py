"""Background evaluations and exports of runs; a file of evaluations is read again when it changes."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from loratory.engine.chat.contract import ChatTarget
from loratory.engine.config.results import EvaluationConfig, ExportConfig, PushConfig, TestSet
from loratory.engine.config.run import RunConfig, WorkPlace
from loratory.engine.data.files.access import shown_name
from loratory.engine.errors import StorageError
from loratory.engine.evaluation.job import EvaluationRequest, EvaluationResult, evaluation_file, read_evaluation
from loratory.engine.evaluation.server_check import ServerCheckConfig, ServerCheckJob
from loratory.engine.export import contract
from loratory.engine.export.job import ScriptJob
from loratory.engine.files import read_model, size_and_time
from loratory.engine.paths import AllowedPaths, LoratoryHome, data_folders, typed_path
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.run import Run, RunFolder
from loratory.engine.runs.store import RunStore
from loratory.ui.backend.background import BackgroundWork, Cache, Job, Work, stamp
from loratory.ui.backend.run_reader import FINAL, FINAL_WORDS, RunReader


@dataclass(frozen=True)
class ResultWork:
    """Starts evaluations and exports by the jobs that the three functions make; at most one of each at a time for each run.

    The page may write below `roots`; None takes the exports folder and the data folders.
    """

    home: LoratoryHome
    evaluate: Callable[[EvaluationRequest], Job[EvaluationResult]]
    export: Callable[[contract.ExportRequest], Job[contract.ExportResult]]
    push: Callable[[contract.PushRequest], Job[contract.PushResult]]
    roots: tuple[Path, ...] | None = None
    measuring: BackgroundWork[EvaluationResult] = field(default_factory=BackgroundWork)
    exporting: BackgroundWork[Any] = field(default_factory=BackgroundWork)  # of ExportResult and PushResult

    def measure(
        self,
        run: Run,
        checkpoint: str | None,
        settings: EvaluationConfig,
        where: WorkPlace = "local",
        tests: tuple[TestSet, ...] = (),
    ) -> Work[EvaluationResult]:
        """Evaluate base against tuned; the job saves its result with the run.

        Raises:
            RunError: If an evaluation of this run is under way.
        """
        request = EvaluationRequest(target=_target(run, checkpoint, where), settings=settings, tests=tests)
        return self.measuring.start(run.id, "An evaluation", self.evaluate(request))

    def write(
        self, run: Run, checkpoint: str | None, folder: Path, settings: ExportConfig, where: WorkPlace = "local"
    ) -> Work[Any]:
        """Write a run's result into a folder.

        Raises:
            RunError: If an export of this run is under way.
            StorageError: If the person has no disk space left.
        """
        require_disk_space(self.home, self.home.owner)
        request = contract.ExportRequest(target=_target(run, checkpoint, where), folder=folder, settings=settings)
        return self._start_export(run, checkpoint, settings.kind, "An export", self.export(request))

    def write_script(self, run: Run, config: RunConfig, folder: Path) -> Work[Any]:
        """Write a run's exact script into a folder; raises as `write` does."""
        require_disk_space(self.home, self.home.owner)
        job = ScriptJob(self.home, config, folder, run.folder.path)
        return self._start_export(run, None, "script", "An export", job)

    def publish(
        self, run: Run, checkpoint: str | None, repository: str, settings: PushConfig, token: SecretStr | None = None
    ) -> Work[Any]:
        """Push a run's result to the Hub; in a lab with the token of the person, for this one push.

        Raises:
            RunError: If an export of this run is under way.
        """
        target = _target(run, checkpoint)
        job = self.push(contract.PushRequest(target=target, repository=repository, settings=settings, token=token))
        return self._start_export(run, checkpoint, "hub", "A push to the Hub", job)

    def check_server(self, run: Run, checkpoint: str | None, settings: ServerCheckConfig) -> Work[Any]:
        """Compare a server's answers with a run's, instead of an export; the job saves its result with the run."""
        job = ServerCheckJob(self.home, _target(run, checkpoint), settings)
        return self.exporting.start(run.id, "A server check", job)

    def under_way(self, run_id: str) -> frozenset[str]:
        """Return which steps of `steps_done` a run's result takes at the moment.

        Not how far they are: a job counts each of its phases from 0.
        """
        works = (("measure", self.measuring.find(run_id)), ("export", self.exporting.find(run_id)))
        return frozenset(step for step, work in works if work is not None and work.is_under_way)

    def _start_export(self, run: Run, checkpoint: str | None, kind: str, title: str, job: Job[Any]) -> Work[Any]:
        def keep(result: contract.ExportResult | contract.PushResult) -> None:
            contract.save_record(_target(run, checkpoint), kind, result)

        return self.exporting.start(run.id, title, job, keep)

    def proposed_folder(self, title: str, kind: str) -> Path:
        """Return a folder that does not exist yet, named for a run."""
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", title).strip("-.")[:60].strip("-.") or "run"
        folders = (self.home.exports / f"{name}-{kind}{f'-{number}' if number > 1 else ''}" for number in count(1))
        return next(folder for folder in folders if not folder.exists())

    def allowed_folder(self, path_text: str) -> Path:
        """Return an untrusted folder, if the page may write there.

        Raises:
            StorageError: If there is none, or the page must not write there.
        """
        text = (path_text or "").strip()
        if not text or len(text) > 1000 or "\0" in text:
            raise StorageError("No folder given.", "Type the folder to write to.")
        if (paths := AllowedPaths.for_home(self.home)) is not None:
            return paths.write(text)
        exports, own = self.home.exports.resolve(), self.home.root.resolve()
        folder = (exports / typed_path(text)).resolve()
        roots = [root.resolve() for root in (self.roots if self.roots is not None else data_folders())]
        in_exports = exports in folder.parents
        in_roots = not folder.is_relative_to(own) and any(root in folder.parents for root in roots)
        if not in_exports and not in_roots:
            raise StorageError(
                f"The page may not write to {shown_name(text, 200)}.",
                f"Choose a folder below {exports}, or below your own folders; `loratory export` writes anywhere.",
            )
        return folder


def _target(run: Run, checkpoint: str | None, where: WorkPlace = "local") -> ChatTarget:
    return ChatTarget.of_run(run.folder.path, checkpoint).model_copy(update={"where": where})


def steps_done(folder: RunFolder) -> set[str]:
    """Return what was done with a run's result, by its traces on the disk: `chat`, `blind`, `measure`, `export`."""
    kinds = {path.suffix for path in evaluation_file(folder.path, None).parent.glob("*.json*")}
    done = {"chat": folder.chat_mark.exists(), "blind": ".jsonl" in kinds, "measure": ".json" in kinds}
    done["export"] = contract.records_file(folder.path).exists()
    return {step for step, is_done in done.items() if is_done}


class MeasuredRun(NamedTuple):
    """One line of the table across runs."""

    run_id: str
    checkpoint: str  # "final", or its name
    name: str
    state: str  # the same as text
    data: str
    result: EvaluationResult


class Evaluations:
    """Reads the evaluations of one store, with the names of its runs."""

    def __init__(self, runs: RunStore, reader: RunReader) -> None:
        self._runs = runs
        self._reader = reader
        self._cache: Cache[EvaluationResult | None] = Cache(400)

    def read(self, run_id: str, checkpoint: str | None, *, all_rows: bool = False) -> EvaluationResult | None:
        """Return the newest evaluation of a run or a checkpoint; None without one."""
        return read_evaluation(self._runs.get(run_id).folder.path, checkpoint, all_rows=all_rows)

    def stamp(self, run_id: str) -> str:
        """Return a stamp that changes with each evaluation of a run; of an unknown one, it stays the same."""
        if not self._reader.exists(run_id):
            return ""
        return stamp(*size_and_time(evaluation_file(self._runs.get(run_id).folder.path, None).parent))

    def across(self) -> list[MeasuredRun]:
        """Return the evaluations of every run and checkpoint, the newest run first."""
        rows = []
        for run in self._runs.list()[:300]:
            folder = evaluation_file(run.folder.path, None).parent
            for file in sorted(folder.glob("*.json")):
                result = self._read(file)
                if result is None or result.source or "tuned" not in result.losses:
                    continue
                snapshot = self._reader.observe(run.id)
                data = snapshot.config.dataset.source if snapshot.config is not None else ""
                state = FINAL_WORDS if file.stem == FINAL else file.stem
                rows.append(MeasuredRun(run.id, file.stem, snapshot.label, state, Path(data).name, result))
        return rows

    def _read(self, file: Path) -> EvaluationResult | None:  # without tokens, which would fill the memory
        key, kind = (file, *size_and_time(file)), EvaluationResult
        return self._cache.get(key, lambda: (full := read_model(file, kind)) and full.model_copy(update={"lists": {}}))
