"""The loss of runs: Plotly figures as the JSON that `loratory.ui.components.chart` draws, and SVG for pages without JavaScript.

Figures are plain dictionaries, checked with Plotly's figure objects by the tests: building the objects costs 46 ms a figure,
0.44 s the first time and 17 MB, where a curve of a million steps is drawn in 80 ms, every two seconds.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from loratory.engine.runs.history.events import EvalData
from loratory.engine.runs.history.run_history import RunHistory
from loratory.engine.runs.history.steps import StepColumn, thin

Array = npt.NDArray[np.float64]
Against = Literal["step", "tokens", "time"]

# A curve is about 900 pixels wide, and each pixel may need its lowest and highest point.
_POINTS = 1200

# Colours and dashes: curves must differ without colour too.
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
    """How the curve is shown."""

    smoothing: float = 0.9  # weight of the past, as `smooth` takes it
    log_axis: bool = False
    against: Against = "step"


def loss_figure(history: RunHistory, view: ChartView, revision: str) -> str:
    """Return training loss raw and smoothed, held-out points, and the base model's loss as a line; empty without any.

    The revision, such as the run's id, stays the same as long as zoom should.
    """
    if not len(history.steps) and not history.evals:
        return ""
    traces: list[dict[str, Any]] = []
    steps, losses = finite(history, "step", "loss")
    if len(steps):
        raw = thin(steps, losses, _POINTS)
        trace = scatter("train, each step", whole(steps[raw]), losses[raw], "var(--series-blue-thin)", width=1)
        mode = "lines" if len(raw) > 1 else "markers"
        traces.append(trace | {"mode": mode, "marker": {"color": "var(--series-blue)"}})
    if len(steps) > 1 and view.smoothing > 0:
        curve = smooth_losses(history, view.smoothing)
        indexes = thin(steps, curve, _POINTS // 2)
        traces.append(
            scatter("train, smoothed", whole(steps[indexes]), curve[indexes], "var(--series-blue)", width=2.5)
        )
    held_out = held_out_points(history)
    if held_out:
        points = [point.step for point in held_out], [point.eval_loss for point in held_out]
        traces.append(diamonds("held-out", *points, "var(--series-vermilion)", 9))
    layout = _loss_layout(view, "step", f"{revision}:{view.log_axis}")
    base = history.base_eval
    if base is not None and math.isfinite(base.eval_loss):
        # A preference run may start from another run's adapter.
        name = "before training" if base.metrics else "base model"
        trace, label = level(history, base.eval_loss, name, f"{name} {base.eval_loss:.2f}", log=view.log_axis)
        traces.append(trace)
        layout["annotations"] = [label]
    layout["xaxis"] |= whole_steps(history)
    return figure_json(traces, layout, loss_words(history))


def overlay_figure(runs: Sequence[tuple[str, RunHistory]], view: ChartView) -> str:
    """Return smoothed training loss and held-out points of named runs, with a colour and dash each."""
    traces: list[dict[str, Any]] = []
    x_title = {"step": "step", "tokens": "tokens seen", "time": "minutes of training"}[view.against]
    for (name, history), (colour, dash) in zip(runs, SERIES, strict=False):
        steps, losses = finite(history, "step", "loss")
        positions = _positions(history, view.against)
        if len(losses):
            curve = smooth_losses(history, view.smoothing)
            indexes = thin(positions, curve, _POINTS // 2)
            trace = scatter(name, _numbers(positions[indexes]), curve[indexes], colour, width=2, dash=dash)
            traces.append(trace | {"legendgroup": name})
        held_out = held_out_points(history)
        if held_out:
            points: Array = np.array([point.step for point in held_out], dtype=np.float64)
            if view.against != "step" and len(steps):
                points = np.interp(points, steps, positions)
            losses_of_points = [point.eval_loss for point in held_out]
            trace = diamonds(f"{name}, held-out", _numbers(points), losses_of_points, colour, 8)
            hover = {"hovertemplate": "held-out %{y:.3f}"}
            traces.append(trace | {"mode": "markers", "legendgroup": name, "showlegend": False} | hover)
    layout = _loss_layout(view, x_title, f"{view.against}:{view.log_axis}")
    names = ", ".join(name for name, _ in runs)
    return figure_json(traces, layout, f"Smoothed training loss and held-out loss of {names}, by {x_title}.")


def figure_json(traces: list[dict[str, Any]], layout: dict[str, Any], label: str) -> str:
    """Return a figure as the browser draws it; `label` describes it for those who do not see it.

    Colours may be CSS variables such as `var(--series-blue)`; the layout has its `height` in pixels.
    """
    return json.dumps({"data": traces, "layout": layout, "label": label}, separators=(",", ":"), allow_nan=False)


def scatter(
    name: str, x: list[Any], y: Sequence[float] | Array, colour: str, *, width: float = 1.5, dash: str = "solid"
) -> dict[str, Any]:
    """Return a curve."""
    return {
        "type": "scatter", "mode": "lines", "name": name, "x": x, "y": _numbers(y),
        "line": {"color": colour, "width": width, "dash": dash}, "hovertemplate": "%{y:.3f}",
    }  # fmt: skip


def diamonds(name: str, x: list[Any], y: Sequence[float], colour: str, size: int) -> dict[str, Any]:
    """Return measurements on held-out rows, of so many pixels."""
    marker = {"color": colour, "size": size, "symbol": "diamond"}
    return scatter(name, x, y, colour, dash="dot") | {"mode": "lines+markers", "marker": marker, "cliponaxis": False}


def level(
    history: RunHistory, value: float, name: str, text: str, *, log: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a horizontal line that the axis makes room for, and its label."""
    trace = scatter(name, [0, max(history.last_step, 1)], [value, value], "var(--series-grey)", dash="dash")
    del trace["hovertemplate"]
    return trace | {"showlegend": False, "hoverinfo": "skip"}, label_at(value, text, log=log)


