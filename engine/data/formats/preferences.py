"""Formats of preferences: pairs of a chosen and a rejected answer, and single answers with a label."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loratory.engine.config.objectives import RowKind
from loratory.engine.data.conversation import LabeledCompletion, Message, PreferencePair
from loratory.engine.data.formats.base import (
    COMMON,
    SYSTEM,
    Cells,
    Column,
    DataFormat,
    Detection,
    Evidence,
    Table,
    is_missing,
)
from loratory.engine.data.formats.pairs import question_of
from loratory.engine.data.formats.turns import answer, is_turn, is_turns, list_of_turns, turn_list
from loratory.engine.data.records import RowProblemError, describe_kind, shared_length

_CHOSEN = Column("chosen", True, "the better answer: text, or a list of turns")
_REJECTED = Column("rejected", True, "the worse answer: text, or a list of turns")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
# Columns of an answer and its label, as TRL and LLaMA-Factory name them.
_RATING_NAMES = (("completion", "label"), *((name, "kto_tag") for name in ("completion", "messages", "conversations")))
_LABELS = {"true": True, "1": True, "false": False, "0": False}


class PairFormat(DataFormat):
    """A column of the chosen and one of the rejected answer."""

    rows: RowKind = "pairs"
    may_hold_turns: tuple[str, ...] = ("prompt", "chosen", "rejected")

    @abstractmethod
    def fits(self, table: Table) -> str:
        """Return why rows with both columns are of this format; empty where they are not."""

    def detect(self, table: Table) -> list[Detection]:
        if not {"chosen", "rejected"} <= table.names.keys():
            return []
        reason = self.fits(table)
        needed = {role: table.names[role] for role in self.required if role in table.names}
        return [self.detected(needed, reason, table, Evidence.PREFERENCES)] if reason else []

    def pair(self, row: Cells, prompt: Sequence[Message], chosen: Any, rejected: Any) -> PreferencePair:
        """Return a row as a pair; turns at the beginning that both answers share are the prompt's.

        Raises:
            RowProblemError: If the answers do not follow the same prompt, are equal, or there is no prompt.
        """
        sides = [_turns_or_answer(row, role, cell) for role, cell in (("chosen", chosen), ("rejected", rejected))]
        if prompt and all(side[: len(prompt)] == list(prompt) for side in sides):
            prompt = ()  # UltraFeedback repeats it in both
        prefix_turns = shared_length(*sides)
        whole = row.conversation([*prompt, *sides[0][:prefix_turns]])
        better, worse = (tuple(side[prefix_turns:]) for side in sides)
        if not better and not worse:
            raise RowProblemError("equal_answers", "the chosen and the rejected answer are equal")
        for role, turns in (("chosen", better), ("rejected", worse)):
            if not turns:
                raise RowProblemError("pair", f"the {role} answer has no turn of its own")
            if turns[0].role != "assistant":
                raise RowProblemError(
                    "other_prompt", f"the prompts differ: the {role} side has another {turns[0].role} turn"
                )
            if all(turn.is_empty for turn in turns if turn.role == "assistant"):
                raise RowProblemError("empty", f"the {role} answer is empty")
        if not any(turn.role in ("user", "tool") and not turn.is_empty for turn in whole.messages):
            raise RowProblemError("pair", "there is no prompt before the answers")
        start = len(whole.messages)
        return PreferencePair((*whole.messages, *better), whole.tools, start, rejected=worse)


class Preference(PairFormat):
    """TRL's columns; without a prompt of its own, it is what both answers begin with. UltraFeedback has both."""

    name = "preference"
    label = "preference pairs"
    columns = (Column("prompt", False, "what is asked: text, or a list of turns"), _CHOSEN, _REJECTED, *COMMON)

    def fits(self, table: Table) -> str:
        chosen, rejected = table.names["chosen"], table.names["rejected"]
        if "prompt" in table.names:
            return f"the columns {table.names['prompt']}, {chosen} and {rejected}"
        if {"instruction", "conversations"} & table.names.keys() or HH_DIALOGUES.fits(table):
            return ""
        if any(turn_list(cell) for cell in table.cells(chosen)):
            return f"the columns {chosen} and {rejected}, each with the whole conversation"
        return f"the columns {chosen} and {rejected}"

    def detect(self, table: Table) -> list[Detection]:
        return [
            detection
            if "prompt" in detection.columns
            or any(turn_list(cell) for cell in table.cells(detection.columns["chosen"]))
            else replace(
                detection, reason=f"{detection.reason}; what both begin with is read as the prompt", sure=False
            )
            for detection in super().detect(table)
        ]

    def optional_column(self, role: str, detection: Detection, table: Table) -> str | None:
        """Return a question's column as the prompt where the answers do not hold it."""
        if role == "prompt" and not any(turn_list(cell) for cell in table.cells(detection.columns["chosen"])):
            return next((table.names[name] for name in ("question", "query", "input") if name in table.names), None)
        return super().optional_column(role, detection, table)

    def convert(self, row: Cells) -> PreferencePair:
        prompt, chosen, rejected = _prompt(row), row.required("chosen"), row.required("rejected")
        both_text = isinstance(chosen, str) and isinstance(rejected, str) and not is_turns(chosen)
        if not prompt and both_text:
            start = shared_length(chosen, rejected)
            start -= chosen[:start].endswith(" ")  # the space stays with the answers, as in TRL's `extract_prompt`
            prompt = [Message("user", chosen[:start].strip())]
            chosen, rejected = chosen[start:].strip(), rejected[start:].strip()
        elif not both_text and len(prompt) == 1 and not is_turns(row.value.get(row.columns.get("prompt", ""))):
            opening = [turn for turn in turn_list(chosen) or () if isinstance(turn, dict)][:1]
            if any(row.fields.role_of(row.fields.read(turn)[0]) in ("user", "system") for turn in opening):
                prompt = []  # the answers hold the whole conversation, and the column repeats what is asked
        return self.pair(row, prompt, chosen, rejected)


