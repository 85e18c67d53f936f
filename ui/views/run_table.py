"""The table of runs with search, filters, order and selection; and the queue."""

import time
from collections.abc import Collection, Sequence
from datetime import datetime
from html import escape

from loratory.engine.quantities import ago
from loratory.engine.runs.run import STARTS_ANYWAY, State
from loratory.engine.runs.summary import RunQuery, RunSummary, SortKey, common_tests
from loratory.ui.views.html import (
    Column,
    Row,
    duration,
    empty,
    pick_button,
    pickable,
    plural,
    short_name,
    small,
    table,
    under,
)
from loratory.ui.views.run_view import loss_words, star_button, state_mark

FILTERS: dict[str, frozenset[State]] = {
    "All": frozenset(),
    "Active": frozenset({"submitted", "starting", "running", "stopping"}),
    "Waiting": frozenset({"queued"}),
    "Completed": frozenset({"completed"}),
    "Stopped": frozenset({"stopped"}),
    "Failed": frozenset({"failed", "interrupted"}),
}
ORDERS: dict[str, tuple[SortKey, bool]] = {
    "Newest first": ("created", True),
    "Lowest held-out loss first": ("eval_loss", False),
    "Highest held-out loss first": ("eval_loss", True),
    "Longest first": ("seconds", True),
    "Shortest first": ("seconds", False),
    "Most steps first": ("steps", True),
    "Fewest steps first": ("steps", False),
    "Fastest first": ("tokens_per_second", True),
    "Most memory first": ("peak_memory_bytes", True),
    "Largest on disk first": ("size_bytes", True),
    "By name": ("name", False),
    "By name, Z first": ("name", True),
    "By state": ("state", False),
    "By state, Z first": ("state", True),
    "By method": ("method", False),
    "By method, Z first": ("method", True),
    "Oldest first": ("created", False),
}
_OF_TESTS = {"Highest score: ": True, "Lowest score: ": False}  # orders by a test set

NO_RUNS = empty(
    "No runs yet",
    "All runs are listed here with settings, curves and results. Start in the Model tab, or with a preset in Train.",
)
NOTHING_FOUND = empty("No matching runs", "Use fewer words, or show all states.")

ANY_METHOD, ANY_MODEL = "All methods", "All models"
STARRED, PROJECT_PREFIX = "With a star", "Project: "
COMPARE_PREFIX, STAR_PREFIX = "compare:", "star:"
MORE, ALL, SORT_PREFIX = "more:", "all:", "sort:"

# Title and class of a column, and its orders: the one that a first click gives, then the other way round.
_COLUMNS = (
    ("Run", "name", "By name", "By name, Z first"),
    ("State", "", "By state", "By state, Z first"),
    ("Method", "method", "By method", "By method, Z first"),
    ("Steps", "r", "Most steps first", "Fewest steps first"),
    ("Held-out loss", "r", "Lowest held-out loss first", "Highest held-out loss first"),
    ("Duration", "r duration", "Longest first", "Shortest first"),
    ("Started", "r soft", "Newest first", "Oldest first"),
)
_QUEUE_ROWS = 12
_MOVES = (("first", "⇈", "Start next"), ("up", "↑", "Move up"), ("down", "↓", "Move down"))


def query_of(search: object, state: object, method: object, model: object, order: object) -> RunQuery:
    """Return the query from untrusted values; unknown ones get their default."""
    sort, descending = _sort_of(str(order))
    project = str(state).removeprefix(PROJECT_PREFIX)
    return RunQuery(
        terms=str(search or "")[:200],
        states=FILTERS.get(str(state), frozenset()),
        methods=(str(method),) if method and method != ANY_METHOD else (),
        models=(str(model),) if model and model != ANY_MODEL else (),
        projects=(project,) if project != str(state) else (),
        with_star=state == STARRED,
        sort=sort,
        descending=descending,
    )


def _sort_of(order: str) -> tuple[str, bool]:
    for prefix, descending in _OF_TESTS.items():
        if order.startswith(prefix):
            return order.removeprefix(prefix), descending
    return ORDERS.get(order, ("created", True))


def orders_by_test(rows: Sequence[RunSummary]) -> list[str]:
    """Return the orders by test sets."""
    return [f"{prefix}{test}" for test in common_tests(rows, None) for prefix in _OF_TESTS]


