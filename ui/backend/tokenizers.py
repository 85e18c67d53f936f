"""Tokenizers made available in the background: no page waits for a download that it cannot see."""

from collections.abc import Callable
from dataclasses import replace

from engine.config.run import ModelConfig
from engine.models.folder import ModelPart
from engine.models.prepared import ModelProgress, OnModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from ui.backend.background import BackgroundWork, FunctionJob, Message, Work
from ui.backend.dataset_checks import CheckQuestion
from ui.views.html import size


class Tokenizers:
    """Downloads what previews need of a model, once for each, and knows which tokenizers are there.

    `resolve` returns at once where a model's tokenizer is on this machine already.
    """

    def __init__(self, resolve: Callable[[ModelConfig, OnModelProgress], object]) -> None:
        self._resolve = resolve
        self._works: BackgroundWork[object] = BackgroundWork()

    @classmethod
    def on_this_machine(cls, home: LoratoryHome) -> "Tokenizers":
        """Return those of the catalogue, the Hub, folders and GGUF files."""
        return cls(lambda model, on_progress: resolve_model(model, home, on_progress, ModelPart.TOKENIZER))

    def ask(self, model: ModelConfig, *, again: bool = False) -> Work[object]:
        """Return the download of a model's tokenizer, started where there is none yet, or `again` where it has failed."""

        def download(report: Callable[[Message], None]) -> object:
            return self._resolve(model, lambda progress: report(_in_words(progress)))

        return self._works.start_once(key_of(model), "Downloading the tokenizer", FunctionJob(download), again=again)

    def find(self, key: str) -> Work[object] | None:
        """Return the download under a key; None where there is none."""
        return self._works.find(key)

    def is_ready(self, model: ModelConfig) -> bool:
        """Return whether previews with this model need not wait."""
        work = self.find(key_of(model))
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


def _in_words(progress: ModelProgress) -> Message:
    if progress.done_bytes is None or not progress.total_bytes:
        return Message(progress.message)
    words = f"{progress.message} {size(progress.done_bytes)} of {size(progress.total_bytes)}."
    return Message(words, min(1.0, progress.done_bytes / progress.total_bytes))
