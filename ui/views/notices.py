"""Sentences that a person should not miss, beneath what they are about."""

from collections.abc import Iterable
from html import escape


def render_notices(sentences: Iterable[str]) -> str:
    """HTML of each as a paragraph of its own; nothing where there are none."""
    return "".join(f'<p class="notice">{escape(sentence)}</p>' for sentence in sentences)
