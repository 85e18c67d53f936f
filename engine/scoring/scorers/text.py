"""Scorers of text: equality, parts, a pattern, a length, a number, one of several choices, and similar wording."""

import functools
import itertools
import math
import re
import statistics
from collections import deque
from types import SimpleNamespace
from typing import Any, Literal, Self

from pydantic import model_validator

from loratory.engine.errors import shorten
from loratory.engine.scoring.base import Example, NoScoreError, ReferenceScorer, ScoredAnswer, Scorer, Verdict
from loratory.engine.section import setting

_PATTERN_SECONDS = 1.0
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"  # 1,234.5
)
_LETTERS = "ABCDEFGHIJ"
_BARE = re.compile(r"(?:(?<=\()|(?<=\*\*)|(?<![\w'’*(]))([A-J])(?=\)|\*\*|[.:,;]?\s*$|[.:,;]\s)", re.MULTILINE)
_STATED = re.compile(
    r"(?:\\boxed\s*\{|\b(?i:answer|choice|option)\b(?i:\s*(?:is|would be|must be))?)[\s:=*(\[{\\a-z_]{0,30}?\b([A-J])\b(?!['’])"
)
_MOST_PAIRS = 25_000_000  # of words that ROUGE-L compares, some seconds
_PARIS, _B, _CAT = {"answer": "Paris"}, {"answer": "B"}, {"answer": "the cat sat"}


class Equals(ReferenceScorer):
    """Equality with the reference."""

    label, sentence = "Equals", "1 where the answer is the reference, apart from white space."
    examples = (Example(" Paris\n", 1.0, _PARIS), Example("Paris London Rome", 0.0, _PARIS))
    scorer: Literal["equals"]
    ignore_case: bool = setting(False, "Ignore case")
    """Upper and lower case are the same."""
    ignore_punctuation: bool = setting(False, "Ignore punctuation")
    """Compares words and digits alone."""

    def compare(self, answer: str, reference: str) -> float:
        """Return 1 for equal text."""
        expected = self._normalize(reference)
        return float(bool(expected) and self._normalize(answer) == expected)

    def _normalize(self, text: str) -> list[str]:
        text = text.casefold() if self.ignore_case else text
        return _WORD.findall(text) if self.ignore_punctuation else text.split()


class Contains(ReferenceScorer):
    """The reference as a part of the answer."""

    label, sentence = "Contains", "1 where the answer contains the reference, in upper or lower case."
    examples = (Example("It is Paris.", 1.0, _PARIS), Example("Parisian", 0.0, _PARIS))
    scorer: Literal["contains"]
    need: Literal["any", "all", "share"] = setting("any", "Of several")
    """Of several texts, whether one is enough, all are needed, or the share that is found counts."""
    whole_words: bool = setting(True, "Whole words")
    """Does not find a text inside a longer word. Turn it off for languages without spaces."""

    def rate(self, row: ScoredAnswer) -> float:
        """Return how much of the references is found."""
        scores = [self.compare(row.answer, text.strip()) for text in row.references(self.column)]
        return {"any": max(scores), "all": min(scores), "share": statistics.mean(scores)}[self.need]

    def compare(self, answer: str, reference: str) -> float:
        """Return 1 for a reference that is found."""
        pattern = rf"(?<!\w){re.escape(reference)}(?!\w)" if self.whole_words else re.escape(reference)
        return float(re.search(pattern, answer, re.IGNORECASE) is not None)


class Pattern(Scorer):
    """A regular expression."""

    label, sentence = "Pattern", "1 where the answer matches a regular expression."
    examples = (
        Example("<a>1</a><a>4</a>", 1.0, {"answer": 4}, {"pattern": "<a>(.*?)</a>", "column": "answer"}),
        Example("four", 0.0, {}, {"pattern": r"\d"}),
    )
    scorer: Literal["regex"]
    pattern: str = setting(..., "Pattern", min_length=1, max_length=2000)
    """A regular expression of Python. `.` matches line ends as well; `(?i)` ignores case."""
    column: str = setting("", "Reference column", max_length=200)
    """The first group of the last match must equal this column. Empty compares nothing."""

    @model_validator(mode="after")
    def _compiles(self) -> Self:
        import regex

        try:
            groups = regex.compile(self.pattern).groups
        except regex.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from None
        if self.column and not groups:
            raise ValueError("a pattern that is compared with a column needs a group in round brackets")
        return self

    def rate(self, row: ScoredAnswer) -> float:
        """Return 1 for a match, within a second."""
        import regex

        pattern = regex.compile(self.pattern, regex.DOTALL)
        try:
            matches = pattern.finditer(row.answer.strip(), timeout=_PATTERN_SECONDS)
            last = deque(matches if self.column else itertools.islice(matches, 1), maxlen=1)
        except TimeoutError:
            raise NoScoreError(f"The pattern took longer than {_PATTERN_SECONDS:g} s.") from None
        texts = [text.split() for text in row.references(self.column)] if self.column else []
        return float(any(not self.column or (match[1] or "").split() in texts for match in last))


