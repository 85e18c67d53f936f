"""Formats whose rows hold one question and its answer, and the names of columns under which datasets keep them."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace

from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.formats.base import (
    COMMON,
    IMAGES,
    SYSTEM,
    Cells,
    Column,
    DataFormat,
    Detection,
    Evidence,
    Table,
)
from loratory.engine.data.formats.turns import answer, check_turn_count, is_turn_text, is_turns, turn_list
from loratory.engine.data.records import RowProblemError

MATERIAL_NAMES = ("input", "context")  # what a question is about

# What is asked, and the answers to it; both in the order in which they are chosen.
ANSWER_NAMES = {
    "instruction": ("output", "response", "answer", "completion"),
    "prompt": ("completion", "response", "output", "answer"),
    "question": ("answer", "response", "output", "completion"),
    "query": ("response", "answer", "output", "completion"),
    "input": ("output", "response", "answer", "completion"),
}
_QUESTION_NAMES = ("instruction", "prompt", "question", "query")


class QuestionFormat(DataFormat):
    """A column of what is asked and one of its answer, the first two of the format."""

    takes_material: bool  # whether it has a column for what the question is about

    def detect(self, table: Table) -> list[Detection]:
        names = table.names
        pair = _question_and_answer(table)
        # More to a question than its own column, for which only Alpaca has a column.
        has_material = pair is not None and (
            pair[0] == names.get("instruction") or _material_column(pair[0], table) is not None
        )
        question, reply = (names.get(role) for role in self.required)
        detections = []
        if question is not None and reply is not None and (self.takes_material or not has_material):
            detections.append(self._detected_pair((question, reply), "", table, Evidence.COLUMNS))
        if pair is not None and has_material == self.takes_material:
            remark = ", which look like a question and its answer"
            detections.append(self._detected_pair(pair, remark, table, Evidence.SIMILAR_COLUMNS))
        return detections

    def _detected_pair(self, pair: tuple[str, str], remark: str, table: Table, evidence: Evidence) -> Detection:
        columns = dict(zip(self.required, pair, strict=True))
        reason = f"the columns {pair[0]} and {pair[1]}{remark}"
        return self.detected(columns, reason, table, evidence)


def _question_and_answer(table: Table) -> tuple[str, str] | None:
    """Return the columns of the question and its answer, by their names; None where there is no such pair.

    Of several questions, one that contains another is preferred.
    """
    pairs = []
    for question, known in ANSWER_NAMES.items():
        answer_column = _fullest([table.names[name] for name in known if name in table.names], table)
        if question in table.names and answer_column is not None:
            pairs.append((table.names[question], answer_column))
    # Material is not the question where there is one.
    likely = [
        pair for pair in pairs if _name_of(pair[0], table) not in MATERIAL_NAMES and _count_filled(pair[0], table)
    ]
    likely = likely or pairs
    whole = [pair for pair in likely if not any(_is_part(pair[0], other, table) for other, _ in likely)]
    best = _fullest([question for question, _ in whole], table)
    return next((pair for pair in whole if pair[0] == best), None)


def _material_column(question: str, table: Table) -> str | None:
    """Return the column of what the question in `question` is about, or of the rest of the question; None for neither."""
    if not table.is_text(question) or any(map(is_turn_text, table.cells(question))):
        return None
    columns = [table.names[name] for name in MATERIAL_NAMES if name in table.names]
    if _name_of(question, table) in ("instruction", "prompt"):  # these may be the task for a question in another column
        questions = (table.names[name] for name in _QUESTION_NAMES if name in table.names)
        columns += [column for column in questions if not _repeats(column, question, table)]
    # What the question already contains adds nothing.
    others = (column for column in columns if column != question and not _repeats(question, column, table))
    return next(filter(table.is_text, others), None)


def _fullest(columns: Sequence[str], table: Table) -> str | None:
    """Return the first column that is not much emptier than another."""
    counts = [_count_filled(column, table) for column in columns]
    return next((column for column, count in zip(columns, counts, strict=True) if 2 * count >= max(counts)), None)


def _name_of(column: str, table: Table) -> str:
    return next((name for name, known in table.names.items() if known == column and name in ANSWER_NAMES), column)


def _count_filled(column: str, table: Table) -> int:
    """Return how many rows have text or turns there."""
    values = table.cells(column)
    return sum(bool(value.strip()) if isinstance(value, str) else turn_list(value) is not None for value in values)


def _is_part(column: str, other: str, table: Table) -> bool:
    return other != column and _repeats(other, column, table) and not _repeats(column, other, table)


def _repeats(longer: str, shorter: str, table: Table) -> bool:
    """Return whether in every row the one column contains the other."""
    cells = zip(table.cells(longer), table.cells(shorter), strict=True)
    pairs = [(whole, part) for whole, part in cells if isinstance(part, str) and part.strip()]
    return bool(pairs) and all(
        isinstance(whole, str) and single_spaced(part) in single_spaced(whole) for whole, part in pairs
    )


def single_spaced(text: str) -> str:
    """Return text as it is compared."""
    return " ".join(text.split())


def question_of(row: Cells) -> str:
    """Return Alpaca's instruction with its input below."""
    parts = (row.text("instruction"), row.text("input", optional=True))
    return "\n\n".join(part for part in parts if part.strip())


