"""The table of runs: search, filters, order, and CSV for spreadsheets. The rows come from the index."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.config.load import setting_names
from engine.config.run import RunConfig
from engine.runs.history.run_history import RunHistory
from engine.runs.history.steps import COLUMNS
from engine.runs.run import State
from engine.runs.summary import RunSummary

SortKey = Literal[
    "created", "name", "state", "method", "model", "steps", "final_loss", "eval_loss", "tokens_per_second",
    "peak_memory_bytes", "seconds", "size_bytes",
]  # fmt: skip


@dataclass(frozen=True)
class RunQuery:
    """A query for runs, with their order. Empty fields restrict nothing."""

    words: str = ""  # each must occur in the id, name, note, tags, model, dataset, method or state
    states: Collection[State] = ()
    methods: Collection[str] = ()
    models: Collection[str] = ()
    tags: Collection[str] = ()
    sort: SortKey = "created"
    descending: bool = True


def select_runs(summaries: Sequence[RunSummary], query: RunQuery) -> list[RunSummary]:
    """Return the rows of a query, in its order; rows without a value for the order come last.

    Held-out losses are ordered among comparable ones: the group with the first of the summaries comes first.
    """
    words = query.words.casefold().split()
    matches = [summary for summary in summaries if _matches(summary, query, words)]
    sortable = [(value, summary) for summary in matches if (value := _sort_value(summary, query.sort)) is not None]
    sortable.sort(key=lambda pair: pair[0], reverse=query.descending)
    if query.sort == "eval_loss":
        groups = list(dict.fromkeys(summary.loss_group for summary in matches))
        sortable.sort(key=lambda pair: groups.index(pair[1].loss_group))
    without = [summary for summary in matches if _sort_value(summary, query.sort) is None]
    return [summary for _, summary in sortable] + without


def best_by_held_out_loss(summaries: Sequence[RunSummary]) -> RunSummary | None:
    """The run with the lowest held-out loss; None where none has one, or they are not comparable."""
    candidates = [summary for summary in summaries if summary.best_eval_loss is not None]
    if len({summary.loss_group for summary in candidates}) > 1:
        return None
    return min(candidates, key=lambda summary: summary.best_eval_loss or 0.0, default=None)


def differing_settings(configs: Mapping[str, RunConfig]) -> dict[str, dict[str, Any]]:
    """Return the values by run id of the dotted settings that differ, in the order of the form; none of section `run`."""
    plain = {run_id: config.model_dump(mode="json") for run_id, config in configs.items()}
    differences = {}
    for name in setting_names():
        section, _, field = name.partition(".")
        values = {run_id: config[section][field] for run_id, config in plain.items()}
        if section != "run" and any(value != next(iter(values.values())) for value in values.values()):
            differences[name] = values
    return differences


def _matches(summary: RunSummary, query: RunQuery, words: Sequence[str]) -> bool:
    fields = ((query.states, summary.state), (query.methods, summary.method), (query.models, summary.model))
    if any(accepted and value not in accepted for accepted, value in fields) or not set(query.tags) <= set(
        summary.tags
    ):
        return False
    texts = (summary.id, summary.name, summary.note, *summary.tags)
    text = "\n".join(
        (*texts, summary.model, summary.dataset, summary.method, summary.objective, summary.state)
    ).casefold()
    return all(word in text for word in words)


def _sort_value(summary: RunSummary, key: SortKey) -> float | str | None:
    value: float | str | None = getattr(summary, key)
    return value.casefold() if isinstance(value, str) else value


def summaries_csv(summaries: Sequence[RunSummary]) -> str:
    """Return one line for each run, with every column."""
    import pandas as pd  # not before a table is asked for: commands start without it

    rows = [summary.model_dump(mode="python") for summary in summaries]
    table = pd.DataFrame(rows, columns=list(RunSummary.model_fields), dtype=object)
    return str(table.map(_cell).to_csv(index=False, lineterminator="\n"))


def steps_csv(history: RunHistory) -> str:
    """Return one line for each logged step, with the held-out loss at the steps where it was measured."""
    import pandas as pd

    table = pd.DataFrame({column: history.steps.column(column) for column in COLUMNS})
    held_out = {point.step: point.eval_loss for point in history.evals if not point.adapter_disabled}
    table["eval_loss"] = table["step"].map(held_out).astype(float)
    whole_numbers = dict.fromkeys(("step", "tokens", "trained_tokens", "memory_bytes"), "Int64")
    return str(table.astype(whole_numbers).to_csv(index=False, lineterminator="\n"))


def _cell(value: object) -> object:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, tuple):
        return " ".join(_cell_text(item) for item in value)
    return _cell_text(value) if isinstance(value, str) else value


def _cell_text(value: object) -> str:
    text = str(value)
    # Spreadsheets execute cells that look like formulas; names and notes come from people.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
