"""Finding runs among thousands: search in words, filters, order. Pure; the rows come from the index."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from engine.config.load import setting_names
from engine.config.run import RunConfig
from engine.runs.history.run_history import RunHistory
from engine.runs.history.steps import StepColumn
from engine.runs.run import State
from engine.runs.summary import RunSummary

SortKey = Literal[
    "created", "name", "state", "method", "model", "steps", "final_loss", "eval_loss", "tokens_per_second",
    "peak_memory_bytes", "seconds", "size_bytes",
]  # fmt: skip


@dataclass(frozen=True)
class RunQuery:
    """Which runs, and in which order. Empty fields restrict nothing."""

    words: str = ""  # each must occur in the id, name, note, tags, model, dataset, method or state
    states: Collection[State] = ()
    methods: Collection[str] = ()
    models: Collection[str] = ()
    tags: Collection[str] = ()
    sort: SortKey = "created"
    descending: bool = True


def select_runs(summaries: Sequence[RunSummary], query: RunQuery) -> list[RunSummary]:
    """The rows that a query wants, in its order; rows without a value for the order come last."""
    words = query.words.casefold().split()
    found = [summary for summary in summaries if _matches(summary, query, words)]
    valued = [(value, summary) for summary in found if (value := _sort_value(summary, query.sort)) is not None]
    valued.sort(key=lambda pair: pair[0], reverse=query.descending)
    without = [summary for summary in found if _sort_value(summary, query.sort) is None]
    return [summary for _, summary in valued] + without


def best_by_held_out_loss(summaries: Sequence[RunSummary]) -> RunSummary | None:
    """The run with the lowest held-out loss; None where none has one.

    Losses compare only between runs that hold out the same rows: the caller chooses which runs to ask about.
    """
    measured = [summary for summary in summaries if summary.best_eval_loss is not None]
    return min(measured, key=lambda summary: summary.best_eval_loss or 0.0, default=None)


@dataclass(frozen=True)
class SettingDifference:
    """One setting that is not the same in all of the compared runs."""

    setting: str  # dotted
    values: Mapping[str, Any]  # by run id


def differing_settings(configs: Mapping[str, RunConfig]) -> list[SettingDifference]:
    """The settings that differ between runs, in the order of the form; names and devices of the run do not count.

    Args:
        configs: By run id.
    """
    plain = {run_id: config.model_dump(mode="json") for run_id, config in configs.items()}
    differences = []
    for name in setting_names():
        section, _, field = name.partition(".")
        if section == "run":
            continue
        values = {run_id: config[section][field] for run_id, config in plain.items()}
        first = next(iter(values.values()), None)
        if any(value != first for value in values.values()):
            differences.append(SettingDifference(name, values))
    return differences


def _matches(summary: RunSummary, query: RunQuery, words: Sequence[str]) -> bool:
    if query.states and summary.state not in query.states:
        return False
    if query.methods and summary.method not in query.methods:
        return False
    if query.models and summary.model not in query.models:
        return False
    if query.tags and not set(query.tags) <= set(summary.tags):
        return False
    if not words:
        return True
    text = "\n".join(
        (
            summary.id,
            summary.name,
            summary.note,
            *summary.tags,
            summary.model,
            summary.dataset,
            summary.method,
            summary.state,
        )
    ).casefold()
    return all(word in text for word in words)


def _sort_value(summary: RunSummary, key: SortKey) -> float | str | None:
    value: float | str | None = getattr(summary, key)
    return value.casefold() if isinstance(value, str) else value


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
