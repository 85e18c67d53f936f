"""All runs as a table: found, filtered, ordered, and picked to be looked at or compared."""

import time
from collections.abc import Collection, Sequence
from html import escape
from typing import NamedTuple

from engine.runs.run import State
from engine.runs.summary import RunSummary
from engine.runs.table import RunQuery, SortKey, best_by_held_out_loss
from ui.pick import pickable
from ui.views.quantities import duration, plural
from ui.views.run_view import short_name, state_mark

FILTERS: dict[str, frozenset[State]] = {
    "All": frozenset(),
    "Under way": frozenset({"submitted", "starting", "running", "stopping"}),
    "Waiting": frozenset({"queued"}),
    "Completed": frozenset({"completed"}),
    "Stopped": frozenset({"stopped"}),
    "Failed": frozenset({"failed", "interrupted"}),
}
ORDERS: dict[str, tuple[SortKey, bool]] = {
    "Newest first": ("created", True),
    "Lowest held-out loss first": ("eval_loss", False),
    "Longest first": ("seconds", True),
    "Fastest first": ("tokens_per_second", True),
    "Most memory first": ("peak_memory_bytes", True),
    "Largest on disk first": ("size_bytes", True),
    "By name": ("name", False),
    "Oldest first": ("created", False),
}

NO_RUNS = (
    '<div class="empty"><b>No runs yet</b>Every run that you start is kept here, with its settings, curves and result. '
    "Begin in the Model tab, or take a preset in Train.</div>"
)
NOTHING_FOUND = '<div class="empty"><b>No run is like that</b>Search for less, or show all states.</div>'

ANY_METHOD, ANY_MODEL = "All methods", "All models"
COMPARE_PREFIX = "compare:"
MORE = "more:"


class TableQuery(NamedTuple):
    """What a browser sent; nothing of it is believed."""

    words: object = ""
    state: object = "All"
    method: object = ""
    model: object = ""
    order: object = ""


def query_of(asked: TableQuery) -> RunQuery:
    """From what a browser sent; what is not known is left at its default."""
    states = next((states for name, states in FILTERS.items() if name == asked.state), frozenset())
    sort, descending = next((key for name, key in ORDERS.items() if name == asked.order), ("created", True))
    return RunQuery(
        words=str(asked.words or "")[:200],
        states=states,
        methods=(str(asked.method),) if asked.method and asked.method != ANY_METHOD else (),
        models=(str(asked.model),) if asked.model and asked.model != ANY_MODEL else (),
        sort=sort,
        descending=descending,
    )


def render_run_table(rows: Sequence[RunSummary], chosen: str, compared: Collection[str], shown: int) -> str:
    """The first `shown` rows; a row can be picked, and a box in it takes the run into the comparison."""
    body = "".join(_row(row, row.id == chosen, row.id in compared) for row in rows[:shown])
    left = len(rows) - shown
    more = (
        f'<button type="button" class="quiet" data-pick="{MORE}">Show {min(left, 100):,} more of {left:,}</button>'
        if left > 0
        else ""
    )
    return (
        '<div class="scroll"><table class="plain runs"><thead><tr><th><span aria-hidden="true">⇄</span></th><th>Run</th>'
        '<th>State</th><th class="method">Method</th><th class="r">Steps</th><th class="r">Held-out loss</th><th class="r">Took</th>'
        f'<th class="r">Started</th></tr></thead><tbody>{body}</tbody></table></div>{more}'
    )


def render_unread(unread: int) -> str:
    """What is said below the table while older runs are still being read."""
    return f'<p class="small">Reading {plural(unread, "older run")} …</p>' if unread else ""


def _row(row: RunSummary, is_chosen: bool, is_compared: bool) -> str:
    label = escape(f"Compare {row.name}", quote=True)
    tick = (
        f'<button type="button" class="tick" role="checkbox" aria-checked="{"true" if is_compared else "false"}" '
        f'aria-label="{label}" title="Compare" data-pick="{COMPARE_PREFIX}{escape(row.id, quote=True)}">'
        "✓</button>"
    )
    ingredients = " · ".join(escape(short_name(part)) for part in (row.model, row.dataset) if part)
    total = f" of {row.total_steps:,}" if row.total_steps and row.steps != row.total_steps else ""
    return (
        f'<tr {pickable(row.id, chosen=is_chosen)}><td class="mark">{tick}</td>'
        f'<td class="name">{escape(row.name)}<span class="under">{ingredients} · {row.id[-4:]}{_tags(row)}</span></td>'
        f'<td>{state_mark(row.state)}</td><td class="method">{escape(row.method)}</td>'
        f'<td class="r">{row.steps:,}{total}</td><td class="r">{held_out_cell(row)}</td>'
        f'<td class="r">{_took(row)}</td><td class="r soft">{when(row.created)}</td></tr>'
    )


def _tags(row: RunSummary) -> str:
    return "".join(f' <span class="tag">{escape(tag)}</span>' for tag in row.tags)


def best_of(rows: Sequence[RunSummary]) -> str | None:
    """Id of the run with the lowest held-out loss, where several were measured."""
    measured = [row for row in rows if row.best_eval_loss is not None]
    best = best_by_held_out_loss(measured) if len(measured) > 1 else None
    return best.id if best is not None else None


def held_out_cell(row: RunSummary, best: str | None = None) -> str:
    """`1.92`, with the base model's loss under it; the run with the id `best` is marked."""
    if row.best_eval_loss is None:
        return "–"
    mark = '<span class="best" title="the lowest of these runs">★ </span>' if row.id == best else ""
    under = ""
    if row.base_eval_loss:
        change = 1 - row.best_eval_loss / row.base_eval_loss
        words = f"{change:.0%} below" if change >= 0 else f"{-change:.0%} above"
        under = f'<span class="under">{words} base {row.base_eval_loss:.2f}</span>'
    return f"{mark}{row.best_eval_loss:.3f}{under}"


def when(moment: float, now: float | None = None) -> str:
    """`14:05`, `yesterday 14:05`, `3 Nov`, `3 Nov 2024`; local time."""
    if not moment:
        return "–"
    then, today = time.localtime(moment), time.localtime(time.time() if now is None else now)
    days = (_noon(today) - _noon(then)) / 86_400
    clock = time.strftime("%H:%M", then)
    if round(days) == 0:
        return clock
    if round(days) == 1:
        return f"yesterday {clock}"
    date = f"{then.tm_mday} {time.strftime('%b', then)}"
    return date if then.tm_year == today.tm_year else f"{date} {then.tm_year}"


def _noon(moment: time.struct_time) -> float:
    return time.mktime((moment.tm_year, moment.tm_mon, moment.tm_mday, 12, 0, 0, 0, 0, -1))


def _took(row: RunSummary) -> str:
    if row.seconds is not None:
        return duration(row.seconds)
    if row.started is not None:
        return f"{duration(time.time() - row.started)} so far"
    return "–"
