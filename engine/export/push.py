"""Push a run or an adapter to the Hugging Face Hub: export and verify it, then upload everything in one commit."""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.engine.chat.contract import JobProgress, OnProgress
from loratory.engine.chat.target import LoadPlan, PlannedWeights, plan_load
from loratory.engine.config.results import ExportConfig
from loratory.engine.errors import PushError, RunError
from loratory.engine.export.card import write_card
from loratory.engine.export.contract import ExportRequest, ExportResult, PushRequest, PushResult, UploadOrder
from loratory.engine.export.job import ExportJob, require_trained, run_in
from loratory.engine.files import read_model, size_and_time, write_atomically
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.source import can_be_repository, is_revision, resolve_model
from loratory.engine.paths import LoratoryHome, typed_path
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.processes.spawn import Access

WORKER_MODULE = "loratory.engine.export.push_upload"

_REUSABLE_SECONDS = 7 * 24 * 3600.0  # an interrupted push's export is kept this long for the next attempt
_SHARD_GB = 2.0  # an interrupted upload resumes per file
# Progress bars would end up in the log.
_ENVIRONMENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}


@dataclass(eq=False)
class PushJob:
    """One push; can be stopped from another thread.

    The next push reuses the export and the uploads of an interrupted one.
    """

    home: LoratoryHome
    request: PushRequest
    make_export: Callable[[LoratoryHome, ExportRequest], ExportJob] = ExportJob  # writes and verifies a folder
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)
    _export: ExportJob | None = field(default=None, init=False)
    _process: JsonLinesProcess | None = field(default=None, init=False)

    def run(self, on_progress: OnProgress = lambda _: None) -> PushResult:
        """Check, export, upload and commit; before the commit, nothing is visible in the repository.

        Raises:
            PushError: If the repository name is invalid, there is no token, the Hub refuses, or a file has private
                content.
            HubUnreachableError: If the Hub does not answer.
            RunError: If the run has no adapter yet, or the export differs from it.
            ModelError: If this kind of export does not support the adapter.
            DeviceError: If the device for the verification is in use.
            StorageError: If the disk is too small.
            CancelledRequestError: If it was stopped.
            WorkerError: If a process ended.
        """
        _require_repository(self.request.repository, self.request.settings.revision)
        plan = plan_load(self.request.target, self.home)
        trained = require_trained(plan)
        self._process = process = JsonLinesProcess(
            WORKER_MODULE,
            log_file=self.home.logs / "push.log",
            environment=_ENVIRONMENT,
            access=() if self.home.owner else (Access.HUB,),  # people of a lab use their own tokens
            restarts=False,
        )

        token = self.request.token
        self.request = self.request.model_copy(update={"token": None})  # not needed again

        def call(method: str, params: dict[str, Any]) -> dict[str, Any]:
            return process.call(
                method,
                params if token is None else {**params, "token": token.get_secret_value()},
                on_progress=lambda value: on_progress(JobProgress.model_validate(value)),
                stopped=self._stopped,
            )

        try:
            on_progress(JobProgress(phase="checking", message="Asking the Hub about your account."))
            settings = self.request.settings.model_dump(mode="json")
            repository = str(call("check", {"repository": self.request.repository, "settings": settings})["repository"])
            folder = self._preparation_folder(plan, trained.folder, repository)
            export = self._prepare(folder, repository.rpartition("/")[2], on_progress)
            order = self._order(export.path, plan, trained, repository)
            answer = PushResult.model_validate(call("upload", order.model_dump(mode="json")))
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            process.close(timeout_seconds=0.5)
        on_progress(JobProgress(phase="ready", message=f"{repository} is complete.", fraction=1.0))
        return answer.model_copy(update={"verified": export.verified, "notes": (*export.notes, *answer.notes)})

    def stop(self) -> None:
        """Stop within seconds, even in the middle of a file; nothing is committed."""
        self._stopped.set()
        if (export := self._export) is not None:
            export.stop()
        if (process := self._process) is not None:  # immediately, before the commit
            process.close(timeout_seconds=0.0)

    @property
    def _export_settings(self) -> dict[str, Any]:
        return self.request.settings.model_dump(include={"kind", "dtype", "verify"})

    def _preparation_folder(self, plan: LoadPlan, folder: Path, repository: str) -> Path:
        """Return the folder for the export, named by a hash of everything that determines its content.

        Folders of old pushes are deleted.
        """
        pushes = self.home.cache / "pushes"
        pushes.mkdir(parents=True, exist_ok=True)
        for path in pushes.iterdir():
            if size_and_time(path)[1] / 1e9 < time.time() - _REUSABLE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        stamps = [(path.relative_to(folder).as_posix(), *size_and_time(path)) for path in files]
        decisive = json.dumps([plan.model_dump(mode="json"), repository, self._export_settings, stamps])
        return pushes / hashlib.sha256(decisive.encode()).hexdigest()[:24]

    def _prepare(self, folder: Path, name: str, on_progress: OnProgress) -> ExportResult:
        """Export, or return the finished export of an interrupted push."""
        former = read_model(folder / "export.json", ExportResult)
        if former is not None:
            return former
        shutil.rmtree(folder, ignore_errors=True)
        settings = ExportConfig(**self._export_settings, max_shard_gb=_SHARD_GB)
        request = ExportRequest(target=self.request.target, folder=folder / name, settings=settings)
        self._export = self.make_export(self.home, request)
        if self._stopped.is_set():
            raise CancelledRequestError()
        result = self._export.run(lambda progress: on_progress(progress.model_copy(update={"phase": "preparing"})))
        if result.verified is not None and not result.verified.passed:
            shutil.rmtree(folder, ignore_errors=True)
            raise RunError(
                f"The export {result.verified.difference}, so nothing was sent.",
                "Push the adapter instead, and please report this.",
            )
        write_atomically(folder / "export.json", result.model_dump_json())
        return result

    def _order(self, folder: Path, plan: LoadPlan, trained: PlannedWeights, repository: str) -> UploadOrder:
        """Write the card with the name of the repository, and return the request for the upload."""
        tuned = self.request.target.tuned
        assert tuned is not None  # `require_trained` refuses a base alone
        source = resolve_model(plan.model, plan.home(self.home), part=ModelPart.CONFIG)
        kind, run = self.request.settings.kind, run_in(tuned.folder)
        card = write_card(plan, kind, repository, source, run=run, checkpoint=tuned.checkpoint)
        (folder / "README.md").write_text(card, encoding="utf-8")
        base = typed_path(plan.model.id)
        title = "".join(filter(str.isprintable, trained.name))[:80]
        return UploadOrder(
            folder=folder,
            repository=repository,
            settings=self.request.settings,
            message=self.request.settings.commit_message or f"Push {title} with Loratory",
            private_folders=(self.home.root, Path.home(), trained.folder, *([base] if base.is_absolute() else [])),
        )


def _require_repository(repository: str, revision: str | None) -> None:
    if not can_be_repository(repository):
        raise PushError(
            f"{repository[:100]!r} cannot be a repository.",
            "Name it owner/name, with letters, digits, -, _ and . and at most 96 characters.",
        )
    if revision is not None and not is_revision(revision):
        raise PushError(f"{revision[:100]!r} cannot be a branch.", "Name one such as main or v2.")
