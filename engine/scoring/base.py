"""What every scorer shares: an answer and its row, a verdict, settings, and the reading of fences and JSON."""

import contextlib
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from loratory.engine.errors import brief_repr, shorten
from loratory.engine.section import Section, setting


class Program(Protocol):
    """A program in the sandbox."""

    def request(self, message: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply to a message, or raise NoScoreError where none comes in time."""


LONGEST_ANSWER = 1_000_000  # characters; a longer one is not scored
_FENCE = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


class NoScoreError(Exception):
    """An answer cannot be scored, for this reason."""


class ScoredAnswer(NamedTuple):
    """An answer, and the row whose prompt it answers."""

    prompt: str  # as people read it
    answer: str  # decoded, without special tokens
    columns: Mapping[str, Any] = {}  # the other columns of the row: reference, tags, tests

    def value(self, column: str) -> Any:
        """Return what a column has; a NoScoreError where that is missing or empty."""
        value = self.columns.get(column)
        if value is None or not str(value).strip():
            raise NoScoreError(f"The row has no {shorten(column)}.")
        return value

    def references(self, column: str) -> list[str]:
        """Return the references that a column has, as text; a NoScoreError where there are none."""
        value = self.value(column)
        values = value if isinstance(value, list | tuple) else [value]
        texts = [str(text) for text in values if text is not None and str(text).strip()]
        if not texts:
            raise NoScoreError(f"The row has no {shorten(column)}.")
        return texts


class Verdict(NamedTuple):
    """What a scorer finds."""

    score: float | None  # from 0 to 1; None where there is none
    reason: str = ""  # for people: why there is none, or what was missed


class Example(NamedTuple):
    """An answer with its score; all examples of a scorer are its tests."""

    answer: str
    score: float | None
    columns: Mapping[str, Any] = {}
    settings: Mapping[str, Any] = {}


class Scorer(Section):
    """A scorer with its settings."""

    label: ClassVar[str]
    sentence: ClassVar[str]
    examples: ClassVar[tuple[Example, ...]]

    scorer: str
    """Which scorer this is."""
    weight: float = setting(1.0, "Weight", ge=-1000.0, le=1000.0)
    """What the score is multiplied by in the total. A negative one makes it a penalty."""
    ignore_reasoning: bool = setting(True, "Ignore reasoning")
    """Scores only what follows `</think>`."""

    def score(self, row: ScoredAnswer, rate: Callable[[ScoredAnswer], Any] | None = None) -> Verdict:
        """Score an answer, by `rate` of the scorer or another; whatever goes wrong is a verdict without a score."""
        try:
            if len(row.answer) > LONGEST_ANSWER:
                raise NoScoreError(f"The answer has {len(row.answer):,} characters; {LONGEST_ANSWER:,} is the most.")
            answer = skip_reasoning(row.answer) if self.ignore_reasoning else row.answer
            return checked((rate or self.rate)(row._replace(answer=answer)))
        except NoScoreError as error:
            return Verdict(None, str(error))
        except Exception as error:
            return Verdict(None, f"The scorer failed: {type(error).__name__}: {shorten(str(error), 200)}.")

    def rate(self, row: ScoredAnswer) -> Any:  # noqa: ARG002
        """Return a score from 0 to 1, or a Verdict; raise NoScoreError where there is none."""
        raise NoScoreError("This scorer needs a ScoringSession.")


class ReferenceScorer(Scorer):
    """Compares with a column of the row; of several references, the best counts."""

    column: str = setting("answer", "Reference column", min_length=1, max_length=200)
    """The column that has the reference, or a list of several."""

    def rate(self, row: ScoredAnswer) -> Any:
        """Return the best score of all references."""
        return max(self.compare(row.answer, text) for text in row.references(self.column))

    @abstractmethod
    def compare(self, answer: str, reference: str) -> float:
        """Return a score from 0 to 1."""


class SandboxedScorer(Scorer):
    """Runs what people or models wrote."""

    programs: ClassVar[int] = 1  # each in a sandbox of its own
    keeps_programs: ClassVar[bool] = False  # for the next answer

    seconds: float = setting(5.0, "Seconds", ge=0.1, le=60.0)
    """Time limit of an answer. What takes longer is stopped and has no score."""
    memory_mib: int = setting(1024, "Memory (MiB)", ge=64, le=65_536)
    """Memory limit of each process."""

    def open(self, programs: Sequence[Program]) -> None:
        """Prepare programs that have just started."""

    @abstractmethod
    def run(self, row: ScoredAnswer, programs: Sequence[Program]) -> Any:
        """Return what `rate` does."""


def checked(value: Any) -> Verdict:
    """Return what a scorer gave as a verdict; one that is not a number from 0 to 1 is none."""
    score, reason = value if isinstance(value, Verdict) else (value, "")
    if isinstance(score, int | float) and 0 <= score <= 1:  # NaN is not
        return Verdict(float(score), reason)
    return Verdict(None, reason or f"The scorer gave {brief_repr(score)}, which is not a number from 0 to 1.")


def skip_reasoning(answer: str) -> str:
    """Return what follows `</think>`; nothing where reasoning begins and does not end."""
    _, end, rest = answer.rpartition("</think>")
    return rest.strip() if end else "" if answer.lstrip().startswith("<think>") else answer


def fences(answer: str, *languages: str) -> list[str]:
    """Return the contents of fences in these languages, or in none; one that is not closed ends with the answer."""
    return [match[2] for match in _FENCE.finditer(answer) if match[1].lower() in ("", *languages)]


def json_of(answer: str) -> Any:
    """Return the JSON that an answer is, or has in its last fence of JSON; a ValueError where there is none."""
    for text in (answer, *reversed(fences(answer, "json"))):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(text, parse_constant=int)  # NaN and infinities are not integers, nor JSON
    raise ValueError("It is not JSON.")