def _columns(tests: Sequence[str]) -> tuple[tuple[str, str, str, str], ...]:
    first, other = _OF_TESTS
    return (*_COLUMNS[:5], *((test, "r", first + test, other + test) for test in tests), *_COLUMNS[5:])


def order_of(column: str, current: str, rows: Sequence[RunSummary] = ()) -> str | None:
    """Return the order after a click on a column's title in a table of rows; None for unknown columns."""
    columns = _columns(common_tests(rows, None))
    orders = (other if current == first else first for title, _, first, other in columns if title == column)
    return next(orders, None)


def _heads(order: str, is_any_ticked: bool, tests: Sequence[str]) -> list[Column]:
    label = "Remove all ticks" if is_any_ticked else "Tick all rows"
    heads = [Column(_tick_box(ALL, label, "mixed" if is_any_ticked else "false"), "mark")]
    for title, css, first, other in _columns(tests):
        # Down where the largest, the newest or Z comes first.
        arrow, sorts = {True: (" ▼", "descending"), False: (" ▲", "ascending")}[_sort_of(order)[1]]
        is_sorted = order in (first, other)
        button = pick_button(SORT_PREFIX + title, title + (arrow if is_sorted else ""), css="sort", label=title)
        heads.append(Column(button, css, f' aria-sort="{sorts}"' if is_sorted else ""))
    return heads


def _tick_box(pick: str, title: str, aria_checked: str) -> str:
    label = escape(title, quote=True)
    return (
        f'<button type="button" class="tick" role="checkbox" aria-checked="{aria_checked}" aria-label="{label}" '
        f'title="{label}" data-pick="{escape(pick, quote=True)}">{"–" if aria_checked == "mixed" else "✓"}</button>'
    )


def render_run_table(
    rows: Sequence[RunSummary], chosen: str, ticked_ids: Collection[str], limit: int, order: str = "Newest first"
) -> str:
    """Return the first `limit` rows; each can be picked and ticked, and a click on a column's title sorts by it."""
    tests = common_tests(rows)
    heads, lines, visible_rows = _heads(order, bool(ticked_ids), tests), [], rows[:limit]
    groups = [row.loss_group if row.eval_loss is not None else None for row in visible_rows]
    is_grouped = _sort_of(order)[0] == "eval_loss" and len(set(groups)) > 1
    for row, group, previous in zip(visible_rows, groups, [(), *groups], strict=False):
        if is_grouped and group != previous:
            lines.append(Row(("", _group_title(row), *[""] * (len(heads) - 2)), 'class="group"'))
        lines.append(_row(row, row.id == chosen, row.id in ticked_ids, tests))
    html = table(heads, lines, css="runs")
    left = len(rows) - limit
    return html + pick_button(MORE, f"Show {min(left, 100):,} more of {left:,}", css="quiet") if left > 0 else html


def _group_title(row: RunSummary) -> str:
    """Return which held-out losses follow, as HTML: those of other rows or objectives are not comparable with them."""
    if row.eval_loss is None:
        return "No held-out loss"
    parts = (row.objective or "Supervised", short_name(row.model), short_name(row.dataset))
    return f"Comparable losses: {escape(' · '.join(parts))}"


def render_shared_runs(rows: Sequence[RunSummary], chosen: str) -> str:
    """Return the runs of other people, which can be picked."""
    columns = (Column("Run", "name"), "Owner", "State", Column("Method", "method"), Column.of_numbers("Held-out loss"),
               Column("Started", "r soft"))  # fmt: skip
    lines = []
    for row in rows:
        name, owner = under(escape(row.label), _ingredients(row)), escape(row.owner)
        cells = (name, owner, state_mark(row.state), escape(row.method), held_out_cell(row), ago(row.created))
        lines.append(Row(cells, pickable(row.id, chosen=row.id == chosen)))
    return table(columns, lines, css="runs")


def _ingredients(row: RunSummary) -> str:
    return " · ".join(short_name(part) for part in (row.model, row.dataset) if part)


def render_unread(unread: int) -> str:
    """Return the line below the table while older runs are still being read."""
    return small(f"Reading {plural(unread, 'older run')} …") if unread else ""


