"""Scorers of a short result that an answer ends with: a number, or one of several choices."""

import re
from typing import Any, ClassVar, Literal

from loratory.engine.errors import shorten
from loratory.engine.scoring.base import Example, NoScoreError, ReferenceScorer, ScoredAnswer, Scorer, Verdict
from loratory.engine.section import setting

_SIGN = r"(?:(?<![\w.)])[-+−])?"
_NUMBER = {  # by decimal mark; thousands may be separated by the other one, an apostrophe, an underscore or a narrow space
    mark: re.compile(
        rf"(?P<before>[$€£¥₹]|\b[A-Z]{{3}}[ \u00a0]?)?"
        rf"(?P<number>{_SIGN}(?:(?:\d{{1,3}}(?:[{other}'’_\u202f]\d{{3}})+(?!\d)|\d+)(?:[{mark}]\d+)?|[{mark}]\d+)(?:[eE][-+]?\d+)?)"
        r"(?:[*_\\]*[ \u00a0\u202f]?(?P<after>[%€£¥$°]\w?|[^\W\d_]+(?:[/^]\w+)*))?"
    )
    for mark, other in ((".", ","), (",", "."))
}
_SEPARATORS = str.maketrans("−,", "-.", "'’_\u202f")
_LETTERS = "ABCDEFGHIJ"
_BARE = re.compile(r"(?:(?<=\()|(?<=\*\*)|(?<![\w'’*(]))([A-J])(?=\)|\*\*|[.:,;]?\s*$|[.:,;]\s)", re.MULTILINE)
_STATED = re.compile(
    r"(?:\\boxed\s*\{|\b(?i:answer|choice|option)\b(?i:\s*(?:is|would be|must be))?)[\s:=*(\[{\\a-z_]{0,30}?\b([A-J])\b(?!['’])"
)


class Number(ReferenceScorer):
    """A number."""

    label, sentence = "Number", "1 where the last number of the answer is that of the reference."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("So 70 + 2 = **72**.", 1.0, {"answer": "She has 72.\n#### 72"}),
        Example("1,234.50 dollars", 1.0, {"answer": 1234.5}),
        Example("10-5", 1.0, {"answer": 5}),
        Example("105", 1.0, {"answer": 100}, {"relative_tolerance": 0.05}),
        Example("12 km", 1.0, {"answer": 12}, {"unit": "km"}),
        Example("1e999", 0.0, {"answer": 5}),
        Example("1, 2, 3, 4, 5, 6", 0.0, {"answer": 5}, {"which": "only"}),
        Example("5", None, {"answer": "five"}),
    )
    scorer: Literal["number"]
    which: Literal["last", "first", "only"] = setting("last", "Which number")
    """Which number of the answer counts. only refuses an answer with several different ones."""
    tolerance: float = setting(1e-6, "Tolerance", ge=0.0)
    """How far the number may be off."""
    relative_tolerance: float = setting(0.0, "Relative tolerance", ge=0.0, le=1.0)
    """How far it may be off as a share of the reference, where that is more."""
    decimal_mark: Literal[".", ","] = setting(".", "Decimal mark")
    """The mark before decimals; the other one separates thousands."""
    unit: str = setting("", "Unit", max_length=40)
    """The number must have this unit before or after it. Empty takes any."""

    def rate(self, row: ScoredAnswer) -> Any:
        """Return 1 where the number is near enough to a reference."""
        numbers = self._numbers(row.answer, self.decimal_mark, self.unit)
        if not numbers or (self.which == "only" and len(set(numbers)) > 1):
            what = f"The answer has {len(set(numbers)) or 'no'} number{'s' if numbers else ''}"
            return Verdict(0.0, what + (f" in {self.unit}." if self.unit else "."))
        return super().rate(row._replace(answer=str(numbers[0 if self.which == "first" else -1])))

    def compare(self, answer: str, reference: str) -> float:
        """Compare a number with the last one of a reference."""
        numbers = self._numbers(reference, ".")
        if not numbers:
            raise NoScoreError(f"The reference has no number: {shorten(reference)}.")
        number, expected = float(answer), numbers[-1]
        far = max(self.tolerance, self.relative_tolerance * abs(expected))
        return float(number == expected or abs(number - expected) <= far * (1 + 1e-9))

    @staticmethod
    def _numbers(text: str, mark: str, unit: str = "") -> list[float]:
        """Return the numbers of a text that have a unit before or after them; all where it is empty."""
        numbers = []
        for match in _NUMBER[mark].finditer(text):
            digits = match["number"].replace("." if mark == "," else ",", "").translate(_SEPARATORS)
            if unit in ("", (match["before"] or "").strip(), match["after"]):
                numbers.append(float(digits))
        return numbers


