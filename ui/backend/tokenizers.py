"""Tokenizers made available in the background, so that nobody waits for a download that cannot be seen."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from engine.config.model import ModelConfig
from engine.models.folder import ModelPart
from engine.models.prepared import ModelProgress, OnModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.messages import CancelledRequestError
from ui.backend.background import BackgroundWork, Work
from ui.backend.dataset_checks import CheckQuestion
from ui.views.quantities import size

Resolve = Callable[[ModelConfig, OnModelProgress], object]


class FetchProgress(NamedTuple):
    """How far it has come, in words."""

    message: str
    fraction: float | None


class Tokenizers:
    """Fetches what previews need of a model, once for each, and knows which of them are there.

    Args:
        resolve: Makes a model's tokenizer available on this machine; returns at once where it is already.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._works: BackgroundWork[None] = BackgroundWork()
        self._lock = threading.Lock()  # two pages may ask for one model at once

    @classmethod
    def on_this_machine(cls, home: LoratoryHome) -> "Tokenizers":
        """Those of the catalogue, the Hub, folders and GGUF files."""
        return cls(lambda model, told: resolve_model(model, home, told, ModelPart.TOKENIZER))

    def ask(self, model: ModelConfig, *, again: bool = False) -> Work[None]:
        """How the fetching of a tokenizer stands; started now where nobody has yet.

        Args:
            model: Whose.
            again: Try anew what has failed before.
        """
        key = key_of(model)
        with self._lock:
            work = self._works.look(key)
            if work is None or (again and work.error is not None and not work.is_under_way):
                work = self._works.start(key, "Fetching the tokenizer", _Fetch(self._resolve, model))
            return work

    def look(self, key: str) -> Work[None] | None:
        """How the work under a key stands; None where there is none."""
        return self._works.look(key)

    def is_ready(self, model: ModelConfig) -> bool:
        """Whether previews with this model need not wait."""
        work = self._works.look(key_of(model))
        return work is not None and not work.is_under_way and work.error is None

    def answerable(self, question: CheckQuestion) -> CheckQuestion:
        """What can be answered now: without tokens while the tokenizer is on its way, which it is from now on."""
        if question.model is None:
            return question
        self.ask(question.model)
        return question if self.is_ready(question.model) else replace(question, model=None)

    def stop_all(self) -> None:
        """The server is leaving."""
        self._works.stop_all()


def key_of(model: ModelConfig) -> str:
    """What tells one tokenizer from another."""
    return f"{model.id}\n{model.revision or ''}"


class _Fetch:
    def __init__(self, resolve: Resolve, model: ModelConfig) -> None:
        self._resolve = resolve
        self._model = model
        self._stopped = threading.Event()

    def run(self, on_progress: Callable[[FetchProgress], None]) -> None:
        worker = threading.get_ident()

        def tell(progress: ModelProgress) -> None:
            # What follows a download from a thread beside it could not end it anyway.
            if self._stopped.is_set() and threading.get_ident() == worker:
                raise CancelledRequestError
            on_progress(_in_words(progress))

        self._resolve(self._model, tell)

    def stop(self) -> None:
        self._stopped.set()


def _in_words(progress: ModelProgress) -> FetchProgress:
    if progress.done_bytes is None or not progress.total_bytes:
        return FetchProgress(progress.message, None)
    words = f"{progress.message} {size(progress.done_bytes)} of {size(progress.total_bytes)}."
    return FetchProgress(words, min(1.0, progress.done_bytes / progress.total_bytes))
