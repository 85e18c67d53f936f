"""Answers that a model should not learn: refusals, boilerplate, and thinking in some rows only."""

import re
from array import array
from pathlib import Path

from loratory.engine.data.files import open_file
from loratory.engine.data.workshop.checks.base import CheckContext, CheckedRow, RowCheck
from loratory.engine.errors import DatasetError

BEGINNING_CHARACTERS = 160  # of an answer: what comes later is a topic, not a refusal
_BLOCK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)


class Refusals(RowCheck):
    """Answers that begin with a refusal or an assistant's boilerplate."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        name = self.settings.refusals
        path = context.options.access.resolve(name) if name else Path(__file__).with_name("refusals.txt")
        texts = [str(record.value.get("text", "")) for record in open_file(path).records() if record and record.value]
        lines = [_plain(line) for text in texts for line in text.splitlines()]
        self._phrases = [line.rpartition(": ") for line in lines if line and not line.startswith("#")]
        if not self._phrases:
            raise DatasetError(f"{name} has no phrases.", "Choose a text file with one phrase a line.")

    def add(self, row: CheckedRow) -> None:
        for turn in row.turns:
            beginning = _plain(turn.text.lstrip()[:BEGINNING_CHARACTERS]) if turn.role == "assistant" else ""
            for kind, _, phrase in self._phrases:
                if phrase in beginning:
                    self.report(row.number, kind or "refusal", f"The answer in turn {turn.number} has {phrase!r}.")
                    break


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("’", "'").split())


class Thinking(RowCheck):
    """Empty <think> blocks, and rows without thinking in a set where most have it, or the reverse."""

    def __init__(self, context: CheckContext) -> None:
        super().__init__(context)
        self._rows = array("I"), array("I")  # without and with thinking
        self._findings: list[tuple[int, str, str]] = []

    def add(self, row: CheckedRow) -> None:
        thinks, answers = False, [turn for turn in row.turns if turn.role in ("assistant", "reasoning")]
        for number, role, text in answers:
            blocks = [text] if role == "reasoning" else _BLOCK.findall(text) if "<think>" in text else []
            thinks |= any(map(str.strip, blocks))
            if not all(map(str.strip, blocks)):
                self._findings.append((row.number, "empty", f"Turn {number} has an empty <think> block."))
        if answers:
            self._rows[thinks].append(row.number)

    def finish(self) -> None:
        without, thinking = self._rows
        if without and thinking:
            has, rows = ("no thinking", without) if len(thinking) > len(without) else ("thinking", thinking)
            why = f"The row has {has}; {len(thinking):,} of {len(thinking) + len(without):,} rows have thinking."
            self._findings += [(row, "mixed", why) for row in rows]
        for finding in sorted(self._findings):
            self.report(*finding)
