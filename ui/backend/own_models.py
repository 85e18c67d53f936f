"""Gated models and datasets of one person of a lab: downloads with their own token, what they have, and its removal."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import SecretStr

from engine.config.run import ModelConfig
from engine.data.own import OwnDataset, OwnDatasetJob, list_own_datasets, remove_own_dataset, require_dataset_id
from engine.errors import EngineError, ModelError
from engine.models.own import OwnModel, OwnModelJob, hub_id_of, list_own_models, remove_own_model
from engine.paths import LoratoryHome
from engine.runs.model_use import models_needed_by
from engine.runs.store import RunStore
from ui.backend.background import BackgroundWork, Job, Work
from ui.backend.dataset_checks import model_of
from ui.backend.models import in_words

DOWNLOAD = "own"  # the key of the one download at a time
Kind = Literal["model", "dataset"]


def make_job(home: LoratoryHome, kind: Kind, hub_id: str, revision: str | None, token: SecretStr) -> Job[Any]:
    """Return a download."""
    if kind == "model":
        return OwnModelJob(home, token, ModelConfig(id=hub_id, revision=revision))
    return OwnDatasetJob(home, token, hub_id, revision)


@dataclass(frozen=True)
class OwnDownloads:
    """Models or datasets that a person downloads from the Hub with tokens of their own; `job` makes a download."""

    runs: RunStore  # of the person; downloads go to its home
    kind: Kind
    job: Callable[[LoratoryHome, Kind, str, str | None, SecretStr], Job[Any]] = make_job
    downloading: BackgroundWork[Any] = field(default_factory=lambda: BackgroundWork(in_words), kw_only=True)

    def start(self, name: str, revision: str | None, token: SecretStr) -> Work[Any]:
        """Download what has that id on the Hub; the token serves this one download.

        Raises:
            ModelError: If that cannot be a model on the Hub.
            DatasetError: If that cannot be a dataset on the Hub.
            RunError: If another is being downloaded.
        """
        if self.kind == "dataset":
            hub_id = require_dataset_id(name, revision)
        else:
            model = model_of({"model": {"id": name, "revision": revision}})
            if model is None:
                raise ModelError("No model.", "Type its id on the Hub, such as owner/name.")
            hub_id = hub_id_of(model)
        job = self.job(self.runs.home, self.kind, hub_id, revision, token)
        return self.downloading.start(DOWNLOAD, f"A download of a {self.kind}", job)

    def list(self) -> Sequence[OwnModel | OwnDataset]:
        """Return what the person has."""
        return list_own_models(self.runs.home) if self.kind == "model" else list_own_datasets(self.runs.home)

    def remove(self, hub_id: str) -> None:
        """Remove one of them that nothing needs.

        Raises:
            ModelError: If that model is not there, or is needed.
            DatasetError: If that dataset is not there, or a run needs it.
            StorageError: If its files cannot be removed.
        """
        if self.kind == "model":
            remove_own_model(self.runs.home, hub_id, models_needed_by(self.runs))
        else:
            remove_own_dataset(self.runs.home, hub_id, self._sources_in_use())

    def _sources_in_use(self) -> set[str]:
        sources: set[str] = set()
        for run in self.runs.list():
            with suppress(EngineError):  # one that cannot be read needs nothing
                if not run.folder.read_state().is_final:
                    dataset = run.folder.read_config().dataset
                    sources |= {dataset.source, *dataset.mix}
        return sources
