"""Scorers that look for text: equality, parts, a pattern, and a length."""

import re
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from loratory.engine.scoring.base import Example, NoScoreError, ReferenceScorer, ScoredAnswer, Scorer
from loratory.engine.section import setting

_PATTERN_SECONDS = 1.0
_WORD = re.compile(r"[^\W_]+")
_PARIS = {"answer": "Paris"}


class Equals(ReferenceScorer):
    """Equality with the reference."""

    label, sentence = "Equals", "1 where the answer is the reference, apart from white space."
    examples: ClassVar[tuple[Example, ...]] = (
        Example(" Paris\n", 1.0, _PARIS),
        Example("paris.", 1.0, _PARIS, {"ignore_case": True, "ignore_punctuation": True}),
        Example("<think>Rome?</think>Paris", 1.0, _PARIS),
        Example("Paris London Rome", 0.0, _PARIS),
        Example("", None, {"answer": ""}),
    )
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


class Contains(Scorer):
    """The reference as a part of the answer."""

    label, sentence = "Contains", "1 where the answer contains the reference."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("It is Paris.", 1.0, _PARIS),
        Example("Parisian", 0.0, _PARIS),
        Example("red", 0.5, {"answer": ["red", "blue"]}, {"need": "share"}),
        Example("red", 0.0, {"answer": ["red", "blue"]}, {"need": "all"}),
        Example("anything", None, {"answer": "  "}),
    )
    scorer: Literal["contains"]
    column: str = setting("answer", "Reference column", min_length=1, max_length=200)
    """The column that has the text, or a list of texts, to be found."""
    need: Literal["any", "all", "share"] = setting("any", "Of several")
    """Of several texts, whether one is enough, all are needed, or the share that is found counts."""
    ignore_case: bool = setting(True, "Ignore case")
    """Upper and lower case are the same."""
    whole_words: bool = setting(True, "Whole words")
    """Does not find a text inside a longer word. Turn it off for languages without spaces."""

    def rate(self, row: ScoredAnswer) -> float:
        """Return how much of the references is found."""
        patterns = [re.escape(text.strip()) for text in row.references(self.column)]
        patterns = [rf"(?<!\w){text}(?!\w)" for text in patterns] if self.whole_words else patterns
        flags = re.IGNORECASE if self.ignore_case else 0
        share = sum(re.search(text, row.answer, flags) is not None for text in patterns) / len(patterns)
        return share if self.need == "share" else float(share > 0 if self.need == "any" else share == 1)


class Pattern(Scorer):
    """A regular expression."""

    label, sentence = "Pattern", "1 where the answer matches a regular expression."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("<answer>4</answer>", 1.0, {}, {"pattern": r"<answer>\d+</answer>"}),
        Example("<answer>5</answer>", 0.0, {"answer": 4}, {"pattern": r"<answer>(.*?)</answer>", "column": "answer"}),
        Example("<a>1</a><a>4</a>", 1.0, {"answer": 4}, {"pattern": r"<a>(.*?)</a>", "column": "answer"}),
        Example("a" * 5000 + "!", None, {}, {"pattern": r"(?:a|aa|a?)+$(?<=b)|(a+a+)+b"}),
        Example("", 0.0, {}, {"pattern": r"\d"}),
    )
    scorer: Literal["regex"]
    pattern: str = setting(..., "Pattern", min_length=1, max_length=2000)
    """A regular expression of Python. `.` matches line ends as well."""
    whole_answer: bool = setting(False, "Whole answer")
    """The pattern must match all of the answer, apart from white space around it."""
    ignore_case: bool = setting(False, "Ignore case")
    """Upper and lower case are the same."""
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

        pattern, text = (
            regex.compile(self.pattern, regex.DOTALL | regex.IGNORECASE * self.ignore_case),
            row.answer.strip(),
        )
        try:
            if self.column and not self.whole_answer:
                match = next(reversed(list(pattern.finditer(text, timeout=_PATTERN_SECONDS))), None)
            else:
                match = (pattern.fullmatch if self.whole_answer else pattern.search)(text, timeout=_PATTERN_SECONDS)
        except TimeoutError:
            raise NoScoreError(f"The pattern took longer than {_PATTERN_SECONDS:g} s.") from None
        texts = [reference.split() for reference in row.references(self.column)] if self.column else []
        return float(match is not None and (not self.column or (match[1] or "").split() in texts))


class Length(Scorer):
    """The length of the answer."""

    label, sentence = "Length", "1 where the length is within a band, and less the farther it is outside."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("one two three", 1.0, {}, {"at_most": 3}),
        Example("one two three four", 0.5, {}, {"at_most": 3, "falloff": 2}),
        Example("one two three four", 0.0, {}, {"at_most": 3}),
        Example("", 0.0),
        Example("a" * 1_000_001, None),
    )
    scorer: Literal["length"]
    unit: Literal["words", "characters", "tokens"] = setting("words", "Unit")
    """What is counted. Tokens are what white space separates."""
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
        text = row.answer.strip()
        length = {"words": len(_WORD.findall(text)), "characters": len(text), "tokens": len(text.split())}[self.unit]
        miss = max(self.at_least - length, length - self.at_most, 0)
        return max(0.0, 1 - miss / self.falloff) if self.falloff else float(miss == 0)
