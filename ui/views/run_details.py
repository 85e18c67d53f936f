"""Facts and record of one run, and the differences between several runs."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from engine.config.load import config_to_yaml
from engine.config.run import RunConfig
from engine.data.contract import DatasetReport
from engine.runs.checkpoints import list_checkpoints
from engine.runs.electricity import Electricity, energy_words
from engine.runs.summary import RunSummary
from engine.runs.table import differing_settings
from ui.backend.run_reader import RunSnapshot
from ui.views.dataset import render_facts, render_lengths
from ui.views.html import GIB, Column, count, definitions, duration, log, plural, size, small, table
from ui.views.loss_chart import SERIES
from ui.views.rows import render_problems
from ui.views.run_table import best_of, held_out_cell, when
from ui.views.run_view import method_words, objective_entries


def render_run_details(snapshot: RunSnapshot, row: RunSummary, electricity: Electricity) -> str:
    """Return facts beyond status and curves."""
    config = snapshot.config
    of_config: list[tuple[str, str]] = []
    if config is not None:
        revision = f" at {config.model.revision[:12]}" if config.model.revision else ""
        of_config = [
            ("Model", escape(config.model.id + revision)),
            ("Method", escape(method_words(config))),
            *objective_entries(config),
            ("Data", escape(config.dataset.source)),
        ]
    speed = f", {row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else ""
    entries = [
        ("Note", f'<span class="note">{escape(row.note)}</span>' if row.note else ""),
        ("Tags", ", ".join(f"<span class=tag>{escape(tag)}</span>" for tag in row.tags)),
        *of_config,
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
    """Return the record of a run as folds: configuration, data, environment and checkpoints."""
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


# Plotly's dashes in the words of CSS, as near as they come.
_CSS_DASHES = {"solid": "solid", "dash": "dashed", "dot": "dotted", "dashdot": "dashed", "longdash": "dashed"}


def render_differences(rows: Sequence[RunSummary], configs: Mapping[str, RunConfig], electricity: Electricity) -> str:
    """Return results and differing settings, a column for each run; the lowest held-out loss is marked where valid."""
    best = best_of(rows)
    heads = [
        f'<span class="swatch" style="border-top-color:{colour};border-top-style:{_CSS_DASHES[dash]}"></span>'
        f"{escape(row.name)} · {row.id[-4:]}"
        for row, (colour, dash) in zip(rows, SERIES, strict=False)
    ]
    figures: list[tuple[str, Callable[[RunSummary], str]]] = [
        ("held-out loss", lambda row: held_out_cell(row, best)),
        ("steps", lambda row: f"{row.steps:,}"),
        (
            "preferred correctly",
            lambda row: "" if row.preference_accuracy is None else f"{row.preference_accuracy:.0%}",
        ),
        ("trained tokens", lambda row: count(row.trained_tokens) if row.trained_tokens else ""),
        ("tokens/s", lambda row: f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else ""),
        ("memory", _memory),
        ("duration", lambda row: duration(row.seconds) if row.seconds is not None else ""),
        ("electricity", lambda row: escape(energy_words(row, electricity))),
    ]
    lines = [(name, [of_row(row) for row in rows]) for name, of_row in figures]
    is_known = all(row.id in configs for row in rows)
    differing = differing_settings(configs) if is_known else {}
    lines += [(escape(name), [escape(_setting(values[row.id])) for row in rows]) for name, values in differing.items()]
    note = "Only settings that differ are listed." if differing else "Their settings are the same."
    if not is_known:
        note = "A configuration cannot be read."
    if len({row.loss_group for row in rows}) > 1:
        note += (
            " Losses are not comparable: objective, model or held-out rows differ. Compare answers in Chat, in the blind test, "
            "or evaluate the runs on the same rows."
        )
    cells = ((name, *(value or "–" for value in values)) for name, values in lines if any(values))
    return table(["", *heads], cells, css="differences") + small(note)


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


def without_folders(config: RunConfig) -> RunConfig:
    """Return a configuration for other people's eyes: of paths, the last name alone."""

    def last(text: str) -> str:
        return Path(text).name if Path(text).is_absolute() else text

    dataset, start = config.dataset, config.adapter.warm_start
    paths = {"source": last(dataset.source), "mix": {last(source): weight for source, weight in dataset.mix.items()}}
    return config.model_copy(
        update={
            "dataset": dataset.model_copy(update=paths),
            "model": config.model.model_copy(update={"id": last(config.model.id)}),
            "adapter": config.adapter.model_copy(update={"warm_start": last(start) if start else start}),
        }
    )
