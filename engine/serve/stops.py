"""Texts that end an answer: found across the borders of tokens, and never shown, not even the beginning of one."""

from collections.abc import Sequence
from typing import NamedTuple


class Scanned(NamedTuple):
    """What may be shown now."""

    text: str
    stopped: bool  # one of the texts was found; nothing comes after it


class StopScanner:
    """Passes text on as it arrives, holding back what may be the beginning of a stop text.

    Args:
        stops: The texts; none passes everything on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> Scanned:
        """Take what was written; gives what is certain to belong to the answer."""
        held = self._held + text
        found = [position for stop in self._stops if (position := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return Scanned(held[: min(found)], stopped=True)
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return Scanned(held[: len(held) - keep], stopped=False)

    def finish(self) -> str:
        """What was held back, once nothing follows any more."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of a text are the first ones of a stop text."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
