"""One run in a few lines, and several side by side: only where they differ."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.runs.electricity import Electricity, energy_words
from engine.runs.summary import RunSummary
from engine.runs.table import differing_settings
from ui.backend.run_reader import ObservedRun
from ui.views.loss_chart import SERIES
from ui.views.quantities import GIB, count, duration, size
from ui.views.run_table import best_of, held_out_cell, when
from ui.views.run_view import method_words


class ComparedRun(NamedTuple):
    """A run beside others."""

    row: RunSummary
    config: RunConfig | None
    fingerprint: str | None = None  # of the rows that it was given


def render_run_details(observed: ObservedRun, row: RunSummary, electricity: Electricity) -> str:
    """What is worth a line beside status and curves."""
    config = observed.config
    entries: list[tuple[str, str]] = []
    if row.note:
        entries.append(("Note", f'<span class="note">{escape(row.note)}</span>'))
    if row.tags:
        entries.append(("Tags", ", ".join(f"<span class=tag>{escape(tag)}</span>" for tag in row.tags)))
    if config is not None:
        revision = f" at {escape(config.model.revision[:12])}" if config.model.revision else ""
        entries += [
            ("Model", escape(config.model.id) + revision),
            ("Method", escape(method_words(config))),
            ("Data", escape(config.dataset.source)),
        ]
    if row.trained_tokens:
        speed = f", {row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else ""
        entries.append(("Learned from", f"{count(row.trained_tokens)} tokens{speed}"))
    if row.trainable_parameters:
        entries.append(("Trains", f"{row.trainable_parameters:,} parameters"))
    entries.append(("Memory", _memory_words(row)))
    if row.seconds is not None:
        entries.append(("Took", duration(row.seconds)))
    entries.append(("Electricity", escape(energy_words(row, electricity))))
    if row.created:
        entries.append(("Filed", when(row.created)))
    if observed.provenance.copied_from:
        entries.append(("Copied from", escape(observed.provenance.copied_from)))
    entries += [("Id", f"<code>{escape(observed.run.id)}</code>"), ("On disk", size(row.size_bytes))]
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries if value)
    return f'<dl class="details-grid">{listed}</dl>'


def render_differences(runs: Sequence[ComparedRun], electricity: Electricity) -> str:
    """Result and differing settings, a column for each run; the lowest held-out loss is marked where they compare."""
    comparable = have_the_same_held_out_rows(runs)
    best = best_of([run.row for run in runs]) if comparable else None
    heads = "".join(
        f'<th><span class="swatch" style="border-top-color:{colour};border-top-style:{_CSS_DASHES[dash]}"></span>'
        f"{escape(run.row.name)} · {run.row.id[-4:]}</th>"
        for run, (colour, dash) in zip(runs, SERIES, strict=False)
    )
    results = (
        ("held-out loss", [held_out_cell(run.row, best) for run in runs]),
        ("steps", [f"{run.row.steps:,}" for run in runs]),
        ("tokens learned from", [count(run.row.trained_tokens) if run.row.trained_tokens else "–" for run in runs]),
        ("tokens/s", [f"{run.row.tokens_per_second:,.0f}" if run.row.tokens_per_second else "–" for run in runs]),
        ("memory", [_memory_words(run.row) or "–" for run in runs]),
        ("took", [duration(run.row.seconds) if run.row.seconds is not None else "–" for run in runs]),
        *_costs(runs, electricity),
    )
    body = "".join(_line(name, values) for name, values in results)
    configs = {run.row.id: run.config for run in runs if run.config is not None}
    differing = differing_settings(configs) if len(configs) == len(runs) else []
    settings = "".join(
        _line(difference.setting, [escape(_shown(difference.values[run.row.id])) for run in runs])
        for difference in differing
    )
    if differing:
        note = "Only settings that differ are listed."
    else:
        note = "Their settings are the same." if len(configs) == len(runs) else "A configuration cannot be read."
    if not comparable:
        note += " Their held-out rows or their tokenizers differ, so that the held-out losses do not compare."
    return (
        f'<div class="scroll"><table class="plain differences"><thead><tr><th></th>{heads}</tr></thead>'
        f'<tbody>{body}{settings}</tbody></table></div><p class="small">{note}</p>'
    )


def have_the_same_held_out_rows(runs: Sequence[ComparedRun]) -> bool:
    """Whether held-out losses of these runs mean the same: equal rows, held out alike, in tokens of one model."""
    kinds = {
        (
            run.fingerprint or run.config.dataset.source,
            run.config.dataset.eval_fraction,
            run.config.dataset.train_on,
            run.config.training.seed,
            run.config.training.max_length,
            run.config.model.id,
        )
        if run.config is not None
        else (run.row.id,)
        for run in runs
    }
    return len(kinds) == 1


def _costs(runs: Sequence[ComparedRun], electricity: Electricity) -> list[tuple[str, list[str]]]:
    words = [escape(energy_words(run.row, electricity)) for run in runs]
    return [("electricity", [text or "–" for text in words])] if any(words) else []


# Plotly's dashes in the words of CSS, as near as they come.
_CSS_DASHES = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dashed", "longdash": "dashed"}


def _line(name: str, values: Sequence[str]) -> str:
    cells = "".join(f"<td>{value}</td>" for value in values)
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"


def _memory_words(row: RunSummary) -> str:
    parts = []
    if row.peak_memory_bytes:
        parts.append(f"{row.peak_memory_bytes / GIB:.2f} GiB measured")
    if row.predicted_bytes:
        parts.append(f"{row.predicted_bytes / GIB:.2f} GiB predicted")
    return ", ".join(parts)


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
