"""Gated and private models of one person of a lab: downloads with their own token, what they have, and its removal."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import SecretStr

from engine.config.run import ModelConfig
from engine.models.own import OwnModel, OwnModelJob, hub_id_of, list_own_models, remove_own_model
from engine.paths import LoratoryHome
from engine.runs.model_use import models_needed_by
from engine.runs.store import RunStore
from ui.backend.background import BackgroundWork, Job, Message, Work
from ui.backend.models import in_words

_KEY = "own model"  # one download at a time


@dataclass(frozen=True)
class _InWords:
    job: Job[OwnModel]

    def run(self, on_progress: Callable[[Message], None]) -> OwnModel:
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
