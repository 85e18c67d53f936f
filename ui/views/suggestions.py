"""Questions to begin a conversation with, from the rows of a run's data."""

import random
from collections.abc import Sequence
from html import escape

from ui.backend.held_out import RowPrompt

_LONGEST = 240


def some_prompts(prompts: Sequence[RowPrompt], count: int, draw: random.Random | None = None) -> list[RowPrompt]:
    """A few prompts of which none is too long to be read at a glance: spread evenly, or drawn."""
    found: dict[str, RowPrompt] = {}
    for prompt in prompts:
        if len(prompt.question) <= _LONGEST:
            found.setdefault(prompt.question, prompt)
    short = list(found.values())
    if draw is not None:
        return draw.sample(short, min(count, len(short)))
    step = max(1, len(short) // count)
    return short[::step][:count]


def render_suggestions(prompts: Sequence[RowPrompt]) -> str:
    """The questions as choices; picking one puts it where one types, and its reference beside the answers."""
    if not prompts:
        return ""
    items = "".join(
        f'<button type="button" data-pick="{number}">{escape(prompt.question)}</button>'
        for number, prompt in enumerate(prompts)
    )
    where = "From rows that it did not learn from" if prompts[0].held_out else "From the data it learned from"
    return (
        f'<p class="small">{where}; the data\'s own answer then stands beside. '
        '<button type="button" class="inline" data-pick="others">Show others</button></p>'
        f'<div class="suggested" role="group" aria-label="Suggested questions">{items}</div>'
    )
