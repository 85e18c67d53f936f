"""Facts and record of one run, and the differences between several runs."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from engine.config.load import config_to_yaml
from engine.config.objectives import objective_of
from engine.config.run import RunConfig
from engine.data.contract import DatasetReport
from engine.runs.checkpoints import list_checkpoints
from engine.runs.history.log import read_lines
from engine.runs.summary import RunSummary, differing_settings
from engine.runs.usage import Electricity, energy_words
from ui.backend.run_reader import RunSnapshot
from ui.views.dataset import render_facts, render_lengths, render_problems
from ui.views.html import GIB, Column, count, definitions, duration, log, plural, size, small, table
from ui.views.loss_chart import SERIES
from ui.views.run_table import best_of, held_out_cell, when
from ui.views.run_view import method_words, objective_entries


class ComparedRun(NamedTuple):
    """A run in a comparison."""

    row: RunSummary
    config: RunConfig | None
    fingerprint: str | None = None  # of the rows that it was given


def render_run_details(snapshot: RunSnapshot, row: RunSummary, electricity: Electricity) -> str:
    """Return facts beyond status and curves."""
    config = snapshot.config
    model = data = method = ""
    if config is not None:
        revision = f" at {escape(config.model.revision[:12])}" if config.model.revision else ""
        model, data, method = escape(config.model.id) + revision, config.dataset.source, method_words(config)
    speed = f", {row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else ""
    entries = [
        ("Note", f'<span class="note">{escape(row.note)}</span>' if row.note else ""),
        ("Tags", ", ".join(f"<span class=tag>{escape(tag)}</span>" for tag in row.tags)),
        ("Model", model),
        ("Method", escape(method)),
        *(objective_entries(config) if config is not None else ()),
        ("Data", escape(data)),
        ("Trained tokens", f"{count(row.trained_tokens)}{speed}" if row.trained_tokens else ""),
        ("Trains", f"{row.trainable_parameters:,} parameters" if row.trainable_parameters else ""),
        ("Memory", _memory(row)),
        ("Duration", duration(row.seconds) if row.seconds is not None else ""),
        ("Electricity", escape(energy_words(row, electricity))),
        ("Created", when(row.created) if row.created else ""),
        ("Copied from", escape(snapshot.provenance.copied_from or "")),
        ("Id", f"<code>{escape(snapshot.run.id)}</code>"),
        ("On disk", size(row.size_bytes)),
    ]
    return definitions(entries, "details-grid")


def render_record(snapshot: RunSnapshot) -> str:
    """Return the record of a run as folds: configuration, data, environment, checkpoints and events."""
    folder = snapshot.run.folder
    count_words = plural(len(list_checkpoints(folder.checkpoints)), "checkpoint")
    config = small("Its config.yaml cannot be read.")
    if snapshot.config is not None:
        config = log(config_to_yaml(snapshot.config), "config.yaml")
    parts = [
        ("Configuration", config),
        ("Data", _data(folder.read_dataset_report())),
        ("Environment", _environment(snapshot)),
        (f"{count_words} on disk", _checkpoints(snapshot)),
        ("Newest lines of events.jsonl", _events(folder.events)),
    ]
    return "".join(
        f'<details class="fold"><summary>{escape(title)}</summary>{content}</details>'
        for title, content in parts
        if content
    )


def _data(report: DatasetReport | None) -> str:
    if report is None:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    items = f"<ul class=small>{notes}</ul>" if notes else ""

    lead = small(f"{report.source}, read as {report.format}: {report.format_reason}.")
    return f"{lead}{render_facts(report)}{render_lengths(report)}{items}{render_problems(report)}"


def _environment(snapshot: RunSnapshot) -> str:
    provenance, parameters = snapshot.provenance, snapshot.history.parameters
    entries = [
        ("Loratory", provenance.loratory),
        ("Python", provenance.python),
        ("Platform", provenance.platform),
        *provenance.libraries.items(),
        ("Source of the model", provenance.model_source or ""),
        ("Fingerprint of the data", provenance.dataset_fingerprint or ""),
    ]
    if parameters is not None:
        entries += [
            ("Device", parameters.device),
            ("Compute dtype", parameters.compute_dtype),
            ("Attention", parameters.attn_implementation),
            ("Optimizer", parameters.optim),
            ("Batching", parameters.batching),
            *((name, why_not or "used") for name, why_not in parameters.optimizations.items()),
        ]
    return definitions(((escape(name), escape(value or "")) for name, value in entries), "details-grid")


def _checkpoints(snapshot: RunSnapshot) -> str:
    present = {point.step for point in list_checkpoints(snapshot.run.folder.checkpoints)}
    losses = {point.step: f"{point.eval_loss:.3f}" for point in snapshot.history.tuned_evals}
    rows = [
        (
            f"step {point.step:,}",
            size(point.size_bytes),
            losses.get(point.step, "–"),
            "best so far" if point.best else "",
            "" if point.step in present else "removed since",
        )
        for point in reversed(snapshot.history.checkpoints)
    ]
    columns = [Column("Checkpoint"), *map(Column.of_numbers, ("Size", "Held-out loss")), Column(""), Column("", "soft")]
    return table(columns, rows, scrolls="scroll tall") if rows else ""


def _events(path: Path) -> str:
    try:
        beginning = max(0, path.stat().st_size - 16_000)
    except OSError:
        return ""
    lines = read_lines(path, beginning).lines
    newest = b"\n".join(lines[1 if beginning else 0 :][-60:]).decode("utf-8", errors="replace")
    return log(newest, "The newest events") if newest else ""


# Plotly's dashes in the words of CSS, as near as they come.
_CSS_DASHES = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dashed", "longdash": "dashed"}


def render_differences(runs: Sequence[ComparedRun], electricity: Electricity) -> str:
    """Return results and differing settings, a column for each run; the lowest held-out loss is marked where valid."""
    comparable = have_the_same_loss(runs) and have_the_same_held_out_rows(runs)
    best = best_of([run.row for run in runs]) if comparable else None
    heads = [
        f'<span class="swatch" style="border-top-color:{colour};border-top-style:{_CSS_DASHES[dash]}"></span>'
        f"{escape(run.row.name)} · {run.row.id[-4:]}"
        for run, (colour, dash) in zip(runs, SERIES, strict=False)
    ]
    rows = [run.row for run in runs]
    costs = [escape(energy_words(row, electricity)) for row in rows]
    lines = [
        ("held-out loss", [held_out_cell(row, best) for row in rows]),
        ("steps", [f"{row.steps:,}" for row in rows]),
        *_preferences(rows),
        ("trained tokens", [count(row.trained_tokens) if row.trained_tokens else "–" for row in rows]),
        ("tokens/s", [f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "–" for row in rows]),
        ("memory", [_memory(row) or "–" for row in rows]),
        ("duration", [duration(row.seconds) if row.seconds is not None else "–" for row in rows]),
    ]
    if any(costs):
        lines.append(("electricity", [cost or "–" for cost in costs]))
    configs = {run.row.id: run.config for run in runs if run.config is not None}
    differing = differing_settings(configs) if len(configs) == len(runs) else {}
    for setting, values in differing.items():
        lines.append((escape(setting), [escape(_setting(values[row.id])) for row in rows]))
    if differing:
        note = "Only settings that differ are listed."
    else:
        note = "Their settings are the same." if len(configs) == len(runs) else "A configuration cannot be read."
    if not have_the_same_loss(runs):
        note += f" Losses are not comparable: {_losses_in_words(runs)}."
    elif not comparable:
        note += " Held-out losses are not comparable: the held-out rows or the tokenizers differ."
    return table(["", *heads], ((name, *values) for name, values in lines), css="differences") + small(note)


def have_the_same_loss(runs: Sequence[ComparedRun]) -> bool:
    """Return whether these runs' losses are comparable; preference losses differ by beta."""
    kinds = {objective_of(run.config).summary(run.config.training) for run in runs if run.config is not None}
    return len(kinds) <= 1


