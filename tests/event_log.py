"""Event logs of runs that no worker wrote."""

from pathlib import Path

from loratory.engine.runs.history.events import EventData
from loratory.engine.runs.history.log import EventWriter


def write_log(path: Path, *data: EventData, attempt: int = 1) -> None:
    """Append events of one attempt to a log."""
    with EventWriter(path, attempt) as log:
        for content in data:
            log.append(content)
