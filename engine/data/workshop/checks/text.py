"""How texts are written: another language than most of the set, a wrong encoding, refusals, and thinking in some rows only."""

import re
from array import array
from functools import cache

import ftfy
import numpy as np
from ftfy.badness import is_bad
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from loratory.engine.data.records import one_line
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck
from loratory.engine.data.workshop.checks.settings import OWN_PHRASES

READ_CHARACTERS = 120  # of a turn are enough
BATCH_CHARACTERS = 30_000  # in which languages are identified
MAX_TURNS = 50  # of a row
MIN_LETTERS = 0.7  # of the characters that are not white space: code, tables and numbers get no language
MAX_LINES, MAX_LINE_CHARACTERS = 100, 1000  # of a turn, and of each line, that are repaired to see what changes
_NOT_PROSE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,100}>", re.DOTALL)
BEGINNING_CHARACTERS = 160  # of an answer: what comes later is a topic, not a refusal
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_BLOCK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)


class Language(RowCheck):
    """Turns in another language than most turns of the set."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._turns: dict[str, array[int]] = {}  # by language: row, turn, row, turn …
        self._waiting: list[tuple[int, int, str]] = []  # row, turn and text, until there are enough to identify

    def add(self, row: CheckedRow) -> None:
        most = max(READ_CHARACTERS, least := self.settings.language_characters)
        for turn in [turn for turn in row.turns if turn.role not in ("call", "tool")][:MAX_TURNS]:
            text = " ".join(_NOT_PROSE.sub(" ", turn.text[: 4 * most]).split())[:most]
            is_long = len(text.encode("utf-8", "replace")) >= least
            if is_long and sum(map(str.isalpha, text)) >= MIN_LETTERS * (len(text) - text.count(" ")):
                self._waiting.append((row.number, turn.number, text))
        if len(self._waiting) * most > BATCH_CHARACTERS:
            self._identify()

    def _identify(self) -> None:
        languages = identify([text for *_, text in self._waiting]) if self._waiting else []
        for (row, turn, _), (language, probability) in zip(self._waiting, languages, strict=True):
            if probability >= self.settings.language_probability:
                self._turns.setdefault(language, array("I")).extend((row, turn))
        self._waiting.clear()

    def finish(self) -> None:
        self._identify()
        most = max(self._turns, key=lambda language: len(self._turns[language]), default="")
        total = sum(map(len, self._turns.values())) // 2
        for code, turns in self._turns.items():
            for row, turn in zip(turns[::2], turns[1::2], strict=True) if code != most else ():
                why = f"Turn {turn} is in {code!r}; {len(self._turns[most]) // 2:,} of {total:,} turns are in {most!r}."
                self.report(row, code, why)


def identify(texts: list[str]) -> list[tuple[str, float]]:
    """Return the language of each text and its probability; reads a byte of all texts at a time, as `classify` of one."""
    model = load_languages()
    encoded: list[bytes] = [*map(model._encode, texts)]
    lengths, size = np.array([*map(len, encoded)]), len(model.nb_ptc)
    letters = np.array(encoded).view(np.uint8).reshape(len(texts), -1)
    states = np.zeros((letters.shape[1] + 1, len(texts)), np.int64)
    for step, column in enumerate(letters.T):
        states[step + 1] = np.asarray(model.tk_nextmove)[model._rowbase[states[step]] + column]
    features = model.tk_output[states[1:]].T
    text, at = np.nonzero((features >= 0) & (np.arange(letters.shape[1]) < lengths[:, None]))
    keys, first, times = np.unique(text * size + features[text, at], return_index=True, return_counts=True)
    order = np.argsort(first)  # `classify` adds them in this order; another one changes the last bits
    keys, weights = keys[order], np.log1p(times[order].astype(np.float32))
    parts = np.split(np.arange(len(keys)), np.searchsorted(keys, np.arange(1, len(texts)) * size))  # of each text
    sums = [weights[part] @ model.nb_ptc[keys[part] % size] + (model.nb_pc if len(part) else 0) for part in parts]
    scores = np.array(sums) * (1 / np.sqrt(np.maximum(lengths, 1))).astype(np.float32)[:, None]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for label, alias in model._alias_pairs:
        scores[:, label] += scores[:, alias]
    return [(model.nb_classes[best], float(row[best])) for row, best in zip(scores, scores.argmax(1), strict=True)]


@cache
def load_languages() -> LanguageIdentifier:
    """Load the model that comes with py3langid, once."""
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model.nb_ptc = model.nb_ptc.astype(np.float32)  # its 16 bits would be converted for each text
    model._rowbase, model.tk_output = map(np.asarray, (model._rowbase, model.tk_output))
    return model


class Mojibake(RowCheck):
    """Text in the wrong encoding, such as Ã© for é, and characters that were lost."""

    def add(self, row: CheckedRow) -> None:
        for number, _, text in row.turns:
            if "\ufffd" in text:
                self.report(row.number, "lost", f"Turn {number} has U+FFFD, the mark of a character that was lost.")
            lines = [] if text.isascii() else [line for line in text.splitlines() if not line.isascii()]
            for line in (line[:MAX_LINE_CHARACTERS] for line in lines[:MAX_LINES]):
                odd = "\n".join(line[max(0, at.start() - 4) : at.end() + 4] for at in _NOT_ASCII.finditer(line))
                if is_bad(odd) and (repair := ftfy.fix_encoding(line)) != line:
                    before, after = (one_line(text, 40) for text in (line, repair))
                    self.report(row.number, "encoding", f"Turn {number} has {before!r}; it should be {after!r}.")
                    break


class Refusals(RowCheck):
    """Answers that begin with a refusal or an assistant's boilerplate."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        lines = [line for line in (self.settings.refusals or OWN_PHRASES).splitlines() if line[:1] not in ("#", "")]
        ends = [_plain(line).rpartition(": ") for line in lines]
        self._phrases = [(kind or "refusal", phrase) for kind, _, end in ends for phrase in end.split(" | ") if phrase]

    def add(self, row: CheckedRow) -> None:
        for turn in row.turns:
            beginning = _plain(turn.text.lstrip()[:BEGINNING_CHARACTERS]) if turn.role == "assistant" else ""
            for kind, phrase in self._phrases:
                if phrase in beginning:
                    self.report(row.number, kind, f"The answer in turn {turn.number} has {phrase!r}.")
                    break


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


class Thinking(RowCheck):
    """Empty <think> blocks, and rows without thinking in a set where most have it, or the reverse."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._answering = array("I"), array("I")  # rows without and with thinking

    def add(self, row: CheckedRow) -> None:
        thinks, answers = False, [turn for turn in row.turns if turn.role in ("assistant", "reasoning")]
        for number, role, text in answers:
            blocks = [text] if role == "reasoning" else _BLOCK.findall(text) if "<think>" in text else []
            thinks |= any(map(str.strip, blocks))
            if not all(map(str.strip, blocks)):
                self.report(row.number, "empty", f"Turn {number} has an empty <think> block.")
        if answers:
            self._answering[thinks].append(row.number)

    def finish(self) -> None:
        without, thinking = self._answering
        if without and thinking:
            has, rows = ("no thinking", without) if len(thinking) > len(without) else ("thinking", thinking)
            why = f"The row has {has}; {len(thinking):,} of {len(thinking) + len(without):,} rows have thinking."
            for row in rows:
                self.report(row, "mixed", why)
