"""The loss curve as SVG, for pages without JavaScript; colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from engine.runs.history.run_history import RunHistory
from engine.runs.history.steps import thin
from ui.views.html import Column, table
from ui.views.loss_chart import Array, finite, held_out_points, smooth_losses

_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 14, 26  # around the plot
_SMOOTHING = 0.9
_MOST_POINTS = 12


class _Plot(NamedTuple):
    """Where values are drawn."""

    width: int
    height: int
    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (self.width - _LEFT - _RIGHT) * step / max(self.last_step, 1)

    def y(self, loss: float) -> float:
        share = (min(max(loss, self.low), self.high) - self.low) / (self.high - self.low)
        return self.height - _BOTTOM - (self.height - _TOP - _BOTTOM) * share

    def line(self, steps: Array | Sequence[float], losses: Array | Sequence[float], css: str) -> str:
        points = " ".join(f"{self.x(step):.1f},{self.y(loss):.1f}" for step, loss in zip(steps, losses, strict=True))
        return f'<polyline class="{css}" points="{points}"/>'

    def level(self, css: str, loss: float) -> str:
        y = f"{self.y(loss):.1f}"
        return f'<line class="{css}" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y}" y2="{y}"/>'


def render_loss_svg(history: RunHistory, width: int, height: int) -> str:
    """Return training loss raw and smoothed, held-out points and the base model's loss; empty before the second step.

    Args:
        width: In pixels, at which the words in it have their size.
    """
    steps, losses = finite(history, "step", "loss")
    if len(steps) < 2:
        return ""
    curve = smooth_losses(history, _SMOOTHING)
    held_out = held_out_points(history)
    base = history.base_eval.eval_loss if history.base_eval is not None else math.nan
    values = [*map(float, losses), *(point.eval_loss for point in held_out), *([base] if math.isfinite(base) else [])]
    ticks = _ticks(min(values), max(values), 5)
    last_step = max(float(steps[-1]), float(history.total_steps or 0))
    plot = _Plot(width, height, last_step, ticks[0], ticks[-1])
    raw, smooth = thin(steps, losses, width), thin(steps, curve, width // 2)
    places = [point.step for point in held_out], [point.eval_loss for point in held_out]
    parts = [
        *(_level(plot, tick) for tick in ticks),
        *(_step(plot, step) for step in _ticks(0, last_step, 6 if width > 500 else 4) if step <= last_step),
        plot.line(steps[raw], losses[raw], "each"),
        _base(plot, base) if math.isfinite(base) else "",
        plot.line(*places, "held") if len(held_out) > 1 else "",
        plot.line(steps[smooth], curve[smooth], "smooth"),
        *(_diamond(plot.x(point.step), plot.y(point.eval_loss)) for point in held_out),
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
    words = f"Training loss falls from {losses[0]:.2f} to {losses[-1]:.2f} in {int(steps[-1]):,} steps"
    if losses[-1] >= losses[0]:
        words = f"Training loss is {losses[0]:.2f} at first and {losses[-1]:.2f} at step {int(steps[-1]):,}"
    base, tuned = history.base_eval, history.tuned_evals
    if base is not None and tuned:
        newest = tuned[-1]
        words += (
            f"; held-out loss {base.eval_loss:.2f} before training and {newest.eval_loss:.2f} at step {newest.step:,}"
        )
    return f"{words}."


def render_loss_table(history: RunHistory) -> str:
    """Return the curve as a table: the smoothed training loss, and the held-out loss where it was measured."""
    steps, _ = finite(history, "step", "loss")
    if not len(steps):
        return ""
    curve = smooth_losses(history, _SMOOTHING)
    every = max(1, math.ceil(len(steps) / _MOST_POINTS))
    training = {int(steps[place]): f"{curve[place]:.3f}" for place in [*range(0, len(steps), every), len(steps) - 1]}
    held_out = {point.step: f"{point.eval_loss:.3f}" for point in held_out_points(history)}
    rows = [(f"{step:,}", training.get(step, "–"), held_out.get(step, "–")) for step in sorted({*training, *held_out})]
    columns = [Column.of_numbers(title) for title in ("Step", "Training loss, smoothed", "Held-out loss")]
    return table(columns, rows)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round values around a range, at equal distances, at least two."""
    span = max(high - low, 1e-6)
    magnitude = 10 ** math.floor(math.log10(span / most))
    distance = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if span / (factor * magnitude) <= most)
    first = math.floor(low / distance)
    count = max(1, math.ceil(high / distance - 1e-9) - first)
    return [round((first + number) * distance, 10) for number in range(count + 1)]


def _level(plot: _Plot, loss: float) -> str:
    return (
        f'{plot.level("grid", loss)}<text x="{_LEFT - 8}" y="{plot.y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>'
    )


def _step(plot: _Plot, step: float) -> str:
    return f'<text x="{plot.x(step):.1f}" y="{plot.height - 6}" text-anchor="middle">{step:,.0f}</text>'


def _base(plot: _Plot, loss: float) -> str:
    words = f'<text x="{plot.width - _RIGHT}" y="{plot.y(loss) - 6:.1f}" text-anchor="end">base model {loss:.2f}</text>'
    return f"{plot.level('base', loss)}{words}"


def _diamond(x: float, y: float) -> str:
    return f'<path class="point" d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z"/>'