def label_at(value: float, text: str, *, log: bool = False) -> dict[str, Any]:
    """Return a text at the right end of a curve."""
    return {
        "text": text, "showarrow": False, "xref": "paper", "x": 1, "xanchor": "right", "yref": "y",
        "y": math.log10(value) if log and value > 0 else value, "yanchor": "bottom",
        "font": {"size": 12, "color": "var(--soft)"},
    }  # fmt: skip


AXIS: dict[str, Any] = {"gridcolor": "var(--rule)", "zeroline": False, "ticks": "", "automargin": True}


def chart_layout(height: int, revision: str) -> dict[str, Any]:
    """Return the layout of all charts."""
    return {
        "height": height, "autosize": True, "margin": {"l": 52, "r": 10, "t": 10, "b": 42}, "uirevision": revision,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12.5, "color": "var(--soft)"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "var(--ink)"}},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--rule)", "font": {"color": "var(--ink)"}},
    }  # fmt: skip


def _loss_layout(view: ChartView, x_title: str, revision: str) -> dict[str, Any]:
    x_axis = AXIS | {"title": {"text": x_title}, "rangemode": "tozero"}
    # Short figures where Plotly would print as many digits as a narrow range takes.
    y_axis = AXIS | {"title": {"text": "loss"}, "type": "log" if view.log_axis else "linear", "tickformat": ".3~g"}
    return chart_layout(350, revision) | {"xaxis": x_axis, "yaxis": y_axis}


def whole_steps(history: RunHistory) -> dict[str, Any]:
    """Return an axis of whole numbers where a few steps would make it show fractions."""
    return {"dtick": 1} if 0 < history.last_step < 6 else {}


def finite(history: RunHistory, x: StepColumn, y: StepColumn) -> tuple[Array, Array]:
    """Return both columns without the points that have no finite value."""
    positions, values = history.steps.column(x), history.steps.column(y)
    # Avoids copying a million points if all are finite.
    if history.steps.is_complete(x) and history.steps.is_complete(y):
        return positions, values
    is_finite = np.isfinite(values) & np.isfinite(positions)
    return positions[is_finite], values[is_finite]


def smooth_losses(history: RunHistory, weight: float) -> Array:
    """Return the smoothed training losses of the steps that `finite` returns."""
    curve = history.steps.smoothed_losses(weight)
    return curve if history.steps.is_complete("loss") else curve[np.isfinite(curve)]


def _positions(history: RunHistory, against: Against) -> Array:
    is_known = np.isfinite(history.steps.losses)
    if against == "time":
        times = history.steps.column("time")[is_known]
        return (times - times[0]) / 60 if len(times) else times
    return history.steps.column("tokens" if against == "tokens" else "step")[is_known]