class Length(Scorer):
    """The length of the answer."""

    label, sentence = "Length", "1 where the length is within a band, and less the farther it is outside."
    examples = (Example("one two three", 1.0), Example("one two", 0.5, {}, {"at_most": 1, "falloff": 2}))
    scorer: Literal["length"]
    unit: Literal["words", "characters"] = setting("words", "Unit")
    """What is counted."""
    at_least: int = setting(1, "At least", ge=0, le=1_000_000)
    """The shortest length that scores 1."""
    at_most: int = setting(200, "At most", ge=0, le=1_000_000)
    """The longest length that scores 1."""
    falloff: int = setting(0, "Fall-off", ge=0, le=1_000_000)
    """How far outside the band the score reaches 0. 0 falls at once."""

    @model_validator(mode="after")
    def _is_band(self) -> Self:
        if self.at_least > self.at_most:
            raise ValueError(f"at_least {self.at_least:,} is more than at_most {self.at_most:,}")
        return self

    def rate(self, row: ScoredAnswer) -> float:
        """Return 1 within the band, and a linear fall-off outside."""
        length = len(_WORD.findall(row.answer) if self.unit == "words" else row.answer.strip())
        miss = max(self.at_least - length, length - self.at_most, 0)
        return max(0.0, 1 - miss / self.falloff) if self.falloff else float(miss == 0)


class Number(ReferenceScorer):
    """A number."""

    label, sentence = "Number", "1 where the last number of the answer is the last one of the reference."
    examples = (
        Example("So 70 + 2 = **1,072**.", 1.0, {"answer": "She has 1072.\n#### 1072"}),
        Example("105", 1.0, {"answer": 100}, {"tolerance": 0.05}),
    )
    scorer: Literal["number"]
    tolerance: float = setting(1e-6, "Tolerance", ge=0.0, lt=1.0)
    """How far the number may be off, or by what share of the larger number, whichever allows more."""

    def compare(self, answer: str, reference: str) -> float:
        """Compare the last numbers."""
        number, expected = _last_number(answer), _last_number(reference)
        if expected is None:
            raise NoScoreError(f"The reference has no number: {shorten(reference)}.")
        is_close = functools.partial(math.isclose, expected, rel_tol=self.tolerance, abs_tol=self.tolerance)
        return float(number is not None and is_close(number))


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "").replace("−", "-")) if numbers else None


class Choice(Scorer):
    """Multiple choice."""

    label, sentence = "Choice", "1 where the answer settles on the letter of the right choice."
    examples = (Example("A) red\nB) blue\n\n**Answer: B**", 1.0, _B), Example("A, B, C, D", 0.0, _B))
    scorer: Literal["choice"]
    column: str = setting("answer", "Reference column", min_length=1, max_length=200)
    """The column that has the right choice: its letter, its text, or its number from 0."""
    choices_column: str = setting("choices", "Choices column", min_length=1, max_length=200)
    """The column that lists the texts of the choices, where the row has it."""

    def rate(self, row: ScoredAnswer) -> Verdict:
        """Return 1 where the answer names the right choice and no other last."""
        choices = row.columns.get(self.choices_column) or ()
        texts = [str(text) for text in (choices.get("text", ()) if isinstance(choices, dict) else choices)]
        right = _letter_of(row.value(self.column), texts)
        letters = _LETTERS[: len(texts) or max(5, _LETTERS.find(right) + 1)]  # few, as I is a word as well
        if not right or right not in letters:
            raise NoScoreError(f"The reference is not one of the choices: {shorten(str(row.columns[self.column]))}.")
        statements = [letter for letter in _STATED.findall(row.answer) if letter in letters]
        picks = statements or [letter for letter in _BARE.findall(row.answer) if letter in letters]
        if len(set(picks)) > 1 and (not statements or len(set(picks)) >= len(texts or "ABCD")):
            return Verdict(0.0, f"The answer names {len(set(picks))} choices.")
        pick = picks[-1] if picks else "no choice"
        return Verdict(float(pick == right), "" if pick == right else f"{pick} instead of {right}.")


def _letter_of(value: Any, texts: list[str]) -> str:
    text = str(value).strip()
    index = texts.index(text) if text in texts else int(text) if text.isdecimal() else None
    return text.strip("(). ").upper() if index is None else _LETTERS[index : index + 1]


def rouge_l(answer: str, reference: str) -> float:
    """Return F1 of the longest common subsequence of words, in lower case and of any script.

    Source: rouge-score (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3).
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = SimpleNamespace(tokenize=lambda text: _WORD.findall(text.lower()))  # its own knows a to z and digits
    scores = RougeScorer(["rougeL"], tokenizer=tokenizer).score(target=reference, prediction=answer)
    return float(scores["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """Return F2 of character n-grams up to six, from 0 to 1.

    Source: sacrebleu's chrF2 (Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation").
    """
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [reference]).score) / 100  # sacrebleu counts to 100


class RougeL(ReferenceScorer):
    """Common words in the same order."""

    label, sentence = "ROUGE-L", "How much of the wording is that of the reference, by common words in the same order."
    examples = (Example("the dog sat", 2 / 3, _CAT), Example("sat cat the", 1 / 3, _CAT), Example("", 0.0, _CAT))
    scorer: Literal["rouge_l"]

    def compare(self, answer: str, reference: str) -> float:
        """Return ROUGE-L; a NoScoreError where that would take long."""
        pairs = len(_WORD.findall(answer)) * len(_WORD.findall(reference))
        if pairs > _MOST_PAIRS:
            raise NoScoreError(f"Answer and reference have {pairs:,} pairs of words; {_MOST_PAIRS:,} is the most.")
        return rouge_l(answer, reference)


class ChrF(ReferenceScorer):
    """Common groups of characters."""

    label, sentence = "chrF", "How much of the wording is that of the reference, by groups of up to six characters."
    examples = (Example("the cat sat", 1.0, _CAT), Example("xyz", 0.0, _CAT), Example("", 0.0, _CAT))
    scorer: Literal["chrf"]

    def compare(self, answer: str, reference: str) -> float:
        """Return chrF, as sacrebleu does."""
        return chrf(answer, reference)
