"""Curves of runs as Plotly figures: pure functions from a history to the JSON that `ui.chart` draws."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from engine.runs.history.events import EvalData
from engine.runs.history.run_history import RunHistory
from engine.runs.history.steps import StepColumn, thin
from ui.chart import figure_json
from ui.views.quantities import GIB

Array = npt.NDArray[np.float64]
Against = Literal["step", "tokens", "time"]

# What a screen can show: a curve is some 900 pixels wide, and each pixel may need its lowest and its highest point.
_POINTS = 1200
_SMALL_POINTS = 300
_FEW_STEPS = 6
_LOSS_HEIGHT = 350
_SMALL_HEIGHT = 330

# Colours and dashes together, so that curves are told apart without colour too.
SERIES = (
    ("var(--series-blue)", "solid"),
    ("var(--series-vermilion)", "dash"),
    ("var(--series-green)", "dot"),
    ("var(--series-purple)", "dashdot"),
    ("var(--series-orange)", "longdash"),
    ("var(--series-sky)", "solid"),
    ("var(--series-grey)", "dash"),
    ("var(--series-ink)", "dot"),
)
COMPARED_AT_MOST = len(SERIES)


class ChartView(NamedTuple):
    """How a person wants to see the curve."""

    smoothing: float = 0.9  # weight of the past, as `smooth` takes it
    log_axis: bool = False
    against: Against = "step"


class NamedHistory(NamedTuple):
    """One of several runs in one chart."""

    name: str
    history: RunHistory


def loss_figure(history: RunHistory, view: ChartView, revision: str) -> str:
    """Training loss raw and smoothed, held-out points, and the base model's loss as a line.

    Args:
        history: The run so far.
        view: Smoothing and axis.
        revision: Stays the same as long as zoom should; the run's id.
    """
    traces: list[dict[str, Any]] = []
    steps, losses = _finite(history, "step", "loss")
    if len(steps):
        traces += _train_traces(steps, losses, _smoothed(history, view.smoothing) if view.smoothing > 0 else None)
    held_out = _held_out(history)
    if held_out:
        traces.append(_held_out_trace(held_out))
    base = history.base_eval
    annotations = []
    if base is not None and math.isfinite(base.eval_loss):
        traces.append(_level_trace([0, max(history.last_step, 1)], base.eval_loss, "base model"))
        annotations.append(_level_label(base.eval_loss, f"base model {base.eval_loss:.2f}", log=view.log_axis))
    layout = _layout(_LOSS_HEIGHT, f"{revision}:{view.log_axis}")
    layout["xaxis"] |= {"title": {"text": "step"}, "rangemode": "tozero", **_whole_steps(history)}
    layout["yaxis"] |= {"title": {"text": "loss"}, "type": "log" if view.log_axis else "linear"}
    layout["annotations"] = annotations
    return figure_json(traces, layout, _loss_words(history))


def small_figures(history: RunHistory, predicted_bytes: int | None, revision: str) -> str:
    """Learning rate, gradient norm, tokens per second and memory, as four small charts in one figure.

    Args:
        history: The run so far.
        predicted_bytes: Peak of what a step reports as its memory; None draws no line.
        revision: Stays the same as long as zoom should; the run's id.
    """
    charts: tuple[tuple[str, StepColumn, float, str], ...] = (
        ("Learning rate", "learning_rate", 1, ".1e"),
        ("Gradient norm", "grad_norm", 1, ".3g"),
        ("Tokens per second", "tokens_per_second", 1, ",.0f"),
        ("Memory, GiB", "memory_bytes", GIB, ".2f"),
    )
    traces: list[dict[str, Any]] = []
    layout = _layout(_SMALL_HEIGHT, revision) | {"showlegend": False, "margin": {"l": 8, "r": 8, "t": 22, "b": 24}}
    layout["annotations"] = []
    del layout["xaxis"], layout["yaxis"]
    for position, (title, column, unit, number) in enumerate(charts):
        axis = "" if position == 0 else str(position + 1)
        left, upper = position % 2 == 0, position < 2
        x_domain = [0.0, 0.465] if left else [0.535, 1.0]
        y_domain = [0.6, 1.0] if upper else [0.0, 0.4]
        layout[f"xaxis{axis}"] = (
            _axis() | {"domain": x_domain, "anchor": f"y{axis}", "nticks": 5} | _whole_steps(history)
        )
        layout[f"yaxis{axis}"] = _axis() | {
            "domain": y_domain, "anchor": f"x{axis}", "nticks": 4, "automargin": True,
            "rangemode": "tozero", "exponentformat": "e",
        }  # fmt: skip
        layout["annotations"].append(
            {
                "text": title, "showarrow": False, "xref": "paper", "yref": "paper", "x": x_domain[0], "y": y_domain[1],
                "xanchor": "left", "yanchor": "bottom", "font": {"size": 13, "color": "var(--soft)"},
            }
        )  # fmt: skip
        steps, values = _finite(history, "step", column)
        values = values if unit == 1 else values / unit
        kept = thin(steps, values, _SMALL_POINTS)
        traces.append(
            {
                "type": "scatter", "mode": "lines" if len(kept) > 1 else "markers", "name": title,
                "x": _integers(steps[kept]), "y": _numbers(values[kept]), "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                "line": {"color": "var(--series-blue)", "width": 1.5},
                "hovertemplate": f"step %{{x:,}}: %{{y:{number}}}<extra></extra>",
            }
        )  # fmt: skip
        if column == "memory_bytes" and predicted_bytes:
            level = _level_trace([0, max(history.last_step, 1)], predicted_bytes / GIB, "predicted")
            traces.append(level | {"xaxis": f"x{axis}", "yaxis": f"y{axis}"})
            label = _level_label(predicted_bytes / GIB, f"predicted peak {predicted_bytes / GIB:.2f}", log=False)
            layout["annotations"].append(label | {"xref": f"x{axis} domain", "yref": f"y{axis}"})
    return figure_json(traces, layout, "Learning rate, gradient norm, tokens per second and memory, by step.")


def overlay_figure(runs: Sequence[NamedHistory], view: ChartView) -> str:
    """Smoothed training loss and held-out points of several runs, each in a colour and a dash of its own."""
    traces: list[dict[str, Any]] = []
    words = {"step": "step", "tokens": "tokens seen", "time": "minutes of training"}[view.against]
    for (name, history), (colour, dash) in zip(runs, SERIES, strict=False):
        _, losses = _finite(history, "step", "loss")
        places = _places(history, view.against)
        if len(losses):
            curve = _smoothed(history, view.smoothing)
            kept = thin(places, curve, _POINTS // 2)
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "name": name, "legendgroup": name,
                    "x": _numbers(places[kept]), "y": _numbers(curve[kept]),
                    "line": {"color": colour, "width": 2, "dash": dash},
                    "hovertemplate": "%{y:.3f}",
                }
            )  # fmt: skip
        held_out = _held_out(history)
        if held_out:
            steps = np.array([point.step for point in held_out], dtype=np.float64)
            traces.append(
                {
                    "type": "scatter", "mode": "markers", "name": f"{name}, held-out", "legendgroup": name,
                    "showlegend": False, "x": _numbers(_places_of(history, steps, view.against)),
                    "y": _numbers([point.eval_loss for point in held_out]),
                    "marker": {"color": colour, "size": 8, "symbol": "diamond"}, "cliponaxis": False,
                    "hovertemplate": "held-out %{y:.3f}",
                }
            )  # fmt: skip
    layout = _layout(_LOSS_HEIGHT, f"{view.against}:{view.log_axis}")
    layout["xaxis"] |= {"title": {"text": words}, "rangemode": "tozero"}
    layout["yaxis"] |= {"title": {"text": "loss"}, "type": "log" if view.log_axis else "linear"}
    names = ", ".join(name for name, _ in runs)
    return figure_json(traces, layout, f"Smoothed training loss and held-out loss of {names}, by {words}.")


def _train_traces(steps: Array, losses: Array, curve: Array | None) -> list[dict[str, Any]]:
    raw = thin(steps, losses, _POINTS)
    traces = [
        {
            "type": "scatter", "mode": "lines" if len(raw) > 1 else "markers", "name": "train, each step",
            "x": _integers(steps[raw]), "y": _numbers(losses[raw]),
            "line": {"color": "var(--series-blue-thin)", "width": 1}, "marker": {"color": "var(--series-blue)"},
            "hovertemplate": "%{y:.3f}",
        }
    ]  # fmt: skip
    if curve is not None and len(steps) > 1:
        kept = thin(steps, curve, _POINTS // 2)
        traces.append(
            {
                "type": "scatter", "mode": "lines", "name": "train, smoothed",
                "x": _integers(steps[kept]), "y": _numbers(curve[kept]),
                "line": {"color": "var(--series-blue)", "width": 2.5}, "hovertemplate": "%{y:.3f}",
            }
        )  # fmt: skip
    return traces


def _held_out_trace(points: Sequence[EvalData]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines+markers", "name": "held-out",
        "x": [point.step for point in points], "y": _numbers([point.eval_loss for point in points]),
        "line": {"color": "var(--series-vermilion)", "width": 1.5, "dash": "dot"},
        "marker": {"color": "var(--series-vermilion)", "size": 9, "symbol": "diamond"}, "hovertemplate": "%{y:.3f}",
        "cliponaxis": False,
    }  # fmt: skip


def _level_trace(ends: list[int], value: float, name: str) -> dict[str, Any]:
    """A horizontal line that the axis makes room for."""
    return {
        "type": "scatter", "mode": "lines", "name": name, "showlegend": False, "x": ends, "y": _numbers([value, value]),
        "line": {"color": "var(--series-grey)", "width": 1.5, "dash": "dash"}, "hoverinfo": "skip",
    }  # fmt: skip


def _level_label(value: float, text: str, *, log: bool) -> dict[str, Any]:
    return {
        "text": text, "showarrow": False, "xref": "paper", "x": 1, "xanchor": "right", "yref": "y",
        "y": math.log10(value) if log and value > 0 else value, "yanchor": "bottom",
        "font": {"size": 12, "color": "var(--soft)"},
    }  # fmt: skip


def _layout(height: int, revision: str) -> dict[str, Any]:
    return {
        "height": height,
        "autosize": True,
        "margin": {"l": 52, "r": 10, "t": 10, "b": 42},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif",
            "size": 12.5,
            "color": "var(--soft)",
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "var(--ink)"}},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--rule)", "font": {"color": "var(--ink)"}},
        "uirevision": revision,
        "xaxis": _axis(),
        "yaxis": _axis(),
    }


def _whole_steps(history: RunHistory) -> dict[str, Any]:
    """Nobody takes half a step: with few of them, the axis would show fractions."""
    return {"dtick": 1} if 0 < history.last_step < _FEW_STEPS else {}


def _axis() -> dict[str, Any]:
    return {"gridcolor": "var(--rule)", "zeroline": False, "ticks": "", "automargin": True}


def _finite(history: RunHistory, x: StepColumn, y: StepColumn) -> tuple[Array, Array]:
    """Both columns without the points that have no finite value."""
    places, values = history.steps.column(x), history.steps.column(y)
    # A million points are neither looked through nor copied where all of them are known.
    if history.steps.is_complete(x) and history.steps.is_complete(y):
        return places, values
    known = np.isfinite(values) & np.isfinite(places)
    return places[known], values[known]


def _smoothed(history: RunHistory, weight: float) -> Array:
    """The curve through the losses that `_finite` gives."""
    curve = history.steps.smoothed_losses(weight)
    return curve if history.steps.is_complete("loss") else curve[np.isfinite(curve)]


def _places(history: RunHistory, against: Against) -> Array:
    known = np.isfinite(history.steps.losses)
    if against == "time":
        times = history.steps.column("time")[known]
        return (times - times[0]) / 60 if len(times) else times
    return history.steps.column("tokens" if against == "tokens" else "step")[known]


def _places_of(history: RunHistory, steps: Array, against: Against) -> Array:
    """Where on the axis the held-out measurements fall."""
    known = history.steps.steps[np.isfinite(history.steps.losses)]
    if against == "step" or not len(known):
        return steps
    placed: Array = np.interp(steps, known, _places(history, against))
    return placed


def _held_out(history: RunHistory) -> list[EvalData]:
    """The curve of held-out losses; it starts at the base model's where that was measured by the same means."""
    return [point for point in history.evals if math.isfinite(point.eval_loss) and not point.adapter_disabled]


def _integers(values: Array) -> list[int]:
    return [int(value) for value in values]


def _numbers(values: Sequence[float] | Array) -> list[float]:
    """Five significant digits: more than a screen shows, and half the bytes on the wire."""
    return [float(f"{value:.5g}") for value in values]


def _loss_words(history: RunHistory) -> str:
    words = f"Loss by step, {len(history.steps):,} points"
    loss = history.steps.last("loss")
    if loss is not None:
        words += f"; training loss now {loss:.2f}"
    tuned = history.tuned_evals
    if tuned:
        words += f", held-out loss {tuned[-1].eval_loss:.2f}"
    if history.base_eval is not None:
        words += f", base model {history.base_eval.eval_loss:.2f}"
    return words + "."
