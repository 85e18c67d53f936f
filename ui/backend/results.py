"""Evaluations and exports of runs, in the background."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from engine.chat.contract import ChatTarget
from engine.config.results import EvaluationConfig, ExportConfig, PushConfig
from engine.errors import StorageError
from engine.evaluation.contract import EvaluationRequest, EvaluationResult
from engine.evaluation.job import EvaluationJob
from engine.export.contract import ExportRequest, ExportResult, PushRequest, PushResult
from engine.export.job import ExportJob
from engine.export.push.job import PushJob
from engine.export.records import ExportRecord, keep_record
from engine.paths import LoratoryHome, data_folders, typed_path
from engine.runs.run import Run
from ui.backend.background import BackgroundWork, Job, Work

_NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9_.]+")

Exported = ExportResult | PushResult


@dataclass(frozen=True)
class ResultWork:
    """Starts evaluations and exports; at most one of each at a time for each run.

    Args:
        home: The Loratory home.
        evaluate: Makes the job of an evaluation.
        export: Makes the job of an export.
        push: Makes the job of a push.
        roots: Folders below which the page may write; None takes the exports folder and the data folders.
    """

    home: LoratoryHome
    evaluate: Callable[[EvaluationRequest], Job[EvaluationResult]]
    export: Callable[[ExportRequest], Job[ExportResult]]
    push: Callable[[PushRequest], Job[PushResult]]
    roots: tuple[Path, ...] | None = None
    measuring: BackgroundWork[EvaluationResult] = field(default_factory=BackgroundWork)
    exporting: BackgroundWork[Exported] = field(default_factory=BackgroundWork)

    @classmethod
    def on_this_machine(cls, home: LoratoryHome) -> "ResultWork":
        """Return the engine's own jobs."""
        return cls(
            home,
            evaluate=lambda request: EvaluationJob(home, request),
            export=lambda request: ExportJob(home, request),
            push=lambda request: PushJob(home, request),
        )

    def measure(self, run: Run, checkpoint: str | None, settings: EvaluationConfig) -> Work[EvaluationResult]:
        """Evaluate base against tuned; the job saves its result with the run.

        Raises:
            RunError: If an evaluation of this run is under way.
        """
        request = EvaluationRequest(target=_target(run, checkpoint), settings=settings)
        return self.measuring.start(run.id, "An evaluation", self.evaluate(request))

    def write(self, run: Run, checkpoint: str | None, folder: Path, settings: ExportConfig) -> Work[Exported]:
        """Write a run's result into a folder.

        Raises:
            RunError: If an export of this run is under way.
        """
        request = ExportRequest(target=_target(run, checkpoint), folder=folder, settings=settings)

        def keep(result: Exported) -> None:
            if isinstance(result, ExportResult):
                keep_record(run.folder.path, ExportRecord.of_export(settings.kind, checkpoint, result))

        return self.exporting.start(run.id, "An export", self.export(request), keep)

    def publish(self, run: Run, checkpoint: str | None, repository: str, settings: PushConfig) -> Work[Exported]:
        """Push a run's result to the Hub.

        Raises:
            RunError: If an export of this run is under way.
        """
        request = PushRequest(target=_target(run, checkpoint), repository=repository, settings=settings)

        def keep(result: Exported) -> None:
            if isinstance(result, PushResult):
                keep_record(run.folder.path, ExportRecord.of_push(checkpoint, result))

        return self.exporting.start(run.id, "A push to the Hub", self.push(request), keep)

    def proposed_folder(self, title: str, kind: str) -> Path:
        """Return a folder that does not exist yet, named for a run."""
        name = _NAME_CHARACTERS.sub("-", title).strip("-.")[:60].strip("-.") or "run"
        folder = self.home.exports / f"{name}-{kind}"
        number = 2
        while folder.exists():
            folder = self.home.exports / f"{name}-{kind}-{number}"
            number += 1
        return folder

    def allowed_folder(self, typed: str) -> Path:
        """Return the folder that a browser named, if the page may write there.

        Raises:
            StorageError: If there is none, or the page must not write there.
        """
        text = (typed or "").strip()
        if not text or len(text) > 1000 or "\0" in text:
            raise StorageError("No folder.", "Type the folder to write to.")
        folder = typed_path(text)
        folder = (folder if folder.is_absolute() else self.home.exports / folder).resolve()
        roots = self.roots if self.roots is not None else data_folders()
        exports = self.home.exports.resolve()
        inside = any(folder != root.resolve() and folder.is_relative_to(root.resolve()) for root in roots)
        own = folder.is_relative_to(self.home.root.resolve())
        if not ((folder != exports and folder.is_relative_to(exports)) or (inside and not own)):
            raise StorageError(
                f"The page does not write to {folder.name or text[:60]} there.",
                f"Choose a folder below {exports}, or below your own folders; `loratory export` writes anywhere.",
            )
        return folder

    def stop_all(self) -> None:
        """Stop all evaluations and exports."""
        self.measuring.stop_all()
        self.exporting.stop_all()


def _target(run: Run, checkpoint: str | None) -> ChatTarget:
    return ChatTarget.of_run(run.folder.path, checkpoint)
