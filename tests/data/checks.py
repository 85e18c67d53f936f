"""Dataset files of tests, and a dataset's whole check in one call."""

import json

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.check import check_steps, finish
from loratory.engine.data.source import SourceOptions


def write_rows(path, rows):
    """Write rows as lines of JSON; a text is a line as it is."""
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check_dataset(config, options=SourceOptions(), *, seed=42, renderer=None):  # noqa: B008 - frozen
    """Return the report of one pass over every row."""
    return finish(check_steps(config, options, seed=seed, renderer=renderer))


def check_file(path, renderer=None, **settings):
    """Return the report of a file."""
    return check_dataset(DatasetConfig(source=str(path), **settings), renderer=renderer)


def yield_at_every_row(monkeypatch):
    """Let passes end their turn, and report their progress, after every row."""
    monkeypatch.setattr("loratory.engine.data.passes.reader._TURN_SECONDS", 0.0)
    monkeypatch.setattr("loratory.engine.data.passes.reader._REPORT_SECONDS", 0.0)
