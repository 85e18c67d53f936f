"""Gated models and datasets of one person of a lab: downloads with their own token, what they have, and its removal."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Generic, TypeVar

from pydantic import SecretStr

from engine.config.run import ModelConfig
from engine.data.own import OwnDataset, OwnDatasetJob, list_own_datasets, remove_own_dataset, require_dataset_id
from engine.errors import EngineError, ModelError
from engine.models.own import OwnModel, OwnModelJob, hub_id_of, list_own_models, remove_own_model
from engine.paths import LoratoryHome
from engine.runs.model_use import models_needed_by
from engine.runs.store import RunStore
from ui.backend.background import BackgroundWork, Job, Message, Work
from ui.backend.dataset_checks import model_of
from ui.backend.models import in_words

_KEY = "own"  # one download at a time
Arrived = TypeVar("Arrived")


@dataclass(frozen=True)
class _InWords(Generic[Arrived]):
    job: Job[Arrived]

    def run(self, on_progress: Callable[[Message], None]) -> Arrived:
        return self.job.run(lambda progress: on_progress(in_words(progress)))

    def stop(self) -> None:
        self.job.stop()


@dataclass(frozen=True)
class OwnDownloads(ABC, Generic[Arrived]):
    """What a person downloads from the Hub with tokens of their own."""

    kind: ClassVar[str]

    runs: RunStore  # of the person; downloads go to its home
    downloading: BackgroundWork[Arrived] = field(default_factory=BackgroundWork, kw_only=True)  # the newest download

    @abstractmethod
    def start(self, name: str, revision: str | None, token: SecretStr) -> Work[Arrived]:
        """Download what has that id on the Hub; the token serves this one download.

        Raises:
            ModelError: If that cannot be a model on the Hub.
            DatasetError: If that cannot be a dataset on the Hub.
            RunError: If another is being downloaded.
        """

    @abstractmethod
    def list(self) -> list[Arrived]:
        """Return what the person has."""

    @abstractmethod
    def remove(self, hub_id: str) -> None:
        """Remove one of them.

        Raises:
            ModelError: If that model is not there, or is needed.
            DatasetError: If that dataset is not there, or a run needs it.
            StorageError: If its files cannot be removed.
        """

    def _begin(self, job: Job[Arrived]) -> Work[Arrived]:
        return self.downloading.start(_KEY, f"A download of a {self.kind}", _InWords(job))

    @property
    def work(self) -> Work[Arrived] | None:
        """The newest download; None without one since the page was opened."""
        return self.downloading.find(_KEY)

    def stop(self) -> None:
        """Stop the download."""
        self.downloading.stop(_KEY)

    def stop_all(self) -> None:
        """Stop it before the page is closed."""
        self.downloading.stop_all()


@dataclass(frozen=True)
class OwnModels(OwnDownloads[OwnModel]):
    """Models; `job` makes a download."""

    kind = "model"

    job: Callable[[LoratoryHome, SecretStr, ModelConfig], Job[OwnModel]] = OwnModelJob

    def start(self, name: str, revision: str | None, token: SecretStr) -> Work[OwnModel]:
        """Download a model, with its id on the Hub or its name in the catalogue."""
        model = model_of({"model": {"id": name, "revision": revision}})
        if model is None:
            raise ModelError("No model.", "Type its id on the Hub, such as owner/name.")
        hub_id_of(model)
        return self._begin(self.job(self.runs.home, token, model))

    def list(self) -> list[OwnModel]:
        """Return what the person has."""
        return list_own_models(self.runs.home)

    def remove(self, hub_id: str) -> None:
        """Remove a model that nothing needs."""
        remove_own_model(self.runs.home, hub_id, models_needed_by(self.runs))


@dataclass(frozen=True)
class OwnDatasets(OwnDownloads[OwnDataset]):
    """Datasets, among the person's uploads; `job` makes a download."""

    kind = "dataset"

    job: Callable[[LoratoryHome, SecretStr, str, str | None], Job[OwnDataset]] = OwnDatasetJob

    def start(self, name: str, revision: str | None, token: SecretStr) -> Work[OwnDataset]:
        """Download a dataset."""
        return self._begin(self.job(self.runs.home, token, require_dataset_id(name, revision), revision))

    def list(self) -> list[OwnDataset]:
        """Return what the person has."""
        return list_own_datasets(self.runs.home)

    def remove(self, hub_id: str) -> None:
        """Remove a dataset that no run needs."""
        sources: set[str] = set()
        for run in self.runs.list():
            with suppress(EngineError):  # one that cannot be read needs nothing
                if not run.folder.read_state().is_final:
                    dataset = run.folder.read_config().dataset
                    sources |= {dataset.source, *dataset.mix}
        remove_own_dataset(self.runs.home, hub_id, sources)
