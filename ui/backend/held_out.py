"""Prompts from rows that a run did not learn from, with the answers that the data gives to them."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from engine.config.run import RunConfig
from engine.data.contract import PageRow
from engine.data.passes.page import MAX_SHOWN_CHARACTERS
from engine.inspector.session import Inspector

_REMEMBERED = 8
_PROMPTS = 200
_LEARNED_ROWS = 40  # how far into the dataset prompts are looked for where nothing was held out


@dataclass(frozen=True)
class RowPrompt:
    """What a row asks first, and how it answers."""

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
        self._lock = threading.Lock()  # guards _known: handlers run in many threads
        self._known: OrderedDict[str, tuple[RowPrompt, ...]] = OrderedDict()

    def of_run(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        """Up to 200 prompts spread evenly over the held-out rows; of a run without them, some that it learned from.

        Raises:
            EngineError: If the data or the model's tokenizer cannot be read any more.
        """
        key = config.model_dump_json(include={"dataset", "model", "training"})
        with self._lock:
            known = self._known.get(key)
        if known is not None:
            return known
        found = self._find(config)
        with self._lock:
            self._known[key] = found
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _find(self, config: RunConfig) -> tuple[RowPrompt, ...]:
        length = config.training.max_length
        held_out = self._inspector.held_out(
            config.dataset, config.model, length, seed=config.training.seed, count=_PROMPTS
        )
        if held_out.rows:
            page = self._inspector.preview(config.dataset, None, length, rows=held_out.rows)
        else:
            page = self._inspector.preview(config.dataset, None, length, count=_LEARNED_ROWS)
        prompts = (row_prompt(row, held_out=bool(held_out.rows)) for row in page.rows)
        return tuple(prompt for prompt in prompts if prompt is not None)


def row_prompt(row: PageRow, *, held_out: bool = True) -> RowPrompt | None:
    """The first exchange of a conversation; None where the row has none, or it was shortened for showing."""
    if row.conversation is None or row.conversation.tools:
        return None
    messages = list(row.conversation.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("user", "assistant"):
        return None
    question, reference = messages[0].content.strip(), messages[1].content.strip()
    whole = all(len(text) <= MAX_SHOWN_CHARACTERS for text in (system, question, reference))
    return RowPrompt(row.row, question, reference, system, held_out) if question and reference and whole else None