class Alpaca(QuestionFormat):
    """Stanford Alpaca's columns, and LLaMA-Factory's history of earlier pairs."""

    name = "alpaca"
    label = "Alpaca"
    columns = (
        Column("instruction", True, "what is asked"),
        Column("input", False, "more to the question"),
        Column("output", True, "the answer"),
        SYSTEM,
        Column("history", False, "earlier question and answer pairs"),
        IMAGES,
    )
    takes_material = True

    def optional_column(self, role: str, detection: Detection, table: Table) -> str | None:
        """Return the column of what the question is about as its input."""
        if role == "input":
            return _material_column(detection.columns["instruction"], table)
        return super().optional_column(role, detection, table)

    def convert(self, row: Cells) -> Conversation:
        question = question_of(row)
        if not question:
            raise RowProblemError("empty", f"{row.columns['instruction']} is empty")
        last = [Message("user", question), answer(row.text("output"))]
        return row.conversation([*_history(row), *last])


def _history(row: Cells) -> list[Message]:
    name = row.columns.get("history", "")
    history = row.value.get(name) if name else None
    if isinstance(history, str) and history.strip():  # a cell of a table
        with contextlib.suppress(ValueError, RecursionError):
            history = json.loads(history)
    if history in (None, "", []):
        return []
    if not isinstance(history, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in history
    ):
        raise RowProblemError("not_text", f"{name} is not a list of question and answer pairs")
    check_turn_count(history, name)
    return [turn for question, reply in history for turn in (Message("user", question), answer(reply))]


class PromptCompletion(QuestionFormat):
    """TRL's columns of the same names, each text or a list of turns; the row itself marks the completion."""

    name = "prompt_completion"
    label = "prompt and completion"
    columns = (
        Column("prompt", True, "what is asked: text, or a list of turns"),
        Column("completion", True, "the answer: text, or a list of turns"),
        *COMMON,
    )
    may_hold_turns = ("prompt", "completion")
    takes_material = False

    def convert(self, row: Cells) -> Conversation:
        prompt, completion = row.required("prompt"), row.required("completion")
        prompt_turns = row.turns("prompt") if is_turns(prompt) else [Message("user", row.text("prompt"))]
        completion_turns = row.turns("completion") if is_turns(completion) else [answer(row.text("completion"))]
        whole = row.conversation([*prompt_turns, *completion_turns])
        return replace(whole, completion_start=len(whole.messages) - len(completion_turns))


ALPACA = Alpaca()
PROMPT_COMPLETION = PromptCompletion()
