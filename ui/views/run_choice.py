"""Runs as choices of a dropdown."""

from collections.abc import Iterable

from engine.runs.summary import RunSummary
from ui.views.run_view import STATE_MARKS, STATE_WORDS


def run_choices(rows: Iterable[RunSummary]) -> list[tuple[str, str]]:
    """Label and id of each run: its name, method and state, newest first."""
    return [(_label(row), row.id) for row in rows]


def _label(row: RunSummary) -> str:
    parts = [row.name, row.method if row.method and row.method not in row.name else ""]
    named = " · ".join(part for part in parts if part)
    return f"{STATE_MARKS[row.state]} {named} · {STATE_WORDS[row.state]} · {row.id[-4:]}"