class HH(PairFormat):
    """Anthropic's HH-RLHF: each side is a whole dialogue as text, with Human: and Assistant: before the turns."""

    name = "hh"
    label = "HH-RLHF dialogues"
    columns = (_CHOSEN, _REJECTED, SYSTEM)
    may_hold_turns = ()

    def fits(self, table: Table) -> str:
        cells = table.cells(table.names["chosen"])
        if not any(isinstance(cell, str) and _HH_TURN.match(cell) for cell in cells):
            return ""
        return f"the columns {table.names['chosen']} and {table.names['rejected']}, each a dialogue of Human: and Assistant:"

    def convert(self, row: Cells) -> PreferencePair:
        chosen, rejected = (_dialogue(row.text(role), row.columns[role]) for role in ("chosen", "rejected"))
        return self.pair(row, (), chosen, rejected)


class Ranking(PairFormat):
    """LLaMA-Factory's preference rows: Alpaca's question or ShareGPT's conversation, then chosen and rejected."""

    name = "ranking"
    label = "LLaMA-Factory ranking"
    columns = (
        Column("instruction", False, "what is asked"),
        Column("input", False, "more to the question"),
        Column("conversations", False, "turns before the answers, each with from and value"),
        _CHOSEN,
        _REJECTED,
        *COMMON,
    )
    may_hold_turns = ("chosen", "rejected")

    def fits(self, table: Table) -> str:
        question = next((table.names[name] for name in ("conversations", "instruction") if name in table.names), None)
        if question is None or "prompt" in table.names:
            return ""
        return f"the columns {question}, {table.names['chosen']} and {table.names['rejected']}"

    def convert(self, row: Cells) -> PreferencePair:
        if "conversations" in row.columns:
            prompt = row.turns("conversations")
        elif "instruction" in row.columns:
            prompt = [Message("user", question_of(row))]
        else:
            raise RowProblemError("missing_column", "there is neither instruction nor conversations")
        cells = (row.required(role) for role in ("chosen", "rejected"))
        return self.pair(row, prompt, *([cell] if is_turn(cell) else cell for cell in cells))


class Ratings(DataFormat):
    """TRL's columns of unpaired preferences: an answer, and whether it is good."""

    name = "kto"
    label = "rated answers"
    rows: RowKind = "ratings"
    columns = (
        Column("prompt", False, "what is asked: text, or a list of turns"),
        Column("completion", True, "the answer: text, or a list of turns"),
        Column("label", True, "whether the answer is good: true or false"),
        *COMMON,
    )
    may_hold_turns = ("prompt", "completion")

    def detect(self, table: Table) -> list[Detection]:
        names = table.names
        pair = next((pair for pair in _RATING_NAMES if names.keys() >= set(pair)), None)
        if pair is None:
            return []
        answer_column, label_column = (names[name] for name in pair)
        # Numbers may be classes of anything; they are read where this format is chosen.
        labels = table.cells(label_column)
        if not all(is_missing(label) or str(label).strip().lower() in ("true", "false") for label in labels):
            return []
        if "prompt" not in names and not any(turn_list(cell) for cell in table.cells(answer_column)):
            return []
        columns = {"completion": answer_column, "label": label_column}
        reason = f"the columns {answer_column} and {label_column}, which is true or false"
        return [self.detected(columns, reason, table, Evidence.PREFERENCES)]

    def convert(self, row: Cells) -> LabeledCompletion:
        prompt = _prompt(row)
        turns = _turns_or_answer(row, "completion", row.required("completion"))
        whole = row.conversation([*prompt, *turns])
        messages = whole.messages
        last = max((index for index, turn in enumerate(messages) if turn.role in ("user", "tool")), default=-1)
        start = max(last + 1, len(messages) - len(turns))
        if last < 0 or not any(turn.role == "assistant" for turn in messages[start:]):
            raise RowProblemError("no_assistant_turn", "no answer follows the prompt")
        return LabeledCompletion(
            messages, whole.tools, start, desirable=_label(row.required("label"), row.columns["label"])
        )


def _prompt(row: Cells) -> list[Message]:
    if "prompt" not in row.columns or is_missing(cell := row.required("prompt")):
        return []
    return row.turns("prompt") if is_turns(cell) else [Message("user", row.text("prompt"))]


def _turns_or_answer(row: Cells, role: str, cell: Any) -> list[Message]:
    if is_turns(cell):
        return list_of_turns(cell, row.columns[role], row.fields)
    if not isinstance(cell, str):
        raise RowProblemError("not_text", f"{row.columns[role]} is {describe_kind(cell)}, not text or a list of turns")
    return [answer(cell)]


def _dialogue(text: str, column: str) -> list[dict[str, str]]:
    pieces = _HH_TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise RowProblemError("not_text", f"{column} does not begin with Human: or Assistant: after an empty line")
    return [
        {"role": _HH_ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _label(cell: Any, column: str) -> bool:
    label = _LABELS.get(str(cell).strip().lower())
    if label is None:
        raise RowProblemError("label", f"{column} is {describe_kind(cell)}, not true or false")
    return label


PREFERENCE, HH_DIALOGUES, RANKING, RATINGS = Preference(), HH(), Ranking(), Ratings()
FORMATS_OF_PREFERENCES: tuple[DataFormat, ...] = (PREFERENCE, HH_DIALOGUES, RANKING, RATINGS)
