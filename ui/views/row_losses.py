"""Losses of rows, base against tuned: a picture, and the rows that stand out with their tokens."""

from collections.abc import Sequence
from html import escape

from loratory.engine.evaluation.job import WORSE_BY, EvaluationResult, RowLoss
from loratory.ui.views import html

ROW_PREFIX, SOURCE_PREFIX = "row:", "measure:"
_SIDE = 300  # of the square in the picture's own units
_EDGE = 34  # for the axes


def render_row_losses(result: EvaluationResult) -> str:
    """Return a point for each row, and the rows that stand out; a row of theirs, or an answered one, can be picked."""
    losses = result.row_losses
    if len(losses) < 2:
        return ""
    answered_rows = {row.row for row in result.answered_rows}
    better_count = sum(loss.tuned < loss.base - WORSE_BY for loss in losses)
    worse_count = sum(map(_is_worse, losses))
    sentence = f"{better_count:,} of {html.plural(len(losses), 'row')} improved, {worse_count:,} became worse."
    title = f"Loss by row{f' of {escape(result.source)}' if result.source else ''}"
    return f"<h3>{title}</h3>{html.lead(sentence)}{_picture(losses, answered_rows)}{_lists(result)}"


def _is_worse(loss: RowLoss) -> bool:
    return loss.tuned > loss.base + WORSE_BY


def _picture(losses: Sequence[RowLoss], answered_rows: set[int]) -> str:
    """Return base on the x axis and tuned on the y axis; below the diagonal, training helped."""
    most = max(max(loss.base, loss.tuned) for loss in losses) or 1.0
    points = "".join(_point(loss, _SIDE / most, is_answered=loss.row in answered_rows) for loss in losses)
    label = f"Loss of {len(losses):,} rows: base model from left to right, tuned model from bottom to top."
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


def _lists(result: EvaluationResult) -> str:
    """Return the rows that stand out; the script `row_tokens` shows the tokens of the one that is picked."""
    prefix, tables = "" if result.source else ROW_PREFIX, ""
    for name, rows in result.lists.items():
        lines = []
        for row in rows:
            tokens = escape(row.model_dump_json(include={"pieces", "tokens"}), quote=True)
            answer = escape(html.shorten("".join(row.pieces), 40))
            cells = (f"{row.row + 1:,}", answer, f"{row.base:.3f}", f"{row.tuned:.3f}")
            lines.append(html.Row(cells, f'{html.pickable(f"{prefix}{row.row}", chosen=None)} data-tokens="{tokens}"'))
        numbers = map(html.Column.of_numbers, ("Base", "Tuned"))
        tables += html.table((html.Column.of_numbers("Row"), "Answer", *numbers), lines, caption=name.capitalize())
    return f'<div class="beside">{tables}</div><div class="row-tokens" role="region" aria-live="polite" aria-label="Tokens"></div>'


def render_sources(sets: Sequence[str]) -> str:
    """Return buttons that measure all rows of the run's dataset, or of a set."""
    buttons = [html.pick_button(SOURCE_PREFIX, "the run's dataset")]
    buttons += [html.pick_button(f"{SOURCE_PREFIX}{name}", name) for name in sets]
    return html.toolbar("Measure all rows", f"Measure all rows of {' · '.join(buttons)}", "small")
