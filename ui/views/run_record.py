"""What a run keeps beside its curves: configuration, data, environment, checkpoints, events; each folded."""

from html import escape
from pathlib import Path

from engine.config.load import config_to_yaml
from engine.data.contract import DatasetReport
from engine.runs.checkpoints import list_checkpoints
from engine.runs.history.log import read_lines
from ui.backend.run_reader import ObservedRun
from ui.views.dataset import render_facts, render_lengths, render_problems
from ui.views.quantities import plural, size

_EVENT_TAIL_BYTES = 16_000
_EVENT_LINES = 60


def render_record(observed: ObservedRun) -> str:
    """Every part of the record that there is, as folds."""
    folder = observed.run.folder
    parts = [
        ("Its whole configuration", _configuration(observed)),
        ("What its data was", _data(folder.read_dataset_report())),
        ("Environment", _environment(observed)),
        (_checkpoint_title(observed), _checkpoints(observed)),
        ("Events, as they stand in events.jsonl", _events(folder.events)),
    ]
    return "".join(
        f'<details class="fold"><summary>{escape(title)}</summary>{content}</details>'
        for title, content in parts
        if content
    )


def _configuration(observed: ObservedRun) -> str:
    if observed.config is None:
        return '<p class="small">Its config.yaml cannot be read.</p>'
    return f'<pre class="log" tabindex="0" aria-label="config.yaml">{escape(config_to_yaml(observed.config))}</pre>'


def _data(report: DatasetReport | None) -> str:
    if report is None:
        return ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    problems = render_problems(report, pickable_rows=False) if report.dropped else ""
    return (
        f'<p class="small">{escape(report.source)}, read as {escape(report.format)}: {escape(report.format_reason)}.</p>'
        f"{render_facts(report)}{render_lengths(report)}{f'<ul class=small>{notes}</ul>' if notes else ''}{problems}"
    )


def _environment(observed: ObservedRun) -> str:
    known = observed.provenance
    parameters = observed.history.parameters
    entries = [
        ("Loratory", known.loratory),
        ("Python", known.python),
        ("Platform", known.platform),
        *known.libraries.items(),
        ("Model came from", known.model_source or ""),
        ("Data's fingerprint", known.dataset_fingerprint or ""),
    ]
    if parameters is not None:
        entries += [
            ("Device", parameters.device),
            ("Computes in", parameters.compute_dtype),
            ("Attention", parameters.attn_implementation),
            ("Optimizer's kernel", parameters.optim),
            ("Rows in a batch are", parameters.batching),
        ]
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in entries if value)
    return f'<dl class="details-grid">{rows}</dl>' if rows else ""


def _checkpoint_title(observed: ObservedRun) -> str:
    return plural(len(list_checkpoints(observed.run.folder.checkpoints)), "checkpoint") + " on the disk"


def _checkpoints(observed: ObservedRun) -> str:
    standing = {point.step for point in list_checkpoints(observed.run.folder.checkpoints)}
    losses = {point.step: point.eval_loss for point in observed.history.tuned_evals}
    rows = "".join(
        f'<tr><td>step {point.step:,}</td><td class="r">{size(point.size_bytes)}</td>'
        f'<td class="r">{f"{losses[point.step]:.3f}" if point.step in losses else "–"}</td>'
        f"<td>{'the best so far' if point.best else ''}</td>"
        f'<td class="soft">{"" if point.step in standing else "removed since"}</td></tr>'
        for point in reversed(observed.history.checkpoints)
    )
    if not rows:
        return ""
    return (
        '<div class="scroll tall"><table class="plain"><thead><tr><th>Checkpoint</th><th class="r">Size</th>'
        f'<th class="r">Held-out loss</th><th></th><th></th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _events(path: Path) -> str:
    try:
        beginning = max(0, path.stat().st_size - _EVENT_TAIL_BYTES)
    except OSError:
        return ""
    lines = read_lines(path, beginning).lines
    newest = b"\n".join(lines[1 if beginning else 0 :][-_EVENT_LINES:]).decode("utf-8", errors="replace")
    if not newest:
        return ""
    return f'<pre class="log events" tabindex="0" aria-label="The newest events">{escape(newest)}</pre>'
