"""Prompt and completion: two columns, each text or a list of turns; the row itself marks the completion."""

from dataclasses import replace

from engine.data.conversation import Conversation, Message
from engine.data.formats.alpaca import has_more_to_it
from engine.data.formats.base import SYSTEM, TOOLS, Cells, Column, DataFormat, Detection, Evidence, Table
from engine.data.formats.columns import question_and_answer
from engine.data.formats.turns import answer, is_turns


class PromptCompletion(DataFormat):
    """TRL's columns of the same names."""

    name = "prompt_completion"
    label = "prompt and completion"
    columns = (
        Column("prompt", True, "what is asked: text, or a list of turns"),
        Column("completion", True, "the answer: text, or a list of turns"),
        SYSTEM,
        TOOLS,
    )
    may_hold_turns = ("prompt", "completion")

    def detect(self, table: Table) -> list[Detection]:
        names = table.names
        pair = question_and_answer(names, table.rows)
        if pair is not None and has_more_to_it(pair[0], table):
            return []
        found = []
        if "prompt" in names and "completion" in names:
            columns = {"prompt": names["prompt"], "completion": names["completion"]}
            reason = "the columns prompt and completion"
            found.append(self.detected(columns, reason, table, evidence=Evidence.COLUMNS))
        if pair is not None:
            columns = {"prompt": pair[0], "completion": pair[1]}
            reason = f"the columns {pair[0]} and {pair[1]}, which look like a question and its answer"
            found.append(self.detected(columns, reason, table, evidence=Evidence.SIMILAR_COLUMNS, sure=False))
        return found

    def convert(self, row: Cells) -> Conversation:
        prompt, completion = row.required("prompt"), row.required("completion")
        asked = row.turns("prompt") if is_turns(prompt) else [Message("user", row.text("prompt"))]
        answered = row.turns("completion") if is_turns(completion) else [answer(row.text("completion"))]
        whole = row.conversation([*asked, *answered])
        return replace(whole, completion_start=len(whole.messages) - len(answered))


PROMPT_COMPLETION = PromptCompletion()
