"""The format of prompts alone, for objectives that sample the answers themselves."""

from loratory.engine.config.objectives import RowKind
from loratory.engine.data.conversation import Message, PromptRow
from loratory.engine.data.formats.base import COMMON, Cells, Column, DataFormat, Detection, Evidence, Table
from loratory.engine.data.formats.pairs import ANSWER_NAMES
from loratory.engine.data.formats.turns import is_turns
from loratory.engine.data.records import RowProblemError

# Columns that make a row more than a prompt.
_ANSWERS = frozenset({"chosen", "rejected", "messages", "conversations"}.union(*ANSWER_NAMES.values()))


class Prompts(DataFormat):
    """TRL's column of prompts, each text or a list of turns; scorers read the other columns."""

    name = "prompt"
    label = "prompts"
    columns = (Column("prompt", True, "what is asked: text, or a list of turns"), *COMMON)
    rows: RowKind = "prompts"
    may_hold_turns = ("prompt",)

    def detect(self, table: Table) -> list[Detection]:
        if "prompt" not in table.names or _ANSWERS & table.names.keys():
            return []
        name = table.names["prompt"]
        return [self.detected({"prompt": name}, f"the column {name} and no answers", table, Evidence.COLUMNS)]

    def convert(self, row: Cells) -> PromptRow:
        prompt = row.required("prompt")
        turns = row.turns("prompt") if is_turns(prompt) else [Message("user", row.text("prompt"))]
        whole = row.conversation(turns)
        if all(turn.is_empty for turn in whole.messages if turn.role != "system"):
            raise RowProblemError("empty", f"{row.columns['prompt']} is empty")
        if whole.messages[-1].role == "assistant":
            raise RowProblemError("order", "the prompt ends with a turn of the assistant")
        return PromptRow(whole.messages, whole.tools)


PROMPTS = Prompts()
