"""Runs and their steps as CSV, for spreadsheets and notebooks."""

import csv
import io
import math
from collections.abc import Sequence
from typing import get_args

from engine.runs.history import RunHistory
from engine.runs.steps import StepColumn
from engine.runs.summary import RunSummary

_WHOLE_NUMBERS = ("step", "tokens", "trained_tokens", "memory_bytes")


def summaries_csv(summaries: Sequence[RunSummary]) -> str:
    """One line for each run, with every column."""
    columns = list(RunSummary.model_fields)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for summary in summaries:
        values = summary.model_dump(mode="python")
        writer.writerow([_cell(values[column]) for column in columns])
    return out.getvalue()


def steps_csv(history: RunHistory) -> str:
    """One line for each logged step; the held-out loss stands at the steps where it was measured."""
    columns: tuple[StepColumn, ...] = get_args(StepColumn)
    held_out = {point.step: point.eval_loss for point in history.evals if not point.adapter_disabled}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*columns, "eval_loss"])
    arrays = [history.steps.column(column) for column in columns]
    for row in zip(*arrays, strict=True):
        cells = [
            int(value) if column in _WHOLE_NUMBERS and math.isfinite(value) else _cell(float(value))
            for column, value in zip(columns, row, strict=True)
        ]
        writer.writerow([*cells, _cell(held_out.get(int(row[0])))])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, tuple):
        return " ".join(_cell_text(item) for item in value)
    return _cell_text(value) if isinstance(value, str) else value


def _cell_text(value: object) -> str:
    text = str(value)
    # Spreadsheets execute cells that begin like a formula; names and notes come from people.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
