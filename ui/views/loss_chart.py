"""The loss of runs: Plotly figures as the JSON that `loratory.ui.components.chart` draws, and SVG for pages without JavaScript.

Figures are plain dictionaries, checked with Plotly's figure objects by the tests: building the objects costs 46 ms a figure,
0.44 s the first time and 17 MB, where a curve of a million steps is drawn in 80 ms, every two seconds.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from loratory.engine.runs.history.events import EvalData
from loratory.engine.runs.history.run_history import RunHistory
from loratory.engine.runs.history.steps import Array, StepColumn, thin
from loratory.engine.runs.usage import Cost
from loratory.ui.views.html import plural, size

# A curve is about 900 pixels wide, and each pixel may need its lowest and highest point.
_POINTS = 1200
_MARKS = 60  # of a kind, at most about

# Colours, and dashes as SVG has them: curves must differ without colour too.
SERIES = (
    ("var(--series-blue)", "solid"),
    ("var(--series-vermilion)", "9px,5px"),
    ("var(--series-green)", "2px,3px"),
    ("var(--series-purple)", "10px,3px,2px,3px"),
    ("var(--series-orange)", "18px,5px"),
    ("var(--series-violet)", "5px,2px"),
    ("var(--series-grey)", "2px,7px"),
    ("var(--series-ink)", "12px,3px,2px,3px,2px,3px"),
)
COMPARED_AT_MOST = len(SERIES)


class ChartView(NamedTuple):
    """How the curve is shown."""

    smoothing: float = 0.9  # weight of the past, as `smooth` takes it
    log_axis: bool = False


def loss_figure(history: RunHistory, view: ChartView, revision: str, cost: Cost | None = None) -> str:
    """Return training loss raw and smoothed, held-out points, checkpoints, and the base model's loss; empty without any.

    The revision, such as the run's id, stays the same as long as zoom should.
    """
    if not len(history.steps) and not history.evals:
        return ""
    traces: list[dict[str, Any]] = []
    steps, losses = finite(history, "step", "loss")
    indexes = thin(steps, losses, _POINTS)
    if len(steps):
        trace = scatter("train, each step", whole(steps[indexes]), losses[indexes], "var(--series-blue-thin)", width=1)
        mode = "lines" if len(indexes) > 1 else "markers"
        hover = "loss %{y:.3f}<br>%{customdata}<extra></extra>"  # chart.js has the other axes
        traces.append(trace | {"mode": mode, "marker": {"color": "var(--series-blue)"}, "hovertemplate": hover})
    if len(steps) > 1 and view.smoothing > 0:
        curve = smooth_losses(history, view.smoothing)[indexes]
        trace = scatter("train, smoothed", whole(steps[indexes]), curve, "var(--series-blue)", width=2.5)
        traces.append(trace | {"hovertemplate": "smoothed %{y:.3f}<extra></extra>"})
    traces += _held_out(history, "held-out", "var(--series-vermilion)", 9)
    layout = _loss_layout(view, revision)
    base = history.base_eval
    if base is not None and math.isfinite(base.eval_loss) and base.reward is None:
        # A preference run may start from another run's adapter.
        name = "before training" if base.metrics else "base model"
        trace, label = level(history, base.eval_loss, name, f"{name} {base.eval_loss:.2f}", log=view.log_axis)
        traces.append(trace)
        layout["annotations"] = [label]
    marks = _marks(history)
    if marks["x"]:
        layout |= {"yaxis2": {"domain": [0, 0.09], "range": [-0.5, 1.5], "visible": False, "fixedrange": True}}
        layout["yaxis"] |= {"domain": [0.11, 1]}
        traces.append(marks)
    layout["xaxis"] |= whole_steps(history) | {"anchor": "y2" if marks["x"] else "y"}
    traces = [trace | {"meta": 0} for trace in traces]
    return figure_json(traces, layout, loss_words(history), [_scale(history, steps[indexes], cost)])


def overlay_figure(runs: Sequence[tuple[str, RunHistory, Cost | None]], view: ChartView) -> str:
    """Return smoothed training loss and held-out points of named runs, with a colour and dash each."""
    traces: list[dict[str, Any]] = []
    scales = []
    for number, ((name, history, cost), (colour, dash)) in enumerate(zip(runs, SERIES, strict=False)):
        steps, _ = finite(history, "step", "loss")
        curve = smooth_losses(history, view.smoothing)
        indexes = thin(steps, curve, _POINTS // 2)
        scales.append(_scale(history, steps[indexes], cost))
        x, y = whole(steps[indexes]), curve[indexes]
        curves = [scatter(name, x, y, colour, width=2, dash=dash)] if len(steps) else []
        points = _held_out(history, f"{name}, held-out", colour, 8)
        curves += [trace | {"mode": "markers", "showlegend": False} for trace in points]
        traces += [trace | {"legendgroup": str(number), "meta": number} for trace in curves]
    label = f"Smoothed training loss and held-out loss of {', '.join(name for name, _, _ in runs)}."
    layout = _loss_layout(view, "")
    layout["height"] += 20 * len(runs)  # for the names above the curves where the page is narrow
    return figure_json(traces, layout, label, scales)


def figure_json(traces: list[dict[str, Any]], layout: dict[str, Any], label: str, scales: Sequence[object] = ()) -> str:
    """Return a figure as the browser draws it; `label` describes it for those who do not see it.

    Colours may be CSS variables such as `var(--series-blue)`; the layout has its `height` in pixels. With scales, a person
    chooses the x axis among those that all have: each has where its steps are, by the title of the axis, and a trace has
    the number of its scale as `meta`.
    """
    chart = {"data": traces, "layout": layout, "label": label, "scales": scales}
    return json.dumps(chart, separators=(",", ":"), allow_nan=False)


def _scale(history: RunHistory, steps: Array, cost: Cost | None) -> dict[str, list[float]]:
    """Return where logged steps are on each x axis, from 0 on; costs are in proportion to time."""
    rows = np.searchsorted(history.steps.steps, steps)
    epochs, tokens = history.steps.column("epoch")[rows], history.steps.column("tokens")[rows]
    minutes = history.seconds_of_training(rows) / 60
    columns = {"step": steps, "epoch": epochs, "tokens seen": tokens, "minutes of training": minutes}
    if cost is not None and len(minutes) and minutes[-1] > 0:
        columns[f"cost, {cost.currency}".rstrip(", ")] = minutes * (cost.amount / minutes[-1])
    return {title: [0.0, *_numbers(np.nan_to_num(values))] for title, values in columns.items()}


def _marks(history: RunHistory) -> dict[str, Any]:
    """Return checkpoints, and above them resumes, as a curve between the others and the x axis."""
    saved = history.checkpoints[:: len(history.checkpoints) // _MARKS + 1]
    marks = [(point.step, 0, "square", f"checkpoint, {size(point.size_bytes)}") for point in saved]
    marks += [(step, 1, "triangle-right", f"resumed from step {step:,}") for step in history.resumes]
    steps, rows, symbols, texts = map(list, zip(*sorted(marks), strict=True)) if marks else ([], [], [], [])
    trace = scatter("checkpoints and resumes", steps, rows, "var(--series-green)") | {"mode": "markers", "yaxis": "y2"}
    marker = {"symbol": symbols, "size": 8, "color": "var(--series-green)"}
    return trace | {"marker": marker, "text": texts, "hovertemplate": "%{text}<extra></extra>", "showlegend": False}


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


def _held_out(history: RunHistory, name: str, colour: str, size: int) -> list[dict[str, Any]]:
    points = held_out_points(history)
    text = [f"{plural(point.rows, 'row')}, {point.seconds:,.1f} s" for point in points]
    trace = diamonds(name, [point.step for point in points], [point.eval_loss for point in points], colour, size)
    hover = {"text": text, "hovertemplate": "held-out %{y:.3f} (%{text})<extra></extra>"}
    return [trace | hover] if points else []


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


# Margins are fixed: to measure labels takes Plotly two thirds of the time of a chart, in which the page answers nothing.
AXIS: dict[str, Any] = {"gridcolor": "var(--rule)", "zeroline": False, "ticks": "", "ticklabeloverflow": "allow"}


def chart_layout(height: int, revision: str) -> dict[str, Any]:
    """Return the layout of all charts."""
    return {
        "height": height, "autosize": True, "margin": {"l": 58, "r": 14, "t": 10, "b": 42}, "uirevision": revision,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12.5, "color": "var(--soft)"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "var(--ink)"}},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--rule)", "font": {"color": "var(--ink)"}},
    }  # fmt: skip


def _loss_layout(view: ChartView, revision: str) -> dict[str, Any]:
    x_axis = AXIS | {"title": {"text": "step"}, "rangemode": "tozero"}
    # Short figures where Plotly would print as many digits as a narrow range takes.
    y_axis = AXIS | {"title": {"text": "loss"}, "type": "log" if view.log_axis else "linear", "tickformat": ".3~g"}
    return chart_layout(350, f"{revision}:{view.log_axis}") | {"xaxis": x_axis, "yaxis": y_axis}


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


def held_out_points(history: RunHistory) -> list[EvalData]:
    """Return held-out losses; they begin with the base model's where that was measured by the same means.

    Held-out rewards have a chart of their own.
    """
    points = (point for point in history.evals if point.reward is None and not point.adapter_disabled)
    return [point for point in points if math.isfinite(point.eval_loss)]


def whole(steps: Array) -> list[int]:
    """Return steps for the x axis."""
    integers: list[int] = steps.astype(int).tolist()
    return integers


def _numbers(values: Sequence[float] | Array) -> list[float]:
    """Return five significant digits: more than a screen shows, and half the bytes on the wire."""
    array = np.asarray(values, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        places = 4 - np.floor(np.log10(np.abs(array)))
    # Exact powers of ten, so a quotient has no more digits than the number.
    whole, part = 10.0 ** np.clip(-places, 0, 22), 10.0 ** np.clip(places, 0, 22)
    numbers: list[float] = (np.round(array / whole * part) / part * whole).tolist()
    return numbers


def render_loss_svg(history: RunHistory, width: int, height: int) -> str:
    """Return training loss raw and smoothed, held-out points and the base model's loss; empty before the second step.

    The words in it have their size at a width of `width` pixels.
    """
    steps, losses = finite(history, "step", "loss")
    if len(steps) < 2:
        return ""
    curve, held_out = smooth_losses(history, ChartView().smoothing), held_out_points(history)
    base = [point.eval_loss for point in (history.base_eval,) if point is not None and point.reward is None]
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
    tips = ((x(point.step), y(point.eval_loss) - 5) for point in held_out)
    parts += [f'<path class="point" d="M{across:.1f} {down:.1f}l5 5-5 5-5-5z"/>' for across, down in tips]
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
    if base is not None and tuned and base.reward is None:
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
