"""Gated models and datasets of one person of a lab: downloads with their own token, what they have, and its removal."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import SecretStr

from engine.config.run import ModelConfig
from engine.data.own import OwnDataset, OwnDatasetJob, list_own_datasets, remove_own_dataset, require_dataset_id
from engine.errors import EngineError
from engine.models.own import OwnModel, OwnModelJob, hub_id_of, list_own_models, remove_own_model
from engine.paths import LoratoryHome
from engine.runs.model_use import models_needed_by
from engine.runs.store import RunStore
from ui.backend.background import BackgroundWork, Job, Message, Work
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
class OwnModels:
    """What a person fetches with tokens of their own.

    Attributes:
        runs: Of the person; its home is where the models go.
        job: Makes a download.
    """

    runs: RunStore
    job: Callable[[LoratoryHome, ModelConfig, SecretStr], Job[OwnModel]] = OwnModelJob
    downloading: BackgroundWork[OwnModel] = field(default_factory=BackgroundWork)

    def start(self, model: ModelConfig, token: SecretStr) -> Work[OwnModel]:
        """Download a model; the token serves this one download.

        Raises:
            ModelError: If that cannot be a model on the Hub.
            RunError: If another is being downloaded.
        """
        hub_id_of(model)
        return self.downloading.start(_KEY, "A download of a model", _InWords(self.job(self.runs.home, model, token)))

    @property
    def work(self) -> Work[OwnModel] | None:
        """The newest download; None where there was none since the page was opened."""
        return self.downloading.find(_KEY)

    def list(self) -> list[OwnModel]:
        """Return what the person has."""
        return list_own_models(self.runs.home)

    def remove(self, hub_id: str) -> None:
        """Remove a model.

        Raises:
            ModelError: If it is not there, or is needed.
            StorageError: If its files cannot be removed.
        """
        remove_own_model(self.runs.home, hub_id, models_needed_by(self.runs))

    def stop(self) -> None:
        """Stop the download."""
        self.downloading.stop(_KEY)

    def stop_all(self) -> None:
        """Stop it before the page is closed."""
        self.downloading.stop_all()


@dataclass(frozen=True)
class OwnDatasets:
    """What a person downloads of the Hub's datasets with tokens of their own.

    Attributes:
        runs: Of the person; the uploads of its home are where the datasets go.
        job: Makes a download.
    """

    runs: RunStore
    job: Callable[[LoratoryHome, str, str | None, SecretStr], Job[OwnDataset]] = OwnDatasetJob
    downloading: BackgroundWork[OwnDataset] = field(default_factory=BackgroundWork)

    def start(self, hub_id: str, revision: str | None, token: SecretStr) -> Work[OwnDataset]:
        """Download a dataset; the token serves this one download.

        Raises:
            DatasetError: If that cannot be a dataset on the Hub.
            RunError: If another is being downloaded.
        """
        job = self.job(self.runs.home, require_dataset_id(hub_id, revision), revision, token)
        return self.downloading.start(_KEY, "A download of a dataset", _InWords(job))

    @property
    def work(self) -> Work[OwnDataset] | None:
        """The newest download; None where there was none since the page was opened."""
        return self.downloading.find(_KEY)

    def list(self) -> list[OwnDataset]:
        """Return what the person has."""
        return list_own_datasets(self.runs.home)

    def remove(self, hub_id: str) -> None:
        """Remove a dataset.

        Raises:
            DatasetError: If it is not there, or a run needs it.
            StorageError: If its files cannot be removed.
        """
        sources: set[str] = set()
        for run in self.runs.list():
            with suppress(EngineError):  # one that cannot be read needs nothing
                if not run.folder.read_state().is_final:
                    dataset = run.folder.read_config().dataset
                    sources |= {dataset.source, *dataset.mix}
        remove_own_dataset(self.runs.home, hub_id, sources)

    def stop(self) -> None:
        """Stop the download."""
        self.downloading.stop(_KEY)

    def stop_all(self) -> None:
        """Stop it before the page is closed."""
        self.downloading.stop_all()
