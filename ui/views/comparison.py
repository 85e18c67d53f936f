"""Several runs side by side: what names their curves, and a table of their results and differing settings."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from loratory.engine.config.run import RunConfig
from loratory.engine.runs.names import run_label
from loratory.engine.runs.summary import RunSummary, differing_settings
from loratory.engine.runs.usage import Electricity, energy_words
from loratory.ui.views import html
from loratory.ui.views.loss_chart import SERIES
from loratory.ui.views.run_details import run_duration, run_memory
from loratory.ui.views.run_table import best_of, held_out_cell

# The settings that name a curve before others do, with their names in it; without one where the value is enough.
_SHORT_NAMES = {
    "model.id": "", "adapter.method": "", "dataset.source": "", "training.objective": "", "training.learning_rate": "lr",
    "adapter.r": "r", "adapter.lora_alpha": "alpha", "training.num_train_epochs": "epochs",
}  # fmt: skip
_NAMING_SETTINGS = 3


def curve_names(rows: Sequence[RunSummary], configs: Mapping[str, RunConfig]) -> list[str]:
    """Return what sets each run apart and the end of its id, such as `lr 2e-4, r 16 · 3f2a`; its name where no setting does."""
    settings = differing_settings(configs) if all(row.id in configs for row in rows) else {}
    naming = [*filter(settings.__contains__, _SHORT_NAMES), *(name for name in settings if name not in _SHORT_NAMES)]
    parts = ((_short_setting(name, settings[name][row.id]) for name in naming[:_NAMING_SETTINGS]) for row in rows)
    labels = (", ".join(filter(None, texts)) for texts in parts)
    return [run_label(label or row.name, row.id) for label, row in zip(labels, rows, strict=True)]


def _short_setting(name: str, value: object) -> str:
    """Return a setting and its value as part of a name, shortened."""
    if value is None:
        return ""
    text = _setting(value).rpartition("/")[-1].removeprefix("sample:")
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        digits, _, exponent = f"{value:.2e}".partition("e")
        text = f"{float(digits):g}e{int(exponent)}"
    return f"{_SHORT_NAMES.get(name, name.rpartition('.')[-1].replace('_', ' '))} {text[:28]}".strip()


def render_differences(rows: Sequence[RunSummary], configs: Mapping[str, RunConfig], electricity: Electricity) -> str:
    """Return results and differing settings, a column for each run; the lowest held-out loss is marked where valid."""
    heads = [_run_head(row, colour, dash) for row, (colour, dash) in zip(rows, SERIES, strict=False)]
    results = _result_cells(best_of(rows), electricity)
    lines = [(title, [cell_of(row) for row in rows]) for title, cell_of in results.items()]
    settings = differing_settings(configs) if all(row.id in configs for row in rows) else None
    for name, values in (settings or {}).items():
        lines.append((escape(name), [escape(_setting(values[row.id])) for row in rows]))
    cells = ((title, *(value or "–" for value in values)) for title, values in lines if any(values))
    return html.table(["", *heads], cells, css="differences") + html.small(_comparison_note(rows, settings))


def _run_head(row: RunSummary, colour: str, dash: str) -> str:
    line = f'<path d="M0 2h44" style="stroke:{colour};stroke-width:3;stroke-dasharray:{dash}"/>'
    swatch = f'<svg class="swatch" width="44" height="4" aria-hidden="true">{line}</svg>'
    return f"{swatch}{escape(row.label)}"


def _result_cells(best: str | None, electricity: Electricity) -> dict[str, Callable[[RunSummary], str]]:
    """Return what gives the cell of each result; a cell is empty where the result is unknown."""
    return {
        "held-out loss": lambda row: held_out_cell(row, best),
        "steps": lambda row: f"{row.steps:,}",
        "preferred correctly": lambda row: "" if row.preference_accuracy is None else f"{row.preference_accuracy:.0%}",
        "trained tokens": lambda row: html.count(row.trained_tokens) if row.trained_tokens else "",
        "tokens/s": lambda row: f"{row.tokens_per_second:,.0f}" if row.tokens_per_second else "",
        "memory": run_memory,
        "duration": run_duration,
        "electricity": lambda row: escape(energy_words(row, electricity)),
    }


def _comparison_note(rows: Sequence[RunSummary], settings: Mapping[str, object] | None) -> str:
    """Return what the comparison lists; `settings` that differ are None where a configuration cannot be read."""
    if settings is None:
        note = "A configuration cannot be read."
    else:
        note = "Only settings that differ are listed." if settings else "Their settings are the same."
    if len({row.loss_group for row in rows}) < 2:
        return note
    return (
        f"{note} Losses are not comparable: objective, model or held-out rows differ. Compare answers in Chat, in the blind "
        "test, or evaluate the runs on the same rows."
    )


def _setting(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