def _row(row: RunSummary, is_chosen: bool, is_compared: bool, tests: Sequence[str]) -> Row:
    tick = _tick_box(COMPARE_PREFIX + row.id, f"Tick {row.label}", "true" if is_compared else "false")
    project = f"<b>{escape(row.project)}</b> · " if row.project else ""
    tags = "".join(f' <span class="tag">{escape(tag)}</span>' for tag in row.tags)
    device = f" · {escape(row.device)}" if row.job_id else ""
    total = f" of {row.total_steps:,}" if row.total_steps and row.steps != row.total_steps else ""
    cells = (
        tick,
        f"{star_button(row.id, row.label, row.star)}{escape(row.label)}"
        f'<span class="under">{project}{escape(_ingredients(row))}{device}{tags}</span>',
        state_mark(row.state, never_started=row.started is None),
        under(escape(row.method), row.objective) if row.objective else escape(row.method),
        f"{row.steps:,}{total}",
        _loss_cell(row),
        *(_test_cell(row, test) for test in tests),
        _duration(row),
        f'<span title="{when(row.created)}">{ago(row.created)}</span>',
    )
    return Row(cells, pickable(row.id, chosen=is_chosen))


def _test_cell(row: RunSummary, test: str) -> str:
    score = row.tests.get(test)
    return under(f"{score.score:.2f}", score.interval) if score is not None else "–"


def best_of(rows: Sequence[RunSummary]) -> str | None:
    """Return the id of the run with the lowest held-out loss; None without a second comparable run, or for a tie as displayed."""
    losses = {row.id: f"{row.best_eval_loss:.3f}" for row in rows if row.best_eval_loss is not None}
    is_comparable = len({row.loss_group for row in rows if row.id in losses}) == 1
    best, second, *_ = [*sorted(losses, key=lambda run_id: float(losses[run_id])), "", ""]
    return best if second and is_comparable and losses[best] != losses[second] else None


def held_out_cell(row: RunSummary, best: str | None = None) -> str:
    """Return `1.92`, with the base model's loss under it; the run with the id `best` is marked."""
    if row.best_eval_loss is None:
        return "–"
    mark = '<span class="best" title="the lowest of these runs">★ </span>' if row.id == best else ""
    return mark + _loss_cell(row)


def _loss_cell(row: RunSummary) -> str:
    figure, comparison = loss_words(row)
    return under(figure, comparison) if comparison else figure or "–"


def when(moment: float, now: float | None = None) -> str:
    """Return `14:05`, `yesterday 14:05`, `3 Nov` or `3 Nov 2024`; local time."""
    if not moment:
        return "–"
    then, today = datetime.fromtimestamp(moment), datetime.fromtimestamp(time.time() if now is None else now)
    days = (today.date() - then.date()).days
    if days in (0, 1):
        return f"{'yesterday ' if days else ''}{then:%H:%M}"
    return f"{then.day} {then:%b}" + (f" {then.year}" if then.year != today.year else "")


def _duration(row: RunSummary) -> str:
    if row.seconds is not None:
        return duration(row.seconds)
    return f"{duration(time.time() - row.started)} so far" if row.started is not None else "–"


def render_queue(waiting: Sequence[RunSummary]) -> str:
    """Return one line for each waiting run, the next one first, with buttons that move it."""
    if not waiting:
        return ""
    lines = (_queue_row(position, row, len(waiting)) for position, row in enumerate(waiting[:_QUEUE_ROWS], start=1))
    left = len(waiting) - _QUEUE_ROWS
    columns = (Column("", "r soft place"), Column("", "name"), Column("", "moves"))
    label = ' aria-label="Waiting runs, the next one first"'
    more = small(f"… and {plural(left, 'more run')}.") if left > 0 else ""
    return f"<h2>Queue</h2>{table(columns, lines, css='queue', attributes=label, scrolls='')}{more}"


def _queue_row(position: int, row: RunSummary, count: int) -> tuple[str, str, str]:
    identifier = escape(row.id, quote=True)
    buttons = "".join(
        f'<button type="button" class="move" data-pick="{move}:{identifier}" title="{label}" '
        f'aria-label="{label}: {escape(row.label, quote=True)}"'
        f"{' disabled' if position == (count if move == 'down' else 1) else ''}>{sign}</button>"
        for move, sign, label in _MOVES
    )
    anyway = pick_button(f"anyway:{row.id}", "Start anyway", css="plainly") if row.reason in STARTS_ANYWAY else ""
    remove = pick_button(f"out:{row.id}", "Remove", css="plainly")
    cause = row.cause or "starts when a device is free"
    return str(position), under(escape(row.label), cause), f"{anyway}{buttons}{remove}"
