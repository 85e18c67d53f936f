"""One attempt at one run: which, whose, and the how manieth."""

from dataclasses import dataclass
from pathlib import Path

from engine.config.run import RunConfig
from engine.paths import LoratoryHome
from engine.runs.run import RunFolder


@dataclass(frozen=True)
class Attempt:
    """What an attempt is about."""

    folder: RunFolder
    home: LoratoryHome
    config: RunConfig
    number: int


def home_of(folder: Path) -> LoratoryHome:
    """The home that a run directory stands in: `<home>/runs/<owner>/<run>`."""
    return LoratoryHome(folder.resolve().parents[2])