def _losses_in_words(runs: Sequence[ComparedRun]) -> str:
    objectives = dict.fromkeys(objective_of(run.config) for run in runs if run.config is not None)
    if all(one.learns_preferences for one in objectives):
        return "they are of preferences with other objectives, losses or betas; compare how many pairs are preferred correctly"
    names = ", ".join(one.label for one in objectives if one.learns_preferences)
    return (
        f"a supervised loss is nats per token, and that of {names} is about pairs or ratings; compare their answers instead, in "
        "Chat, in the blind test or by an evaluation of both on the same rows"
    )


def have_the_same_held_out_rows(runs: Sequence[ComparedRun]) -> bool:
    """Return whether held-out losses of these runs are comparable: the same held-out rows and the same tokenizer."""
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


def _preferences(rows: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    """Return the held-out preference accuracy of a preference run."""
    if not any(row.objective for row in rows):
        return []
    shares = [f"{row.preference_accuracy:.0%}" if row.preference_accuracy is not None else "–" for row in rows]
    return [("preferred correctly", shares)]


def _memory(row: RunSummary) -> str:
    figures = ((row.peak_memory_bytes, "measured"), (row.predicted_bytes, "predicted"))
    return ", ".join(f"{size_bytes / GIB:.2f} GiB {word}" for size_bytes, word in figures if size_bytes)


def _setting(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
