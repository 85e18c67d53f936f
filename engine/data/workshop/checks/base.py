"""What row checks share: a row as they see it, and how they report what they find."""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.data.conversation import Conversation, Example
from loratory.engine.data.passes.check import MAX_LISTED, CheckResult
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.data.workshop.checks.similarity import SimilarRows

MAX_TURN_CHARACTERS, MAX_ROW_CHARACTERS = 20_000, 100_000  # that are checked
MAX_PARTNERS = 10  # rows that a finding names
_TURN_COST = 16  # characters that a turn counts in addition, so 100,000 short turns are bounded too
_PROMPTS, _ANSWERS = {"user", "text"}, {"assistant", "text"}
_COMPARED = {"prompts": _PROMPTS, "answers": _ANSWERS, "both": {*_PROMPTS, *_ANSWERS, "tool"}}
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
    is_cut: bool  # whether it is longer than what is checked
    digest: int  # of the whole row

    def normalized(self, over: str) -> str:
        """Return the text of prompts, answers or both, without case, punctuation and differences in white space."""
        text = "\n".join(turn.text for turn in self.turns if turn.role in _COMPARED[over])
        return " ".join(text.casefold().translate(_PUNCTUATION).split()) or " ".join(text.split())


def checked_row(row: DatasetRow) -> CheckedRow:
    """Return a row that is kept, cut to what checks read."""
    assert row.example is not None, "only rows that are kept are checked"
    turns, left, is_cut = [], MAX_ROW_CHARACTERS, False
    for number, role, text in _texts(row.example):
        turns.append(Turn(number, role, text[: min(left, MAX_TURN_CHARACTERS)]))
        is_cut |= len(turns[-1].text) < len(text)
        left = max(0, left - len(turns[-1].text) - _TURN_COST)
    return CheckedRow(row.record.row, tuple(turns), is_cut, row.digest)


def _texts(example: Example) -> Iterator[tuple[int, str, str]]:
    """Yield the texts of all turns; of a comparison, those of the second answer after the first."""
    for index, side in enumerate(example.sides()):
        if not isinstance(side, Conversation):
            yield 1, "text", side.text()
            continue
        start = (side.completion_start or 0) if index else 0
        for number, message in enumerate(side.messages[start:], start + 1):
            yield number, message.role, message.content
            if message.reasoning is not None:
                yield number, "reasoning", message.reasoning
            if message.tool_calls:
                yield number, "call", json.dumps([call.arguments for call in message.tool_calls], ensure_ascii=False)


@dataclass
class CheckContext:
    """What the checks of one pass share."""

    settings: CheckSettings
    options: SourceOptions
    reader: DatasetReader
    similar: SimilarRows = field(default_factory=SimilarRows)
    cut_rows: int = 0
    result: CheckResult = field(init=False)  # of the pass, for `finish`


class RowFinding(BaseModel, frozen=True):
    """What a check found in one row. Rows count from 0."""

    row: int
    kind: str
    why: str
    partners: tuple[int, ...] = ()  # the rows that it repeats, at most MAX_PARTNERS
    sample: str = ""  # how the row begins


class CheckOutcome(BaseModel, frozen=True):
    """What one check found; the counts are of all findings, of which the first MAX_LISTED are listed."""

    name: str
    finds: str  # one sentence
    rows: int
    kinds: dict[str, int]
    findings: tuple[RowFinding, ...]


class RowCheck(ABC):
    """Sees each row that is kept once, with compact state; reports rows in ascending order, at once or at the end.

    The docstring of a check is the sentence that people read about it.
    """

    def __init__(self, context: CheckContext) -> None:
        self.context, self.settings = context, context.settings
        self.findings: list[RowFinding] = []  # the first MAX_LISTED
        self.kinds: Counter[str] = Counter()  # of all findings
        self.row_count, self._last_row = 0, -1

    @abstractmethod
    def add(self, row: CheckedRow) -> None:
        """See a row."""

    def finish(self) -> None:  # noqa: B027 - most have nothing to add
        """Report what all rows show together."""

    def report(self, row: int, kind: str, why: str, partners: Iterable[int] = ()) -> None:
        """Count a finding, and list it if there is room."""
        self.kinds[kind] += 1
        self.row_count += row != self._last_row
        self._last_row = row
        if len(self.findings) < MAX_LISTED:
            others = tuple(islice(partners, MAX_PARTNERS))
            self.findings.append(RowFinding(row=row, kind=kind, why=why, partners=others))

    def outcome(self, name: str, samples: Mapping[int, str]) -> CheckOutcome:
        """Return what it found, each with the beginning of its row."""
        findings = tuple(finding.model_copy(update={"sample": samples[finding.row]}) for finding in self.findings)
        return CheckOutcome(
            name=name, finds=self.__doc__ or "", rows=self.row_count, kinds=self.kinds, findings=findings
        )