class Choice(Scorer):
    """Multiple choice."""

    label, sentence = "Choice", "1 where the answer settles on the right one of several choices."
    examples: ClassVar[tuple[Example, ...]] = (
        Example("The answer is (B).", 1.0, {"answer": "B"}),
        Example("Answer: A. No, wait. Answer: B", 1.0, {"answer": "B"}),
        Example("A) red\nB) blue\n\n**Answer: B**", 1.0, {"answer": "B"}),
        Example("red or blue", 0.0, {"answer": "B", "choices": ["red", "blue"]}),
        Example("A, B, C, D", 0.0, {"answer": "D"}),
        Example("B", None, {"answer": "purple", "choices": ["red", "blue"]}),
    )
    scorer: Literal["choice"]
    column: str = setting("answer", "Reference column", min_length=1, max_length=200)
    """The column that has the right choice: its letter, its text, or its number from 0."""
    choices_column: str = setting("choices", "Choices column", min_length=1, max_length=200)
    """The column that lists the texts of the choices, where the row has it."""

    def rate(self, row: ScoredAnswer) -> Verdict:
        """Return 1 where the answer names the right choice and no other last."""
        choices = row.columns.get(self.choices_column) or ()
        texts = [str(text) for text in (choices.get("text", ()) if isinstance(choices, dict) else choices)]
        right = self._letter(row.value(self.column), texts)
        letters = _LETTERS[: len(texts) or max(5, _LETTERS.find(right) + 1)]  # few, as I is a word as well
        if not right or right not in letters:
            raise NoScoreError(f"The reference is not one of the choices: {shorten(str(row.columns[self.column]))}.")
        statements = [letter for letter in _STATED.findall(row.answer) if letter in letters]
        picks = statements or [letter for letter in _BARE.findall(row.answer) if letter in letters]
        picks = picks or self._letters_by_text(row.answer, texts)
        if not picks:
            return Verdict(0.0, "The answer names no choice.")
        if len(set(picks)) > 1 and (not statements or len(set(picks)) >= len(texts or "ABCD")):
            return Verdict(0.0, f"The answer names {len(set(picks))} choices.")
        return Verdict(float(picks[-1] == right), "" if picks[-1] == right else f"{picks[-1]} instead of {right}.")

    @staticmethod
    def _letter(value: Any, texts: list[str]) -> str:
        text = str(value).strip()
        if text in texts:
            return _LETTERS[texts.index(text)] if texts.index(text) < len(_LETTERS) else ""
        if text.isdecimal() and int(text) < len(_LETTERS):
            return _LETTERS[int(text)]
        return text.strip("(). ").upper()

    @staticmethod
    def _letters_by_text(answer: str, texts: list[str]) -> list[str]:
        """Return the letters of the texts that an answer has; a text inside a longer one that is there does not count."""
        rest, letters = answer.casefold(), []
        for index in sorted(range(min(len(texts), len(_LETTERS))), key=lambda index: -len(texts[index])):
            pattern = rf"(?<!\w){re.escape(texts[index].strip().casefold())}(?!\w)"
            if texts[index].strip() and re.search(pattern, rest):
                rest = re.sub(pattern, "\0", rest)
                letters.append(_LETTERS[index])
        return letters
