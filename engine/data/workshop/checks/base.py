"""What row checks share: a row as they see it, and how they report what they find."""

import json
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel

from loratory.engine.data.conversation import Conversation
from loratory.engine.data.passes.check import MAX_LISTED, CheckResult
from loratory.engine.data.passes.reader import DatasetRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.settings import CheckSettings

_PROMPTS, _ANSWERS = {"user", "text"}, {"assistant", "text"}
_COMPARED = {"prompts": _PROMPTS, "answers": _ANSWERS, "both": {*_PROMPTS, *_ANSWERS, "tool"}}
# Kana, Chinese, Thai, Lao, Burmese, Khmer: their words have no spaces between them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Commas, quotes and the like. Operators and brackets stay: 2+3 is not 2-3.
_PUNCTUATION = str.maketrans(dict.fromkeys(".,;:!?\"'`´‘’“”„«»…–—¿¡。，、；：！？「」", " "))


class Turn(NamedTuple):
    """A text of a row."""

    number: int  # of the turn, from 1; those of a rejected answer continue the prompt
    role: str  # of the turn; "text" of plain text, "reasoning" and "call" of what a turn has besides its content
    text: str


class CheckedRow(NamedTuple):
    """A row as checks see it."""

    number: int  # from 0
    turns: tuple[Turn, ...]

    @classmethod
    def from_row(cls, row: DatasetRow) -> Self:
        """Return the texts of all turns; of a comparison, those of the second answer after the first."""
        turns: list[Turn] = []
        for index, side in enumerate(row.example.sides() if row.example is not None else ()):
            if not isinstance(side, Conversation):
                turns.append(Turn(1, "text", side.text()))
                continue
            start = (side.completion_start or 0) if index else 0
            for turn, message in enumerate(side.messages[start:], start + 1):
                turns.append(Turn(turn, message.role, message.content))
                if message.reasoning is not None or message.has_empty_block:
                    turns.append(Turn(turn, "reasoning", message.reasoning or ""))
                if message.tool_calls:
                    arguments = [call.arguments for call in message.tool_calls]
                    turns.append(Turn(turn, "call", json.dumps(arguments, ensure_ascii=False)))
        return cls(row.record.row, tuple(turns))

    def split_words(self, over: str) -> list[str]:
        """Return the words of prompts, answers or both, without case and punctuation; of scripts without spaces, characters."""
        text = "\n".join(turn.text for turn in self.turns if turn.role in _COMPARED[over])
        plain = text.casefold().translate(_PUNCTUATION)
        return (plain if plain.isascii() else _UNSPACED.sub(r" \g<0> ", plain)).split() or text.split()


@dataclass
class CheckContext:
    """What the checks of one pass share."""

    settings: CheckSettings
    options: SourceOptions
    shared: dict[type, Any] = field(default_factory=dict)  # what several checks have, by its class
    result: CheckResult = field(init=False)  # of the pass, for `finish`


class RowFinding(BaseModel, frozen=True):
    """What a check found in one row. Rows count from 0."""

    row: int
    kind: str
    why: str
    partners: tuple[int, ...] = ()  # the row that it repeats
    sample: str = ""  # how the row begins


class CheckOutcome(BaseModel, frozen=True):
    """What one check found; the counts are of all findings, of which the first MAX_LISTED are listed."""

    name: str
    finds: str  # one sentence
    rows: int
    kinds: dict[str, int]
    findings: tuple[RowFinding, ...]


class RowCheck(ABC):
    """Sees each row that is kept once, in order, with compact state; reports rows at once or at the end.

    The docstring of a check is the sentence that people read about it.
    """

    def __init__(self, context: CheckContext) -> None:
        self.context, self.settings = context, context.settings
        self.findings: list[RowFinding] = []  # the first MAX_LISTED
        self.kinds: Counter[str] = Counter()  # of all findings
        self._rows = array("I")  # of all findings

    @abstractmethod
    def add(self, row: CheckedRow) -> None:
        """See a row."""

    def finish(self) -> None:  # noqa: B027 - most have nothing to add
        """Report what all rows show together."""

    def report(self, row: int, kind: str, why: str, partners: tuple[int, ...] = ()) -> None:
        """Count a finding, and list it if there is room."""
        self.kinds[kind] += 1
        self._rows.append(row)
        if len(self.findings) < MAX_LISTED:
            self.findings.append(RowFinding(row=row, kind=kind, why=why, partners=partners))

    def outcome(self, name: str, samples: Mapping[int, str]) -> CheckOutcome:
        """Return what it found by row, each with the beginning of its row."""
        by_row = sorted(self.findings, key=lambda finding: finding.row)
        findings = tuple(finding.model_copy(update={"sample": samples.get(finding.row, "")}) for finding in by_row)
        rows = len(np.unique(self._rows))
        return CheckOutcome(name=name, finds=self.__doc__ or "", rows=rows, kinds=self.kinds, findings=findings)
