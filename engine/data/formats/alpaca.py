"""Alpaca: an instruction, more to it where there is any, and the answer; one question a row, with earlier pairs."""

import contextlib
import json

from engine.data.conversation import Conversation, Message
from engine.data.formats.base import SYSTEM, Cells, Column, DataFormat, Detection, Evidence, Table
from engine.data.formats.columns import material_column, question_and_answer
from engine.data.formats.turns import answer, refuse_endless
from engine.data.records import RowProblemError


class Alpaca(DataFormat):
    """Stanford Alpaca's columns, and LLaMA-Factory's history of earlier pairs."""

    name = "alpaca"
    label = "Alpaca"
    columns = (
        Column("instruction", True, "what is asked"),
        Column("input", False, "more to the question"),
        Column("output", True, "the answer"),
        SYSTEM,
        Column("history", False, "earlier question and answer pairs"),
    )

    def detect(self, table: Table) -> list[Detection]:
        names = table.names
        found = []
        if "instruction" in names and "output" in names:
            columns = {"instruction": names["instruction"], "output": names["output"]}
            reason = f"the columns {columns['instruction']} and {columns['output']}"
            found.append(self.detected(columns, reason, table, evidence=Evidence.COLUMNS))
        pair = question_and_answer(names, table.rows)
        if pair is not None and has_more_to_it(pair[0], table):
            columns = {"instruction": pair[0], "output": pair[1]}
            reason = f"the columns {pair[0]} and {pair[1]}, which look like a question and its answer"
            found.append(self.detected(columns, reason, table, evidence=Evidence.SIMILAR_COLUMNS, sure=False))
        return found

    def optional_column(self, role: str, found: Detection, table: Table) -> str | None:
        """Return the column of what the question is about as its input."""
        if role == "input":
            return material_column(found.columns["instruction"], table.names, table.rows)
        return super().optional_column(role, found, table)

    def convert(self, row: Cells) -> Conversation:
        parts = (row.text("instruction"), row.text("input", optional=True))
        question = "\n\n".join(part for part in parts if part.strip())
        if not question:
            raise RowProblemError("empty", f"{row.columns['instruction']} is empty")
        last = [Message("user", question), answer(row.text("output"))]
        return row.conversation([*_history(row), *last])


def has_more_to_it(question: str, table: Table) -> bool:
    """Return whether rows have more to a question than its own column, for which only Alpaca has a column."""
    return question == table.names.get("instruction") or material_column(question, table.names, table.rows) is not None


def _history(row: Cells) -> list[Message]:
    name = row.columns.get("history")
    history = row.value.get(name) if name else None
    if isinstance(history, str) and history.strip():  # a cell of a table
        with contextlib.suppress(ValueError, RecursionError):
            history = json.loads(history)
    if history in (None, "", []):
        return []
    is_good = isinstance(history, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in history
    )
    if not is_good or not isinstance(history, list):
        raise RowProblemError("not_text", f"{name} is not a list of question and answer pairs")
    refuse_endless(history, str(name))
    return [turn for asked, answered in history for turn in (Message("user", asked), answer(answered))]


ALPACA = Alpaca()
