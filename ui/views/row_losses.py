"""Losses of held-out rows, base against tuned: a picture, and the rows that became worse."""

from collections.abc import Sequence

from loratory.engine.evaluation.job import EvaluationResult, RowLoss
from loratory.ui.views import html

ROW_PREFIX = "row:"
_SIDE = 300  # of the square in the picture's own units
_EDGE = 34  # for the axes
_MOST_WORSE = 5
_WORSE_BY = 0.02  # nats: less is within the rounding of 16 bits


def render_row_losses(result: EvaluationResult) -> str:
    """Return a point for each row, and the rows whose loss rose most; an answered row can be picked."""
    losses = result.row_losses
    if len(losses) < 2:
        return ""
    answered_rows = {row.row for row in result.answered_rows}
    worse = sorted((loss for loss in losses if _is_worse(loss)), key=lambda loss: loss.base - loss.tuned)
    better_count = sum(loss.tuned < loss.base - _WORSE_BY for loss in losses)
    sentence = f"{better_count:,} of {html.plural(len(losses), 'row')} improved, {len(worse):,} became worse."
    return (
        f"<h3>Loss by row</h3>{html.lead(sentence)}"
        f'<div class="beside">{_picture(losses, answered_rows)}{_worst(worse[:_MOST_WORSE], answered_rows)}</div>'
    )


def _is_worse(loss: RowLoss) -> bool:
    return loss.tuned > loss.base + _WORSE_BY


def _picture(losses: Sequence[RowLoss], answered_rows: set[int]) -> str:
    """Return base on the x axis and tuned on the y axis; below the diagonal, training helped."""
    most = max(max(loss.base, loss.tuned) for loss in losses) or 1.0
    points = "".join(_point(loss, _SIDE / most, is_answered=loss.row in answered_rows) for loss in losses)
    label = f"Loss of {len(losses):,} held-out rows: base model from left to right, tuned model from bottom to top."
    middle = _EDGE + _SIDE / 2
    return (
        f'<svg class="row-losses" viewBox="0 0 {_SIDE + _EDGE + 8} {_SIDE + _EDGE + 8}" role="img" aria-label="{label}">'
        f'<path class="floor" d="M{_EDGE} 4V{_SIDE + 4}H{_SIDE + _EDGE}"/>'
        f'<path class="same" d="M{_EDGE} {_SIDE + 4}L{_SIDE + _EDGE} 4"/>{points}'
        f'<text x="{middle}" y="{_SIDE + 30}" text-anchor="middle">base model</text>'
        f'<text transform="translate(12 {_SIDE / 2}) rotate(-90)" text-anchor="middle">tuned model</text>'
        f'<text x="{_SIDE + _EDGE}" y="{_SIDE + 18}" text-anchor="end">{most:.1f}</text>'
        f'<text x="{_EDGE - 4}" y="14" text-anchor="end">{most:.1f}</text></svg>'
    )


def _point(loss: RowLoss, scale: float, *, is_answered: bool) -> str:
    """Return a circle, or a diamond where the row became worse: shape and place do not need the colour."""
    x, y = _EDGE + loss.base * scale, _SIDE + 4 - loss.tuned * scale
    pick = f' data-pick="{ROW_PREFIX}{loss.row}"' if is_answered else ""
    css, shape = "better", f"M{x - 3.5:.1f} {y:.1f}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0"
    if _is_worse(loss):
        css, shape = "worse", f"M{x - 5:.1f} {y:.1f}l5 -5 5 5 -5 5z"
    return f'<path class="{css}" d="{shape}"{pick}><title>Row {loss.row + 1:,}: {loss.base:.2f} → {loss.tuned:.2f}</title></path>'


def _worst(losses: Sequence[RowLoss], answered_rows: set[int]) -> str:
    if not losses:
        return html.small("No row became worse.")
    rows = [
        html.Row(
            (f"Row {loss.row + 1:,}", f"{loss.base:.3f}", f"{loss.tuned:.3f}"),
            html.pickable(f"{ROW_PREFIX}{loss.row}", chosen=None) if loss.row in answered_rows else "",
        )
        for loss in losses
    ]
    caption = "The rows that became worse by most; pick one with an answer to read it."
    return html.table(["Row", *map(html.Column.of_numbers, ("Base", "Tuned"))], rows, caption=caption)
