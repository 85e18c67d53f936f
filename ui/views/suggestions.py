"""Questions to begin a conversation with, from the rows that a run learned from."""

from collections.abc import Sequence
from html import escape

from engine.data.page import DatasetPage

_LONGEST = 240


def first_questions(page: DatasetPage, count: int) -> list[str]:
    """The first user turns of rows spread evenly over the page; long ones and repetitions are left out."""
    found: dict[str, None] = {}
    for row in page.rows:
        if row.conversation is None:
            continue
        text = next((message.content.strip() for message in row.conversation.messages if message.role == "user"), "")
        if text and len(text) <= _LONGEST:
            found.setdefault(text)
    questions = list(found)
    step = max(1, len(questions) // count)
    return questions[::step][:count]


def render_suggestions(questions: Sequence[str]) -> str:
    """The questions as choices; picking one puts it where one types."""
    if not questions:
        return ""
    items = "".join(
        f'<button type="button" data-pick="{number}">{escape(question)}</button>'
        for number, question in enumerate(questions)
    )
    return (
        '<p class="small">From the data it learned from; pick one, or ask your own.</p>'
        f'<div class="suggested" role="group" aria-label="Suggested questions">{items}</div>'
    )
