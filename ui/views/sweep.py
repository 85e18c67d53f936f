"""A sweep: its plan before it is queued; then its conclusion, and the losses of its combinations as a table and a chart."""

from collections.abc import Mapping
from html import escape
from typing import Any

from loratory.engine.memory.estimate import MemoryEstimate
from loratory.engine.runs.sweep_result import SweepResult
from loratory.ui.views import html
from loratory.ui.views.loss_chart import AXIS, chart_layout, figure_json, scatter
from loratory.ui.views.memory import VERDICTS


def render_sweep_plan(runs: int, seconds: float | None, estimates: Mapping[str, MemoryEstimate]) -> str:
    """Return number and time of the runs of a sweep, and the verdict on the largest of their estimates by name."""
    time = "time unknown until a similar run" if seconds is None else f"≈ {html.duration(seconds)} one by one"
    memory = "Memory unknown."
    if estimates:
        name, largest = max(estimates.items(), key=lambda item: item[1].needed_bytes)
        needed, free = html.gib(largest.needed_bytes), html.gib(largest.free_bytes)
        memory = f"{VERDICTS[largest.verdict]} The largest, {name}, needs {needed} of {free} GiB free."
    return html.small(f"{html.plural(runs, 'run')}, {time}. {memory}", role="status")


def render_sweep(result: SweepResult) -> str:
    """Return the conclusion of a sweep and a row for each combination: most seeds first, then the lowest loss."""
    columns = [html.Column("Combination"), *map(html.Column.of_numbers, ("Held-out loss", "Completed"))]
    rows = [
        (escape(c.label), str(c.loss or "–"), f"{len(c.losses)} of {len(c.run_ids)}")
        for c in sorted(result.combinations, key=lambda c: (-len(c.losses), c.loss.mean if c.loss else 0))
    ]
    use = html.pick_button(result.best.run_ids[0], "Use these settings", css="go") if result.best is not None else ""
    return f"<h2>Sweep</h2>{html.status(escape(result.conclusion))}{use}{html.table(columns, rows)}"


def sweep_figure(result: SweepResult) -> str:
    """Return the comparable losses: a line for one setting, a heat map for two, parallel sets for more; else empty."""
    seeds = result.best.losses.keys() if result.best is not None else ()
    losses = {tuple(c.values.values()): c.loss for c in result.combinations if c.loss and c.losses.keys() == seeds}
    if len(losses) < 2:
        return ""
    titles = [*(name.rpartition(".")[2] for name in result.combinations[0].values), "held-out loss"]
    means, texts = [loss.mean for loss in losses.values()], [*map(str, losses.values())]
    columns = [*map(list, zip(*losses, strict=True)), [f"{mean:.2f}" for mean in means]]
    scale = {"colorscale": [[0, "var(--series-blue)"], [1, "var(--rule)"]], "showscale": False}
    x_axis, y_axis = (AXIS | {"title": {"text": title}, "type": "category", "automargin": True} for title in titles[:2])
    if len(columns) == 2:
        bars = {"type": "data", "array": [loss.half_width or 0 for loss in losses.values()]}
        trace = scatter("", columns[0], means, "var(--series-blue)") | {"mode": "lines+markers", "error_y": bars}
        y_axis |= {"type": "linear", "tickformat": ".3~g"}
    elif len(columns) == 3:
        trace = {"type": "heatmap", "x": columns[0], "y": columns[1], "z": means, "text": texts, **scale}
        trace |= {"texttemplate": "%{text}", "hoverinfo": "x+y+text", "xgap": 2, "ygap": 2}
    else:
        sets: list[Any] = [{"label": title, "values": column} for title, column in zip(titles, columns, strict=True)]
        sets[-1]["categoryorder"] = "category descending"  # the lowest loss at the bottom
        trace = {"type": "parcats", "dimensions": sets, "line": {"color": means, **scale}, "domain": {"y": [0, 0.93]}}
    layout = chart_layout(320, result.id) | {"hovermode": "closest", "xaxis": x_axis, "yaxis": y_axis}
    return figure_json([trace], layout, result.conclusion)
