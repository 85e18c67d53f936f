"""Names under which datasets keep questions, answers and what belongs to them, and which of the columns are meant."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.data.formats.turns import looks_like_turns, turn_list

Rows = Sequence[Mapping[str, Any]]
Names = Mapping[str, str]  # the columns of a dataset by their names without case and spaces
SYSTEM_NAMES = ("system", "system_prompt", "system_message")
MATERIAL_NAMES = ("input", "context")  # what a question is about

# What is asked, and the answers to it; both in the order in which they are chosen.
ANSWER_NAMES = {
    "instruction": ("output", "response", "answer", "completion"),
    "prompt": ("completion", "response", "output", "answer"),
    "question": ("answer", "response", "output", "completion"),
    "query": ("response", "answer", "output", "completion"),
    "input": ("output", "response", "answer", "completion"),
}

_ASKING_NAMES = ("instruction", "prompt", "question", "query")
_GENERAL_NAMES = ("instruction", "prompt")  # these may be the task for a question in another column


def is_missing(value: Any) -> bool:
    """Return whether a cell holds nothing; pandas writes NaN for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain_text(text: str) -> str:
    """Return text as it is compared: with single spaces."""
    return " ".join(text.split())


def system_column(names: Names, rows: Rows) -> str | None:
    """Return a column of system prompts that is not simply called system; None where none holds text."""
    return next((names[name] for name in SYSTEM_NAMES if name in names and _is_text(names[name], rows)), None)


def material_column(asked: str, names: Names, rows: Rows) -> str | None:
    """Return the column of what the question in `asked` is about, or of the rest of the question; None for neither."""
    if not _is_text(asked, rows) or any(looks_like_turns(row.get(asked)) for row in rows):
        return None
    columns = [names[name] for name in MATERIAL_NAMES if name in names]
    if _name_of(asked, names) in _GENERAL_NAMES:
        questions = (names[name] for name in _ASKING_NAMES if name in names)
        columns += [column for column in questions if not _repeats(column, asked, rows)]
    # What the question already contains adds nothing.
    others = (column for column in columns if column != asked and not _repeats(asked, column, rows))
    return next((column for column in others if _is_text(column, rows)), None)


def question_and_answer(names: Names, rows: Rows) -> tuple[str, str] | None:
    """Return the columns of the question and its answer, by their names; None where there is no such pair.

    Of several questions, one that contains another is preferred.
    """
    answers = {name: _answer(name, names, rows) for name in ANSWER_NAMES if name in names}
    pairs = [(names[name], answer) for name, answer in answers.items() if answer is not None]
    # Material is not the question where there is one.
    asked = [
        pair for pair in pairs if _name_of(pair[0], names) not in MATERIAL_NAMES and _filled(pair[0], rows)
    ] or pairs
    whole = [pair for pair in asked if not _is_part_of_another(pair[0], [other for other, _ in asked], rows)]
    best = _fullest([question for question, _ in whole], rows)
    return next((pair for pair in whole if pair[0] == best), None)


def _answer(asking: str, names: Names, rows: Rows) -> str | None:
    return _fullest([names[name] for name in ANSWER_NAMES[asking] if name in names], rows)


def _fullest(columns: Sequence[str], rows: Rows) -> str | None:
    """Return the first column that is not much emptier than another."""
    filled = [_filled(column, rows) for column in columns]
    return next((column for column, count in zip(columns, filled, strict=True) if 2 * count >= max(filled)), None)


def _name_of(column: str, names: Names) -> str:
    return next((name for name, known in names.items() if known == column and name in ANSWER_NAMES), column)


def _filled(column: str, rows: Rows) -> int:
    """Return how many rows have text or turns there."""
    values = (row.get(column) for row in rows)
    return sum(bool(value.strip()) if isinstance(value, str) else turn_list(value) is not None for value in values)


def _is_text(column: str, rows: Rows) -> bool:
    """Return whether a column holds text or, in some rows, nothing."""
    values = [row.get(column) for row in rows]
    return any(isinstance(value, str) for value in values) and all(
        isinstance(value, str) or is_missing(value) for value in values
    )


def _is_part_of_another(column: str, others: Sequence[str], rows: Rows) -> bool:
    return any(
        other != column and _repeats(other, column, rows) and not _repeats(column, other, rows) for other in others
    )


def _repeats(longer: str, shorter: str, rows: Rows) -> bool:
    """Return whether in every row the one column contains the other."""
    cells = [(row.get(longer), row[shorter]) for row in rows if isinstance(row.get(shorter), str)]
    pairs = [(whole, part) for whole, part in cells if part.strip()]
    return bool(pairs) and all(
        isinstance(whole, str) and plain_text(part) in plain_text(whole) for whole, part in pairs
    )
