"""Tokenizers made available in the background: no page waits for a download that it cannot see."""

import threading
from collections.abc import Callable
from dataclasses import replace

from engine.config.run import ModelConfig
from engine.models.folder import ModelPart
from engine.models.prepared import ModelProgress, OnModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.messages import CancelledRequestError
from ui.backend.background import BackgroundWork, Message, Work
from ui.backend.dataset_checks import CheckQuestion
from ui.views.html import size

Resolve = Callable[[ModelConfig, OnModelProgress], object]


class Tokenizers:
    """Downloads what previews need of a model, once for each, and knows which tokenizers are there.

    Args:
        resolve: Makes a model's tokenizer available on this machine; returns at once where it is already.
    """

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self._works: BackgroundWork[None] = BackgroundWork()
        self._lock = threading.Lock()  # two pages may ask for one model at once

    @classmethod
    def on_this_machine(cls, home: LoratoryHome) -> "Tokenizers":
        """Return those of the catalogue, the Hub, folders and GGUF files."""
        return cls(lambda model, on_progress: resolve_model(model, home, on_progress, ModelPart.TOKENIZER))

    def ask(self, model: ModelConfig, *, again: bool = False) -> Work[None]:
        """Return the download of a model's tokenizer, started now where there is none yet.

        Args:
            model: The model.
            again: Also retry one that has failed.
        """
        key = key_of(model)
        with self._lock:
            work = self._works.find(key)
            if work is None or (again and work.error is not None and not work.is_under_way):
                work = self._works.start(key, "Downloading the tokenizer", _Download(self._resolve, model))
            return work

    def find(self, key: str) -> Work[None] | None:
        """Return the download under a key; None where there is none."""
        return self._works.find(key)

    def is_ready(self, model: ModelConfig) -> bool:
        """Return whether previews with this model need not wait."""
        work = self._works.find(key_of(model))
        return work is not None and not work.is_under_way and work.error is None

    def answerable(self, question: CheckQuestion) -> CheckQuestion:
        """Return the question as far as it can be answered now: without tokens while the tokenizer is downloaded."""
        if question.model is None:
            return question
        self.ask(question.model)
        return question if self.is_ready(question.model) else replace(question, model=None)

    def stop_all(self) -> None:
        """Stop all downloads."""
        self._works.stop_all()


def key_of(model: ModelConfig) -> str:
    """Return the key of a model's tokenizer."""
    return f"{model.id}\n{model.revision or ''}"


class _Download:
    def __init__(self, resolve: Resolve, model: ModelConfig) -> None:
        self._resolve = resolve
        self._model = model
        self._stopped = threading.Event()

    def run(self, on_progress: Callable[[Message], None]) -> None:
        worker = threading.get_ident()

        def report(progress: ModelProgress) -> None:
            # A download is reported from another thread as well, which could not end it.
            if self._stopped.is_set() and threading.get_ident() == worker:
                raise CancelledRequestError
            on_progress(_in_words(progress))

        self._resolve(self._model, report)

    def stop(self) -> None:
        self._stopped.set()


def _in_words(progress: ModelProgress) -> Message:
    if progress.done_bytes is None or not progress.total_bytes:
        return Message(progress.message)
    words = f"{progress.message} {size(progress.done_bytes)} of {size(progress.total_bytes)}."
    return Message(words, min(1.0, progress.done_bytes / progress.total_bytes))
