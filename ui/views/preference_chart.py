"""Charts of a preference run: rewards, margin, accuracy, length, distance from the reference."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from engine.config.objectives import LONGER_PREFERRED, OBJECTIVES
from engine.config.training import TrainingConfig
from engine.runs.history.preference_health import CHOSEN, MARGINS, REJECTED
from engine.runs.history.run_history import RunHistory
from ui.views.loss_chart import Panel, panel_curve, panel_label, panel_level, panel_points, panels_json

_BLUE, _BLUE_THIN, _VERMILION = "var(--series-blue)", "var(--series-blue-thin)", "var(--series-vermilion)"
_GREEN = "var(--series-green)"


class _Curve(NamedTuple):
    """A metric in a small chart."""

    metric: str
    name: str
    colour: str
    dash: str = "solid"


def preference_figure(history: RunHistory, training: TrainingConfig, revision: str) -> str:
    """Return the charts of a preference run; empty for other runs and before the first measurement."""
    objective = OBJECTIVES[training.objective]
    if not objective.learns_preferences or not _has_any(history, objective.metrics):
        return ""
    better, worse = objective.row_traits.better, objective.row_traits.worse
    # A title has to fit half of a telephone's width.
    ratio = "β · log-ratio" if objective.has_reference else "β · log p"
    panels = [
        _panel(
            history,
            f"Rewards ({ratio})",
            ".3g",
            _Curve(CHOSEN, better, _BLUE),
            _Curve(REJECTED, worse, _VERMILION, "dash"),
        ),
        _panel(history, "Margin", ".3g", _Curve(MARGINS, "margin", _GREEN)),
    ]
    if "rewards/accuracies" in objective.metrics:
        panels.append(_share(history, "Preferred correctly", "rewards/accuracies", None))
    if "kl" in objective.metrics:
        panels.append(_panel(history, "KL to reference, nats", ".3g", _Curve("kl", "KL", _BLUE)))
    if LONGER_PREFERRED in objective.metrics:
        better_share = history.data_report.chosen_longer if history.data_report is not None else None
        panels.append(_share(history, "Prefers the longer", LONGER_PREFERRED, better_share))
    else:
        panels.append(
            _panel(
                history,
                "Log-probability",
                ".3g",
                _Curve("logps/chosen", better, _BLUE),
                _Curve("logps/rejected", worse, _VERMILION, "dash"),
            )
        )
    titles = ", ".join(panel.title[:1].lower() + panel.title[1:] for panel in panels)
    return panels_json(history, panels, revision, f"By step, with diamonds on held-out rows: {titles}.")


def _has_any(history: RunHistory, names: Sequence[str]) -> bool:
    return any(len(history.steps.metric(name)[0]) or list(held_out(history, name)) for name in names)


def held_out(history: RunHistory, name: str) -> Iterator[tuple[int, float]]:
    """Yield step and value of a metric on held-out rows."""
    for point in history.evals:
        value = point.metrics.get(name, math.nan)
        if math.isfinite(value) and not point.adapter_disabled:
            yield point.step, value


def _panel(history: RunHistory, title: str, number: str, *curves: _Curve) -> Panel:
    traces: list[dict[str, Any]] = []
    labels: list[dict[str, Any]] = []
    pairs = [(one, curve) for one in curves if (curve := _curve(history, one, number))]
    for one, curve in pairs:
        traces += curve
        if len(pairs) > 1:  # named where they end: the upper one above its line, the lower one below
            others = [other[-1]["y"][-1] for _, other in pairs if other is not curve]
            is_upper = curve[-1]["y"][-1] >= max(others)
            labels.append(panel_label(one.name, curve[-1]["y"][-1], one.colour, above=is_upper))
    return Panel(title, traces, labels)


def _curve(history: RunHistory, one: _Curve, number: str) -> list[dict[str, Any]]:
    steps, values = history.steps.metric(one.metric)
    points = list(held_out(history, one.metric))
    traces = [panel_curve(one.name, steps, values, number, one.colour, one.dash)] if len(steps) else []
    if points:
        traces.append(panel_points(f"{one.name}, held-out", points, number, one.colour))
    return traces


def _share(history: RunHistory, title: str, metric: str, of_data: float | None) -> Panel:
    """Return a chart of a share of pairs, thin for single steps, which have few pairs."""
    steps, values = history.steps.metric(metric)
    traces = [panel_curve("train", steps, values, ".0%", _BLUE_THIN)] if len(steps) else []
    points = [(step, value) for step, value in held_out(history, metric) if step > 0]
    labels: list[dict[str, Any]] = []
    if points:
        traces.append(panel_points("held-out", points, ".0%", _VERMILION))
    if of_data is not None:
        level, label = panel_level(history, of_data, f"in the data {of_data:.0%}")
        traces.append(level)
        labels.append(label)
    return Panel(title, traces, labels, {"range": [-0.03, 1.05], "tickformat": ".0%", "dtick": 0.5})
