"""What one page has drawn and judged in the blind test, all of it about one and the same target."""

from dataclasses import dataclass, replace
from typing import Self

from engine.chat.contract import Branch, ChatState, ChatTarget
from engine.errors import RunError
from engine.evaluation.blind_test import Judgement, Pair
from ui.backend.held_out import RowPrompt


@dataclass(frozen=True)
class Judging:
    """Pair, deck and tally stay with what answered, whatever is loaded later, by this page or another."""

    target: ChatTarget | None = None  # None before anything was drawn
    pair: Pair | None = None  # which waits for a verdict
    deck: tuple[RowPrompt, ...] = ()  # held-out questions that have not come yet
    judged: tuple[Judgement, ...] = ()  # what a folder without a run has instead of a file

    def of(self, target: ChatTarget) -> Self:
        """The same, if it is about this target; else a new beginning."""
        return self if self.target == target else type(self)(target)

    def is_about_another(self, target: ChatTarget | None) -> bool:
        """Whether something else is loaded now; nothing at all is nothing else."""
        return self.target is not None and target is not None and self.target != target

    def drawn(self, pair: Pair) -> Self:
        """A pair waits for its verdict."""
        return replace(self, pair=pair)

    def with_judgement(self, judgement: Judgement) -> Self:
        """A verdict was given."""
        return replace(self, pair=None, judged=(*self.judged, judgement))


def compared(state: ChatState) -> tuple[ChatTarget, tuple[Branch, Branch]]:
    """What is loaded, and its two sides: two runs where two are loaded, else base and tuned.

    Raises:
        RunError: If nothing is loaded, or it has no second answer.
    """
    if state.model is None or state.target is None:
        raise RunError("No model is loaded.", "Load a run first.")
    branches = state.model.branches
    if "second" in branches and "tuned" in branches:
        return state.target, ("tuned", "second")
    if "tuned" in branches:
        return state.target, ("base", "tuned")
    raise RunError("A model alone has no second answer.", "Load a run.")
