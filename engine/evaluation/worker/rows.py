"""Held-out rows as an evaluation sees them: the very sequences and masks that training measured, and their answers."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from engine.data.render.tokenize import IGNORED_LABEL, TokenizedRow
from engine.data.render.tokens import ChatTokenizer

Item = TypeVar("Item")


class PromptAndReference(NamedTuple):
    """The last answer of a sequence, and everything before it."""

    prompt_ids: tuple[int, ...]
    reference_ids: tuple[int, ...]


def spread_evenly(items: Sequence[Item], count: int | None) -> list[Item]:
    """So many of the items, from the first to the last at equal distances; all where there are fewer."""
    if count is None or count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def split_at_answer(row: TokenizedRow) -> PromptAndReference | None:
    """Part a sequence at its last learned run of tokens; None where nothing stands before it, as in plain text."""
    learned = [index for index, label in enumerate(row.labels) if label != IGNORED_LABEL]
    if not learned:
        return None
    end = learned[-1] + 1
    start = end - 1
    while start > 0 and row.labels[start - 1] != IGNORED_LABEL:
        start -= 1
    if start == 0:
        return None
    return PromptAndReference(tuple(row.input_ids[:start]), tuple(row.input_ids[start:end]))


def decode(ids: Sequence[int], tokenizer: ChatTokenizer) -> str:
    """Tokens as a person reads them, without control tokens."""
    controls = set(tokenizer.all_special_ids)
    return tokenizer.decode([token for token in ids if token not in controls]).strip()
