"""Prompts from the held-out rows of a run, with the answers of the data as references."""

from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.data.contract import PageRow
from engine.data.passes.page import MAX_SHOWN_CHARACTERS
from engine.inspector.session import Inspector
from ui.backend.background import Cache

_REMEMBERED = 8
_PROMPTS = 200
_TRAINING_ROWS = 40  # how many rows of the dataset are searched for prompts where none was held out


@dataclass(frozen=True)
class RowPrompt:
    """The first question of a row, and its answer."""

    row: int
    question: str
    reference: str
    system: str = ""
    held_out: bool = True


class HeldOutPrompts:
    """Finds a run's prompts once, and remembers them.

    Args:
        inspector: Reads the data.
    """

    def __init__(self, inspector: Inspector) -> None:
        self._inspector = inspector
        self._cache: Cache[tuple[RowPrompt, ...]] = Cache(_REMEMBERED)

    def of_run(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        """Return up to 200 prompts spread evenly over the held-out rows; without them, some of the training set.

        Raises:
            EngineError: If the data or the model's tokenizer can no longer be read.
        """
        key = config.model_dump_json(include={"dataset", "model", "training"})
        return self._cache.get(key, lambda: self._find(config))

    def _find(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        length = config.training.max_length
        held_out = self._inspector.held_out(
            config.dataset, config.model, length, seed=config.training.seed, count=_PROMPTS
        )
        if held_out.rows:
            page = self._inspector.preview(config.dataset, None, length, rows=held_out.rows)
        else:
            page = self._inspector.preview(config.dataset, None, length, count=_TRAINING_ROWS)
        prompts = (row_prompt(row, held_out=bool(held_out.rows)) for row in page.rows)
        return tuple(prompt for prompt in prompts if prompt is not None)


def row_prompt(row: PageRow, *, held_out: bool = True) -> RowPrompt | None:
    """Return the first exchange of a conversation; None where there is none, or the preview shortened it."""
    if row.conversation is None or row.conversation.tools:
        return None
    messages = list(row.conversation.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("user", "assistant"):
        return None
    question, reference = messages[0].content.strip(), messages[1].content.strip()
    whole = all(len(text) <= MAX_SHOWN_CHARACTERS for text in (system, question, reference))
    return RowPrompt(row.row, question, reference, system, held_out) if question and reference and whole else None
