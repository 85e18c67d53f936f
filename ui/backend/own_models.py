"""Gated models and datasets of one person of a lab: downloads with their own token, what they have, and its removal."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import SecretStr

from engine.errors import EngineError
from engine.paths import LoratoryHome
from engine.private_hub import (
    PrivateCopy,
    PrivateDownload,
    PrivateKind,
    list_private,
    remove_private,
    require_hub_id,
)
from engine.runs.disk import models_needed_by
from engine.runs.store import RunStore
from ui.backend.background import BackgroundWork, Job, Work
from ui.backend.models import in_words

DOWNLOAD = "own"  # the key of the one download at a time
MakeJob = Callable[[LoratoryHome, PrivateKind, str, str | None, SecretStr], Job[PrivateCopy]]


@dataclass(frozen=True)
class OwnDownloads:
    """Models or datasets that a person downloads from the Hub with tokens of their own; `job` makes a download."""

    runs: RunStore  # of the person; downloads go to its home
    kind: PrivateKind
    job: MakeJob = PrivateDownload
    downloading: BackgroundWork[PrivateCopy] = field(default_factory=lambda: BackgroundWork(in_words), kw_only=True)

    def start(self, name: str, revision: str | None, token: SecretStr) -> Work[PrivateCopy]:
        """Download what has that id on the Hub; the token serves this one download.

        Raises:
            ModelError: If that cannot be a model on the Hub.
            DatasetError: If that cannot be a dataset on the Hub.
            RunError: If another is being downloaded.
        """
        hub_id = require_hub_id(self.kind, name, revision)
        job = self.job(self.runs.home, self.kind, hub_id, revision, token)
        return self.downloading.start(DOWNLOAD, f"A download of a {self.kind}", job)

    def list(self) -> list[PrivateCopy]:
        """Return what the person has."""
        return list_private(self.runs.home, self.kind)

    def remove(self, hub_id: str) -> None:
        """Remove one of them that nothing needs.

        Raises:
            ModelError: If that model is not there, or is needed.
            DatasetError: If that dataset is not there, or a run needs it.
            StorageError: If its files cannot be removed.
        """
        in_use = models_needed_by(self.runs) if self.kind == "model" else self._sources_in_use()
        remove_private(self.runs.home, self.kind, hub_id, in_use)

    def _sources_in_use(self) -> set[str]:
        sources: set[str] = set()
        for run in self.runs.list():
            with suppress(EngineError):  # one that cannot be read needs nothing
                if not run.folder.read_state().is_final:
                    dataset = run.folder.read_config().dataset
                    sources |= {dataset.source, *dataset.mix}
        return sources
