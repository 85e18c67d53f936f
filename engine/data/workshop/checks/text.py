"""How texts are written: in another language than most of the set, or in the wrong encoding."""

import re
from array import array
from functools import cache

import ftfy
from ftfy.badness import is_bad
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck

READ_CHARACTERS = 160  # of a turn are enough
MAX_TURNS = 50  # of a row
MIN_LETTERS = 0.7  # of the characters that are not white space: code, tables and numbers get no language
MAX_LINES, MAX_LINE_CHARACTERS = 100, 1000  # of a turn, and of each line, that are repaired to see what changes
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,100}>", re.DOTALL)


class Language(RowCheck):
    """Turns in another language than most turns of the set."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._turns: dict[str, array[int]] = {}  # by language: row, turn, row, turn …

    def add(self, row: CheckedRow) -> None:
        least = self.settings.language_characters
        for turn in [turn for turn in row.turns if turn.role not in ("call", "tool")][:MAX_TURNS]:
            text = " ".join(_NOT_PROSE.sub(" ", turn.text[: 4 * max(READ_CHARACTERS, least)]).split())
            text = text[: max(READ_CHARACTERS, least)]
            is_long = len(text.encode("utf-8", "replace")) >= least
            if is_long and sum(map(str.isalpha, text)) >= MIN_LETTERS * (len(text) - text.count(" ")):
                language, probability = _identifier().classify(text)
                if probability >= self.settings.language_probability:
                    self._turns.setdefault(language, array("I")).extend((row.number, turn.number))

    def finish(self) -> None:
        most = max(self._turns, key=lambda language: len(self._turns[language]), default="")
        total = sum(map(len, self._turns.values())) // 2
        others = [(turns, language) for language, turns in self._turns.items() if language != most]
        rows = ((row, turn, code) for turns, code in others for row, turn in zip(turns[::2], turns[1::2], strict=True))
        for row, turn, code in sorted(rows):
            why = f"Turn {turn} is in {code!r}; {len(self._turns[most]) // 2:,} of {total:,} turns are in {most!r}."
            self.report(row, code, why)


@cache
def _identifier() -> LanguageIdentifier:
    """Load the model that comes with py3langid once."""
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class Mojibake(RowCheck):
    """Text in the wrong encoding, such as Ã© for é, and characters that were lost."""

    def add(self, row: CheckedRow) -> None:
        for number, _, text in row.turns:
            if "\ufffd" in text:
                self.report(row.number, "lost", f"Turn {number} has U+FFFD, the mark of a character that was lost.")
            lines = [] if text.isascii() else [line for line in text.splitlines() if not line.isascii()]
            for line in (line[:MAX_LINE_CHARACTERS] for line in lines[:MAX_LINES]):
                if is_bad(line) and (repair := ftfy.fix_encoding(line)) != line:
                    before, after = (one_line(text, 40) for text in (line, repair))
                    self.report(row.number, "encoding", f"Turn {number} has {before!r}; it should be {after!r}.")
                    break
