"""Small charts by step: learning rate, gradient norm, speed and memory; of a preference run, rewards and accuracy."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from loratory.engine.config.objectives import LONGER_PREFERRED, OBJECTIVES
from loratory.engine.config.training import TrainingConfig
from loratory.engine.hardware.cuda import GPU_READINGS
from loratory.engine.runs.history.preference_health import CHOSEN, MARGINS, REJECTED
from loratory.engine.runs.history.reward_health import reward_names
from loratory.engine.runs.history.run_history import RunHistory
from loratory.engine.runs.history.steps import Array, StepColumn, thin
from loratory.ui.views.html import GIB
from loratory.ui.views.loss_chart import (
    AXIS,
    chart_layout,
    diamonds,
    figure_json,
    finite,
    label_at,
    level,
    scatter,
    whole,
    whole_steps,
)

_BLUE, _BLUE_THIN, _VERMILION = "var(--series-blue)", "var(--series-blue-thin)", "var(--series-vermilion)"
_GREEN = "var(--series-green)"
_SMALL_CHARTS: tuple[tuple[str, StepColumn, float, str], ...] = (
    ("Learning rate", "learning_rate", 1, ".1e"),
    ("Gradient norm", "grad_norm", 1, ".3g"),
    ("Tokens per second", "tokens_per_second", 1, ",.0f"),
    ("Memory, GiB", "memory_bytes", GIB, ".2f"),
)
_GPU_CHARTS = dict(zip(GPU_READINGS, ("GPU utilization, %", "GPU power, W", "GPU temperature, °C"), strict=True))


class _Panel(NamedTuple):
    """One of several small charts in one figure."""

    title: str
    traces: Sequence[dict[str, Any]]
    labels: Sequence[dict[str, Any]] = ()  # of levels
    y_axis: Mapping[str, Any] = {}


class _Curve(NamedTuple):
    """A metric in a small chart."""

    metric: str
    name: str
    colour: str
    dash: str = "solid"


def small_figures(history: RunHistory, predicted_bytes: int | None, revision: str) -> str:
    """Return learning rate, gradient norm, tokens per second, memory and what GPUs report, as charts in one figure.

    Empty before a step. `predicted_bytes` is the peak of what a step reports as its memory; None draws no line.
    """
    if not len(history.steps):
        return ""
    panels: list[_Panel] = []
    for title, column, unit, number in _SMALL_CHARTS:
        steps, values = finite(history, "step", column)
        traces, labels = [_curve(title, steps, values if unit == 1 else values / unit, number)], []
        if column == "memory_bytes" and predicted_bytes:
            gib = predicted_bytes / GIB
            trace, label = level(history, gib, "predicted", f"predicted peak {gib:.2f}")
            traces.append(trace)
            labels.append(label)
        panels.append(_Panel(title, traces, labels, {"rangemode": "tozero"}))
    for reading, title in _GPU_CHARTS.items():
        steps, values = history.steps.metric(reading)
        if len(steps):
            panels.append(_Panel(title, [_curve(title, steps, values, ",.0f")], (), {"rangemode": "tozero"}))
    return _panels_json(history, panels, revision, "By step")


def reward_figure(history: RunHistory, training: TrainingConfig, revision: str) -> str:
    """Return the charts of a run that learns preferences or rewards; empty for other runs and before the first measurement."""
    if not OBJECTIVES[training.objective].samples_answers:
        return _preference_figure(history, training, revision)
    if not len(history.steps.metric("reward")[0]):
        return ""
    names = [(f"rewards/{name}/mean", name) for name in reward_names(training)]
    colours = (_BLUE, _VERMILION, _GREEN, _BLUE_THIN)
    base = next((point.reward for point in history.evals if point.step == 0 and point.reward is not None), None)
    reward = _metrics(history, "Reward", _Curve("reward", "reward", _BLUE))
    if base is not None:
        trace, label = level(history, base, "base", f"base, held-out {base:.2f}")
        reward = reward._replace(traces=[*reward.traces, trace], labels=[*reward.labels, label])
    panels = [reward]
    if len(names) > 1:
        curves = (_Curve(*name, colour) for name, colour in zip(names, cycle(colours), strict=False))
        panels.append(_metrics(history, "By scorer", *curves))
    panels += [
        _metrics(history, "Tied groups", _Curve("frac_reward_zero_std", "tied", _VERMILION)),
        _metrics(history, "Tokens an answer", _Curve("completions/mean_length", "length", _BLUE)),
        _metrics(history, "Cut answers", _Curve("completions/clipped_ratio", "cut", _VERMILION)),
        _metrics(history, "Entropy, nats", _Curve("entropy", "entropy", _GREEN)),
    ]
    if training.beta:
        panels.append(_metrics(history, "KL to reference, nats", _Curve("kl", "KL", _BLUE)))
    return _panels_json(history, panels, revision, "By step, with diamonds on held-out prompts")


def _preference_figure(history: RunHistory, training: TrainingConfig, revision: str) -> str:
    objective = OBJECTIVES[training.objective]
    measured = (name for name in objective.metrics if len(history.steps.metric(name)[0]) or [*_held_out(history, name)])
    if not objective.learns_preferences or not any(measured):
        return ""
    better, worse = objective.row_traits.better, objective.row_traits.worse
    # A title has to fit half of a telephone's width.
    ratio = "β · log-ratio" if objective.has_reference else "β · log p"
    rewards = _Curve(CHOSEN, better, _BLUE), _Curve(REJECTED, worse, _VERMILION, "dash")
    panels = [
        _metrics(history, f"Rewards ({ratio})", *rewards),
        _metrics(history, "Margin", _Curve(MARGINS, "margin", _GREEN)),
    ]
    if "rewards/accuracies" in objective.metrics:
        panels.append(_share(history, "Preferred correctly", "rewards/accuracies", None))
    if "kl" in objective.metrics:
        panels.append(_metrics(history, "KL to reference, nats", _Curve("kl", "KL", _BLUE)))
    if LONGER_PREFERRED in objective.metrics:
        better_share = history.data_report.chosen_longer if history.data_report is not None else None
        panels.append(_share(history, "Prefers the longer", LONGER_PREFERRED, better_share))
    else:
        chosen, rejected = rewards
        log_probabilities = chosen._replace(metric="logps/chosen"), rejected._replace(metric="logps/rejected")
        panels.append(_metrics(history, "Log-probability", *log_probabilities))
    return _panels_json(history, panels, revision, "By step, with diamonds on held-out rows")


def _held_out(history: RunHistory, name: str) -> Iterator[tuple[int, float]]:
    """Yield step and value of a metric on held-out rows."""
    for point in history.evals:
        value = point.metrics.get(name, math.nan)
        if math.isfinite(value) and not point.adapter_disabled:
            yield point.step, value


def _metrics(history: RunHistory, title: str, *curves: _Curve) -> _Panel:
    """Return a chart of metrics, each named where it ends: the upper one above its line, the lower one below."""
    number, curves_drawn = ".3g", []
    for curve in curves:
        steps, values = history.steps.metric(curve.metric)
        points = list(_held_out(history, curve.metric))
        traces = [_curve(curve.name, steps, values, number, curve.colour, curve.dash)] if len(steps) else []
        traces += [_points(f"{curve.name}, held-out", points, number, curve.colour)] if points else []
        curves_drawn += [(curve, traces, traces[-1]["y"][-1])] if traces else []
    labels = []
    for curve, _, end in curves_drawn if len(curves_drawn) > 1 else ():
        is_upper = end == max(other for _, _, other in curves_drawn)
        position = {"yanchor": "bottom", "yshift": 2} if is_upper else {"yanchor": "top", "yshift": -4}
        labels.append(label_at(end, curve.name) | position | {"font": {"size": 12, "color": curve.colour}})
    return _Panel(title, [trace for _, traces, _ in curves_drawn for trace in traces], labels)


def _share(history: RunHistory, title: str, metric: str, data_share: float | None) -> _Panel:
    """Return a chart of a share of pairs, thin for single steps, which have few pairs."""
    steps, values = history.steps.metric(metric)
    traces = [_curve("train", steps, values, ".0%", _BLUE_THIN)] if len(steps) else []
    points = [(step, value) for step, value in _held_out(history, metric) if step > 0]
    labels: list[dict[str, Any]] = []
    if points:
        traces.append(_points("held-out", points, ".0%", _VERMILION))
    if data_share is not None:
        text = f"in the data {data_share:.0%}"
        trace, label = level(history, data_share, text, text)
        traces.append(trace)
        labels.append(label)
    return _Panel(title, traces, labels, {"range": [-0.03, 1.05], "tickformat": ".0%", "dtick": 0.5})


def _curve(
    name: str, steps: Array, values: Array, number: str, colour: str = _BLUE, dash: str = "solid"
) -> dict[str, Any]:
    """Return a curve of a small chart; `number` is how its values are written."""
    indexes = thin(steps, values, 300)
    trace = scatter(name, whole(steps[indexes]), values[indexes], colour, dash=dash)
    hover = f"step %{{x:,}}: %{{y:{number}}}<extra></extra>"
    return trace | {"mode": "lines" if len(indexes) > 1 else "markers", "hovertemplate": hover}


def _points(name: str, points: Sequence[tuple[int, float]], number: str, colour: str) -> dict[str, Any]:
    trace = diamonds(name, [step for step, _ in points], [value for _, value in points], colour, 7)
    return trace | {"hovertemplate": f"{name}, step %{{x:,}}: %{{y:{number}}}<extra></extra>"}


def _panels_json(history: RunHistory, panels: Sequence[_Panel], revision: str, label: str) -> str:
    """Return small charts, two a row, as one figure."""
    rows = math.ceil(len(panels) / 2)
    # Heights in pixels: of a chart, and between two of them.
    chart, gap = 114, 57
    inner = rows * chart + (rows - 1) * gap
    traces: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    layout = chart_layout(inner + 45, revision)
    layout |= {"showlegend": False, "margin": {"l": 40, "r": 12, "t": 22, "b": 24}, "annotations": annotations}
    for position, panel in enumerate(panels):
        suffix = "" if position == 0 else str(position + 1)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        x_domain = [0.0, 0.44] if position % 2 == 0 else [0.56, 1.0]
        top = 1 - (position // 2) * (chart + gap) / inner
        y_domain = [max(0.0, top - chart / inner), top]
        common = AXIS | {"domain": x_domain, "anchor": axes["yaxis"], "nticks": 5}
        layout[f"xaxis{suffix}"] = common | whole_steps(history)
        common = AXIS | {"domain": y_domain, "anchor": axes["xaxis"], "nticks": 4, "exponentformat": "e"}
        layout[f"yaxis{suffix}"] = common | dict(panel.y_axis)
        annotations.append(
            {
                "text": panel.title, "showarrow": False, "xref": "paper", "yref": "paper", "x": x_domain[0],
                "y": y_domain[1], "xanchor": "left", "yanchor": "bottom", "font": {"size": 13, "color": "var(--soft)"},
            }
        )  # fmt: skip
        traces += [trace | axes for trace in panel.traces]
        annotations += [text | {"xref": f"{axes['xaxis']} domain", "yref": axes["yaxis"]} for text in panel.labels]
    return figure_json(traces, layout, f"{label}: {', '.join(panel.title for panel in panels)}.")
