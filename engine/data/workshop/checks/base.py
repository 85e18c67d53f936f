"""What row checks share: a row as they see it, and how they report what they find."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import BaseModel

from loratory.engine.data.conversation import Conversation
from loratory.engine.data.passes.check import MAX_LISTED, CheckResult
from loratory.engine.data.passes.reader import DatasetRow
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.quantities import duration
from loratory.engine.scoring.base import ScoredAnswer, Scorer
from loratory.engine.scoring.registry import AnyScorer

_PROMPTS, _ANSWERS = {"user", "text"}, {"assistant", "text"}
_COMPARED = {"prompts": _PROMPTS, "answers": _ANSWERS, "both": {*_PROMPTS, *_ANSWERS, "tool"}}
# Kana, Chinese, Thai, Lao, Burmese, Khmer: their words have no spaces between them.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Commas, quotes and the like. Operators and brackets stay: 2+3 is not 2-3.
_PUNCTUATION = re.compile("[.,;:!?\"'`´‘’“”„«»…–—¿¡。，、；：！？「」]+")


class Turn(NamedTuple):
    """A text of a row."""

    number: int  # of the turn, from 1; those of a rejected answer continue the prompt
    role: str  # of the turn; "text" of plain text, "reasoning" and "call" of what a turn has besides its content
    text: str


class CheckedRow(NamedTuple):
    """A row as checks see it."""

    number: int  # from 0
    turns: tuple[Turn, ...]
    answer: ScoredAnswer | None = None  # its own, where scorers rate it
    images: str = ""  # digest of those in its turns; empty where there is none

    @classmethod
    def from_row(cls, row: DatasetRow) -> Self:
        """Return the texts of all turns; of a comparison, those of the second answer after the first."""
        turns: list[Turn] = []
        sides = row.example.sides() if row.example is not None else ()
        for index, side in enumerate(sides):
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
        images = [image.digest for side in sides for turn in getattr(side, "messages", ()) for image in turn.images]
        digest = hashlib.sha256("".join(images).encode()).hexdigest()[:16] if images else ""
        return cls(row.record.row, tuple(turns), images=digest)

    def split_words(self, over: str) -> list[str]:
        """Return the words of prompts, answers or both, without case and punctuation; of scripts without spaces, characters.

        A question on one image is another one than the same on another: words of such rows have the images' digest.
        """
        text = "\n".join(turn.text for turn in self.turns if turn.role in _COMPARED[over])
        plain = _PUNCTUATION.sub(" ", text.casefold())
        word_list = (plain if plain.isascii() else _UNSPACED.sub(r" \g<0> ", plain)).split() or text.split()
        return [f"{word} {self.images}" for word in word_list] if self.images else word_list


@dataclass
class CheckContext:
    """What the checks of one pass share."""

    settings: CheckSettings
    options: SourceOptions
    shared: dict[type, Any] = field(default_factory=dict)  # what several checks have, by its class
    scorers: tuple[Scorer, ...] = ()  # of the dataset
    result: CheckResult = field(init=False)  # of the pass, for `finish`


class RowFinding(BaseModel, frozen=True):
    """What a check found in one row. Rows count from 0."""

    row: int
    kind: str
    why: str
    partners: tuple[int, ...] = ()  # the row that it repeats
    similarity: float | None = None  # with that row
    sample: str = ""  # how the row begins
    other: str = ""  # how its partner begins


class CheckOutcome(BaseModel, frozen=True):
    """What one check found; all of it is counted, the first MAX_LISTED findings are listed."""

    name: str
    finds: str = ""  # one sentence
    rows: int = 0
    kinds: dict[str, int] = {}
    findings: tuple[RowFinding, ...] = ()
    below: tuple[RowFinding, ...] = ()  # not found: what comes next below the threshold
    all_rows: tuple[int, ...] = ()
    clusters: tuple[tuple[int, ...], ...] = ()  # rows that belong together, the longest answer first
    masks: dict[int, dict[str, str]] = {}  # by row: what can replace its texts
    scores: dict[int, float] = {}  # by row, also of those that were not found


class RowCheckReport(BaseModel, frozen=True):
    """What all checks found in one pass over the rows that can be trained on."""

    source: str = ""
    rows: int = 0
    train_rows: int = 0
    held_out_rows: int = 0
    settings: CheckSettings = CheckSettings()
    scorers: tuple[AnyScorer, ...] = ()
    checks: tuple[CheckOutcome, ...] = ()
    seconds: float = 0.0

    def outcome(self, name: str) -> CheckOutcome:
        """Return what a check found: nothing where it did not run."""
        return next((check for check in self.checks if check.name == name), CheckOutcome(name=name))

    def lines(self, most: int) -> Iterator[str]:
        """Yield the report with this many findings of each check, as Markdown that quotes rows as code."""
        sides = f"{self.train_rows:,} to train on, {self.held_out_rows:,} held out"
        yield f"# Row checks\n\n{self.source}: {self.rows:,} rows checked in {duration(self.seconds)}; {sides}."
        for check in self.checks:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in check.kinds.items())
            yield f"\n## {check.name}: {kinds or 'nothing found'}"
            if check.findings:
                yield f"\n{check.finds} Rows: {check.rows:,}.\n"
            for finding in check.findings[:most]:
                yield f"    row {finding.row + 1:,}: {finding.why} {finding.sample}"
            if (more := sum(check.kinds.values()) - most) > 0:
                yield f"    … and {more:,} more"


class RowCheck(ABC):
    """Sees each row that is kept once, in order, with compact state; reports rows at once or at the end.

    The docstring of a check is the sentence that people read about it.
    """

    def __init__(self, context: CheckContext) -> None:
        self.context, self.settings = context, context.settings
        self.findings: list[RowFinding] = []  # the first MAX_LISTED
        self.below: list[RowFinding] = []
        self.clusters: list[list[int]] = []
        self.masks: dict[int, dict[str, str]] = {}
        self.scores: dict[int, float] = {}
        self.kinds: Counter[str] = Counter()  # of all findings
        self.rows = array("I")  # of all findings

    @abstractmethod
    def add(self, row: CheckedRow) -> None:
        """See a row."""

    def finish(self) -> None:  # noqa: B027 - most have nothing to add
        """Report what all rows show together."""

    def report(self, row: int, kind: str, why: str, **facts: Any) -> None:
        """Count a finding, and list it if there is room."""
        self.kinds[kind] += 1
        self.rows.append(row)
        if len(self.findings) < MAX_LISTED:
            self.findings.append(RowFinding(row=row, kind=kind, why=why, **facts))

    def outcome(self, name: str, samples: Mapping[int, str]) -> CheckOutcome:
        """Return what it found by row, each with the beginnings of its rows."""

        def sampled(finding: RowFinding) -> RowFinding:
            sample, other = (samples.get(row, "") for row in (*(finding.row, *finding.partners), -1)[:2])
            return finding.model_copy(update={"sample": sample, "other": other})

        findings, below = (tuple(map(sampled, part)) for part in (self.findings, self.below))
        rows = np.unique(self.rows).tolist()
        return CheckOutcome(
            name=name, finds=self.__doc__ or "", rows=len(rows), kinds=self.kinds, all_rows=rows,
            findings=tuple(sorted(findings, key=lambda finding: finding.row)), below=below,
            clusters=tuple(map(tuple, self.clusters)), masks=self.masks, scores=self.scores,
        )  # fmt: skip