def held_out_points(history: RunHistory) -> list[EvalData]:
    """Return held-out losses; they begin with the base model's where that was measured by the same means."""
    return [point for point in history.evals if math.isfinite(point.eval_loss) and not point.adapter_disabled]


def whole(steps: Array) -> list[int]:
    """Return steps for the x axis."""
    integers: list[int] = steps.astype(int).tolist()
    return integers


def _numbers(values: Sequence[float] | Array) -> list[float]:
    """Return five significant digits: more than a screen shows, and half the bytes on the wire."""
    return [float(f"{value:.5g}") for value in values]


def render_loss_svg(history: RunHistory, width: int, height: int) -> str:
    """Return training loss raw and smoothed, held-out points and the base model's loss; empty before the second step.

    Args:
        width: In pixels, at which the words in it have their size.
    """
    steps, losses = finite(history, "step", "loss")
    if len(steps) < 2:
        return ""
    curve, held_out = smooth_losses(history, ChartView().smoothing), held_out_points(history)
    base = [history.base_eval.eval_loss] if history.base_eval is not None else []
    values = [loss for loss in (*losses, *base, *(point.eval_loss for point in held_out)) if math.isfinite(loss)]
    levels, last_step = _ticks(min(values), max(values), 5), max(float(steps[-1]), float(history.total_steps or 0))
    left, right, top, bottom = 40, width - 12, 14, height - 26  # of the plot

    def x(step: float) -> float:
        return left + (right - left) * step / max(last_step, 1)

    def y(loss: float) -> float:
        return bottom - (bottom - top) * (loss - levels[0]) / (levels[-1] - levels[0])

    def line(css: str, steps: Sequence[float] | Array, losses: Sequence[float] | Array) -> str:
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in zip(steps, losses, strict=True))
        return f'<polyline class="{css}" points="{points}"/>'

    def text(x: float, y: float, anchor: str, content: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{content}</text>'

    raw, smooth = thin(steps, losses, width), thin(steps, curve, width // 2)
    parts = [
        line("grid", (0, last_step), (loss, loss)) + text(left - 8, y(loss) + 4, "end", f"{loss:g}") for loss in levels
    ]
    step_ticks = _ticks(0, last_step, 6 if width > 500 else 4)
    parts += [text(x(step), height - 6, "middle", f"{step:,.0f}") for step in step_ticks if step <= last_step]
    parts.append(line("each", steps[raw], losses[raw]))
    for loss in filter(math.isfinite, base):
        parts += [line("base", (0, last_step), (loss, loss)), text(right, y(loss) - 6, "end", f"base model {loss:.2f}")]
    if len(held_out) > 1:
        parts.append(line("held", [point.step for point in held_out], [point.eval_loss for point in held_out]))
    parts.append(line("smooth", steps[smooth], curve[smooth]))
    parts += [
        f'<path class="point" d="M{x(point.step):.1f} {y(point.eval_loss) - 5:.1f}l5 5-5 5-5-5z"/>'
        for point in held_out
    ]
    name = f"loss-{width}"
    return (
        f'<svg class="loss" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name} {name}-words">'
        f'<title id="{name}">Loss by step</title><desc id="{name}-words">{escape(loss_words(history))}</desc>'
        f"{''.join(parts)}</svg>"
    )


def loss_words(history: RunHistory) -> str:
    """Return a sentence that describes the curve."""
    steps, losses = finite(history, "step", "loss")
    if not len(steps):
        return "No steps logged yet."
    text = f"Training loss falls from {losses[0]:.2f} to {losses[-1]:.2f} in {int(steps[-1]):,} steps"
    if losses[-1] >= losses[0]:
        text = f"Training loss is {losses[0]:.2f} at first and {losses[-1]:.2f} at step {int(steps[-1]):,}"
    base, tuned = history.base_eval, history.tuned_evals
    if base is not None and tuned:
        newest = tuned[-1]
        text += f"; held-out loss {newest.eval_loss:.2f} at step {newest.step:,}, {base.eval_loss:.2f} before training"
    return f"{text}."


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round values around a range, at equal distances, at least two."""
    span = max(high - low, 1e-6)
    magnitude = 10 ** math.floor(math.log10(span / most))
    distance = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= most)
    first = math.floor(low / distance)
    count = max(1, math.ceil(high / distance - 1e-9) - first)
    return [round((first + number) * distance, 10) for number in range(count + 1)]
