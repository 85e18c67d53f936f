"""Putting a result on the Hugging Face Hub: exported and verified here first, then uploaded and committed in one piece."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.chat.target import LoadPlan, plan_load
from engine.config.results import ExportConfig
from engine.errors import ModelError, PushError, RunError
from engine.export.card import gather_facts, write_card
from engine.export.contract import (
    ExportProgress,
    ExportRequest,
    ExportResult,
    PushProgress,
    PushRequest,
    PushResult,
    UploadOrder,
    UploadResult,
)
from engine.export.job import ExportJob
from engine.files import write_atomically
from engine.models.folder import ModelPart
from engine.models.source import is_hub_id, is_revision, resolve_model
from engine.paths import LoratoryHome, typed_path
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.liveness import FileLock
from engine.processes.messages import CancelledRequestError
from engine.processes.spawn import Access
from engine.runs.run import RunFolder

WORKER_MODULE = "engine.export.push.worker"

OnPushProgress = Callable[[PushProgress], None]

_RESULT = "export.json"
_KEPT_SECONDS = 7 * 24 * 3600.0  # what an interrupted push has prepared is kept so long for the next attempt
_SHARD_GB = 2.0  # progress is reported, and an interrupted upload resumes, per file
# What libraries of the process might say or draw would end in a log.
_ENVIRONMENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}


class PushJob:
    """One push; can be stopped from another thread.

    What an interrupted push has prepared and sent is used by the next one.

    Args:
        home: The Loratory home.
        request: What is wanted.
        export: Writes and verifies a folder; `engine.export.job.ExportJob` unless a test says otherwise.
    """

    def __init__(
        self,
        home: LoratoryHome,
        request: PushRequest,
        export: Callable[[LoratoryHome, ExportRequest], ExportJob] = ExportJob,
    ) -> None:
        self._home = home
        self._request = request
        self._make_export = export
        self._stopped = threading.Event()
        self._export: ExportJob | None = None

    def run(self, on_progress: OnPushProgress = lambda _: None) -> PushResult:
        """Check, prepare, upload, commit. Whatever happens before the commit, the repository shows nothing of it.

        Raises:
            PushError: If the name cannot be a repository's, there is no token, the Hub refuses, or a file holds what must
                not leave this machine.
            HubUnreachableError: If the Hub does not answer.
            RunError: If the run has no adapter yet, or what was written differs from it.
            ModelError: If this result cannot be had in this form.
            DeviceError: If the device for the verification is in use.
            StorageError: If the disk is too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If a process ended.
        """
        require_repository(self._request.repository, self._request.settings.revision)
        plan = plan_load(self._request.target)
        if plan.tuned is None:
            raise ModelError("Nothing to export: this model has no adapter.", "Choose a run or an adapter.")
        process = JsonLinesProcess(
            WORKER_MODULE,
            log_file=self._home.server / "push.log",
            environment=_ENVIRONMENT,
            access=(Access.HUB,),
            restarts=False,
        )
        try:
            on_progress(PushProgress(phase="checking", message="Asking the Hub about your account."))
            settings = self._request.settings.model_dump(mode="json")
            asked = {"repository": self._request.repository, "settings": settings}
            repository = str(self._ask(process, "check", asked, on_progress)["repository"])
            return self._push(process, plan, repository, on_progress)
        finally:
            process.close(timeout_seconds=0.5)

    def stop(self) -> None:
        """End it within seconds, in the midst of a file too; nothing of it is committed."""
        self._stopped.set()
        export = self._export
        if export is not None:
            export.stop()

    def _push(
        self, process: JsonLinesProcess, plan: LoadPlan, repository: str, on_progress: OnPushProgress
    ) -> PushResult:
        pushes = self._home.cache / "pushes"
        _sweep(pushes)
        place = pushes / self._key(plan, repository)
        lock = FileLock(pushes / f"{place.name}.lock")
        if not lock.acquire(timeout_seconds=0.0):
            raise PushError(f"This is being pushed to {repository} already.", "Wait until that push has ended.")
        try:
            export = self._prepare(place, repository.rpartition("/")[2], on_progress)
            self._write_card(export.path, plan, repository)
            order = UploadOrder(
                folder=export.path,
                repository=repository,
                settings=self._request.settings,
                message=self._request.settings.commit_message or f"Push {_one_line(plan)} with Loratory",
            )
            asked = {"order": order.model_dump(mode="json"), "places": [str(path) for path in self._places(plan)]}
            answer = UploadResult.model_validate(self._ask(process, "upload", asked, on_progress))
            shutil.rmtree(place, ignore_errors=True)
        finally:
            lock.release()
        on_progress(PushProgress(phase="ready", message=f"{repository} is complete.", fraction=1.0))
        return PushResult(
            url=answer.url,
            commit=answer.commit,
            repository=repository,
            private=answer.private,
            files=answer.files,
            sent_bytes=answer.sent_bytes,
            verified=export.verified,
            notes=(*export.notes, *answer.notes),
        )

    def _prepare(self, place: Path, name: str, on_progress: OnPushProgress) -> ExportResult:
        """Export into a folder that outlives an interruption, so the next attempt need not merge again."""
        kept = _read_kept(place / _RESULT)
        if kept is not None:
            return kept
        shutil.rmtree(place, ignore_errors=True)
        settings = self._request.settings
        request = ExportRequest(
            target=self._request.target,
            folder=place / name,
            settings=ExportConfig(
                kind=settings.kind, dtype=settings.dtype, verify=settings.verify, max_shard_gb=_SHARD_GB
            ),
        )

        def report(progress: ExportProgress) -> None:
            on_progress(PushProgress(phase="preparing", message=progress.message, fraction=progress.fraction))

        self._export = self._make_export(self._home, request)
        if self._stopped.is_set():
            raise CancelledRequestError()
        result = self._export.run(report)
        if result.verified is not None and not result.verified.passed:
            shutil.rmtree(place, ignore_errors=True)
            raise RunError(
                f"What was written differs from the run by {result.verified.largest_logit_difference:.3g} in a logit; "
                f"rounding explains {result.verified.allowed_logit_difference:.3g}, so nothing was sent.",
                "Push the adapter instead, and please report this.",
            )
        write_atomically(place / _RESULT, result.model_dump_json())
        return result

    def _write_card(self, folder: Path, plan: LoadPlan, repository: str) -> None:
        """Write the card with the name of the repository."""
        assert plan.tuned is not None  # the export refuses a model without an adapter
        assert self._request.target.tuned is not None
        source = resolve_model(plan.model, self._home, part=ModelPart.CONFIG)
        run = RunFolder(self._request.target.tuned.folder)
        facts = gather_facts(
            plan,
            self._request.settings.kind,
            repository,
            source.hub_id or source.name,
            base_is_on_hub=source.hub_id is not None,
            run=run.path if run.config.is_file() else None,
            checkpoint=self._request.target.tuned.checkpoint,
            base_folder=Path(source.location),
        )
        (folder / "README.md").write_text(write_card(facts), encoding="utf-8")

    def _places(self, plan: LoadPlan) -> Sequence[Path]:
        """Return folders whose names would reveal this machine."""
        base = typed_path(plan.model.id)
        trained = [plan.tuned.folder] if plan.tuned is not None else []
        return [
            self._home.root,
            Path.home(),
            *trained,
            *([base] if base.is_absolute() else []),
        ]

    def _key(self, plan: LoadPlan, repository: str) -> str:
        """Changes with everything that decides what is written."""
        assert self._request.target.tuned is not None
        folder = plan.tuned.folder if plan.tuned is not None else Path()
        stamps = [
            (path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        settings = self._request.settings.model_dump(include={"kind", "dtype", "verify"})
        decisive = json.dumps([plan.model_dump(mode="json"), repository, settings, stamps])
        return hashlib.sha256(decisive.encode()).hexdigest()[:24]

    def _ask(
        self, process: JsonLinesProcess, method: str, params: dict[str, Any], on_progress: OnPushProgress
    ) -> dict[str, Any]:
        """Ask the process; when the push is stopped, it is ended, whatever it waits for."""
        return process.call(
            method,
            params,
            on_progress=lambda value: on_progress(PushProgress.model_validate(value)),
            stopped=self._stopped,
        )


def require_repository(repository: str, revision: str | None = None) -> None:
    """Check the name before anything is written or asked.

    Raises:
        PushError: If the Hub could not have a repository or a branch of this name.
    """
    if not is_hub_id(repository) or any(part.endswith(("-", ".")) for part in repository.split("/")):
        raise PushError(
            f"{repository[:100]!r} cannot be a repository.",
            "Name it owner/name, with letters, digits, -, _ and . and at most 96 characters.",
        )
    if revision is not None and not is_revision(revision):
        raise PushError(f"{revision[:100]!r} cannot be a branch.", "Name one such as main or v2.")


def _one_line(plan: LoadPlan) -> str:
    name = plan.tuned.name if plan.tuned is not None else plan.model.id
    return "".join(character for character in name if character.isprintable())[:80]


def _read_kept(file: Path) -> ExportResult | None:
    """What an earlier attempt has exported, if every file is as it was written; the card is always written again."""
    try:
        result = ExportResult.model_validate_json(file.read_bytes())
        for written in result.files:
            if written.name != "README.md" and (result.path / written.name).stat().st_size != written.size_bytes:
                return None
    except (OSError, ValueError):
        return None
    return result


def _sweep(pushes: Path) -> None:
    """Remove what is too old to be resumed."""
    pushes.mkdir(parents=True, exist_ok=True)
    for path in pushes.iterdir():
        try:
            if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        except OSError:
            continue
