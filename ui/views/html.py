"""HTML building blocks of the page: facts, tables, progress, notices, errors; and number formats.

Everything here takes text and escapes it, unless an argument is named as HTML.
"""

import functools
import re
from collections.abc import Iterable, Sequence
from html import escape, unescape
from typing import TYPE_CHECKING, Any, NamedTuple

from loratory.engine.config.run import field_of
from loratory.engine.data.files.access import shown_name
from loratory.engine.errors import ConfigError, EngineError, Problem
from loratory.engine.quantities import GIB as GIB
from loratory.engine.quantities import count as count
from loratory.engine.quantities import duration as duration
from loratory.engine.quantities import gib as gib
from loratory.engine.quantities import size as size
from loratory.ui.backend.background import Work

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_TAIL = 0.05  # of the rows; fewer long ones are usual
_WIDE = 4  # columns; where the page is narrow, rows of such a table are cards with the titles before the values


class Column(NamedTuple):
    """A column of a table."""

    title: str  # HTML
    css: str = ""  # class of the head and of every cell
    attributes: str = ""  # more attributes of the head

    @classmethod
    def of_numbers(cls, title: str) -> "Column":
        """Return a column that is aligned to the right."""
        return cls(title, "r")


class Row(NamedTuple):
    """A row of a table with its own attributes, such as those of `pickable`."""

    cells: Sequence[str]  # HTML
    attributes: str = ""


class ListPage(NamedTuple):
    """One page of a list."""

    number: int  # from 0
    rows: int  # in the whole list
    size: int

    @classmethod
    def at(cls, number: int, rows: int, size: int) -> "ListPage":
        """Return the page of that number, or the nearest that there is."""
        return cls(max(0, min(number, (rows - 1) // size)), rows, size)

    @property
    def start(self) -> int:
        return self.number * self.size

    @property
    def end(self) -> int:
        return min(self.rows, self.start + self.size)

    def pager(self, noun: str, order: str = "", earlier: str = "Earlier", later: str = "Later") -> str:
        """Return which of the rows it shows, with buttons that send `page:NUMBER`; empty for an empty list."""
        where = f"{self.start + 1:,}–{self.end:,}" if self.end > self.start + 1 else f"{self.end:,}"
        turns = [(f"← {earlier}", self.number - 1, self.start), (f"{later} →", self.number + 1, self.end < self.rows)]
        links = " ".join(pick_button(f"page:{number}", text) for text, number, is_there in turns if is_there)
        position = ", ".join(filter(None, (f"{where} of {plural(self.rows, noun)}", order)))
        return f'<p class="small num pager">{position} {links}</p>' if self.rows else ""


def table(
    columns: Sequence[Column | str],
    rows: Iterable[Row | Sequence[str]],
    *,
    css: str = "",
    caption: str = "",
    attributes: str = "",
    scrolls: str = "scroll",
) -> str:
    """Return a table of cells in HTML; one whose titles are all empty has no head.

    Where rows or what is in them can be picked, the table is one tab stop: the arrow keys move in it. `scrolls` is the class
    of what is around it, `scroll` or `scroll tall`; empty puts nothing around it.
    """
    kinds = [column if isinstance(column, Column) else Column(column) for column in columns]
    has_head = any(kind.title for kind in kinds)
    is_wide = has_head and len(kinds) >= _WIDE
    head = f"<thead><tr>{''.join(map(_head_cell, kinds))}</tr></thead>" if has_head else ""
    openings = [_cell_opening(kind, is_wide) for kind in kinds]
    body = "".join(_table_row(openings, row if isinstance(row, Row) else Row(row)) for row in rows)
    role = ' role="grid"' if "data-pick" in body else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    classes = f"plain {'cards ' if is_wide else ''}{css}".strip()
    html = f'<table class="{classes}"{role}{attributes}>{title}{head}<tbody>{body}</tbody></table>'
    return f'<div class="{scrolls}">{html}</div>' if scrolls else html


def _head_cell(column: Column) -> str:
    tag = "th" if column.title else "td"  # without a title, there is no head to read out
    return f"<{tag}{_attribute('class', column.css)}{column.attributes}>{column.title}</{tag}>"


def _cell_opening(column: Column, is_wide: bool) -> str:
    label = _plain(column.title).rstrip(" ▲▼") if is_wide else ""
    return f"<td{_attribute('class', column.css)}{_attribute('data-label', label)}>"


def _table_row(openings: Sequence[str], row: Row) -> str:
    cells = "".join(f"{opening}{cell}</td>" for opening, cell in zip(openings, row.cells, strict=True))
    return f"<tr{' ' if row.attributes else ''}{row.attributes}>{cells}</tr>"


def _plain(html: str) -> str:
    """Return a title's text as an attribute value, without its visual-only and screen-reader-only parts."""
    return escape(unescape(re.sub(r"<span[^>]*>.*?</span>|<[^>]*>", "", html)).strip(), quote=True)


def _attribute(name: str, value: str) -> str:
    return f' {name}="{value}"' if value else ""


def pickable(identifier: str, *, chosen: bool | None = False) -> str:
    """Return the attributes of a table row that can be picked; see `loratory.ui.components.pick_list`.

    A row that acts instead of being chosen has None for `chosen`.
    """
    state = {None: "", False: ' aria-selected="false"', True: ' class="chosen" aria-selected="true"'}[chosen]
    return f'data-pick="{escape(identifier, quote=True)}" tabindex="0"{state}'


def toolbar(label: str, buttons: str, css: str) -> str:
    """Return a toolbar of buttons, as HTML: one tab stop, with arrow keys."""
    return f'<div class="{css}" role="toolbar" aria-label="{escape(label, quote=True)}">{buttons}</div>'


def pick_button(identifier: str, text: str, *, css: str = "link", label: str = "", is_on: bool | None = None) -> str:
    """Return a button that sends `identifier`; a screen reader reads `label` instead of the text, and `is_on` of a switch."""
    name = _attribute("aria-label", escape(label, quote=True))
    name += "" if is_on is None else f' aria-pressed="{str(is_on).lower()}"'
    return f'<button type="button" class="{css}" data-pick="{escape(identifier, quote=True)}"{name}>{escape(text)}</button>'


def under(html: str, text: str) -> str:
    """Return the HTML of a cell with a second, smaller line of text."""
    return f'{html}<span class="under">{escape(text)}</span>'


def facts(figures: Iterable[tuple[str, str]]) -> str:
    """Return figures in a row, each with its unit or meaning below it; both are HTML."""
    return '<div class="facts">' + "".join(f"<div><b>{figure}</b>{label}</div>" for figure, label in figures) + "</div>"


def fold(title: str, figure: str, html: str, identifier: str = "") -> str:
    """Return a fold, whose title and key figure are visible while it is closed; one with an id stays open when redrawn."""
    return f'<details class="fold"{_attribute("id", identifier)}><summary>{escape(title)}<span class="soft num">{escape(figure)}</span></summary>{html}</details>'


def definitions(entries: Iterable[tuple[str, str]], css: str = "") -> str:
    """Return names with their values, as HTML; entries without a value are left out."""
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in entries if value)
    return f"<dl{_attribute('class', css)}>{items}</dl>" if items else ""


def section(title: str, content: str) -> str:
    """Return a part of the side panel; both are HTML."""
    return f'<div class="section"><h3>{title}</h3>{content}</div>'


def progress_bar(label: str, fraction: float | None) -> str:
    """Return a progress bar; empty if `fraction`, from 0 to 1, is None."""
    if fraction is None:
        return ""
    return (
        f'<div class="progress" role="progressbar" aria-label="{escape(label, quote=True)}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{100 * fraction:.0f}"><span style="width:{100 * fraction:.2f}%"></span></div>'
    )


def status(html: str) -> str:
    """Return a line that a screen reader reads out when it changes."""
    return f'<div class="sentence" role="status" aria-live="polite">{html}</div>'


def small(text: str, *, role: str = "") -> str:
    """Return a small paragraph of text."""
    return f'<p class="small"{_attribute("role", role)}>{escape(text)}</p>'


def lead(text: str) -> str:
    """Return the first sentence of a part of the page."""
    return f'<p class="lead num">{escape(text)}</p>'


def empty(title: str, text: str, *, role: str = "") -> str:
    """Return an empty state: a title and the next step."""
    return f'<div class="empty"{_attribute("role", role)}><b>{escape(title)}</b>{escape(text)}</div>'


def notice(text: str) -> str:
    """Return the box of a question, or of something to know."""
    return f'<div class="notice" role="status">{escape(text)}</div>'


def notices(sentences: Iterable[str]) -> str:
    """Return each sentence as a notice, with `code` for parts between backticks."""
    return "".join(f'<p class="notice">{with_code(sentence)}</p>' for sentence in sentences)


def alarm(html: str) -> str:
    """Return something that deserves attention, although a run can start."""
    return f'<p class="alarm">{html}</p>'


def truncation(cut: int, rows: int, max_length: int, longest: int, noun: str = "row") -> str:
    """Return a sentence on rows that are cut, where they are more than a tail; lengths in tokens."""
    if cut <= _TAIL * rows:
        return ""
    are = "is" if cut == 1 else "are"
    return f"{cut:,} of {plural(rows, noun)} {are} cut at {max_length:,} tokens; the longest has {longest:,}."


def with_code(text: str) -> str:
    """Return a text as HTML, with `code` for parts between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


@functools.cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # not before there is an answer

    # HTML becomes text and images become links: nothing named in an answer is fetched.
    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")


def markdown(text: str) -> str:
    """Return untrusted Markdown as HTML without images, page headings and raw HTML."""
    tokens = _markdown().parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = "p"
        if token.type == "heading_open":
            token.attrSet("class", "heading")
        for part in token.children or ():
            if part.type == "link_open":
                part.attrSet("target", "_blank")
                part.attrSet("rel", "noopener noreferrer nofollow")
    return f'<div class="markdown">{_markdown().renderer.render(tokens, _markdown().options, {})}</div>'


def alert(title: str, html: str) -> str:
    """Return an error box; the title may have backticks."""
    return f'<div class="trouble" role="alert"><b>{with_code(title)}</b>{html}</div>'


def error_box(error: EngineError) -> str:
    """Return one error: the fact, then the fix; all problems of a configuration as a list."""
    if not isinstance(error, ConfigError):
        return alert(error.what, with_code(error.fix))
    return alert(attention(len(error.problems)), f"<ul>{''.join(map(problem_item, error.problems))}</ul>")


def problem_item(problem: Problem) -> str:
    """Return a problem in a list: a link to the setting's field, then what is wrong with it."""
    title = setting_title(problem.field)
    name = field_link(problem.field, title) if title else f"<code>{escape(problem.field)}</code>"
    return f'<li class="wrong">{f"{name}: " if problem.field else ""}<span>{with_code(problem.message)}</span></li>'


def setting_title(name: str) -> str:
    """Return the title of a setting such as `adapter.r`; empty if there is no such setting."""
    try:
        return field_of(name).title or ""
    except KeyError:
        return ""


def field_link(name: str, text: str, css: str = "link") -> str:
    """Return a button that leads to the field of a setting; the script `access` follows it."""
    return f'<button type="button" class="{css}" data-field="{escape(name, quote=True)}">{escape(text)}</button>'


def press_button(selectors: str, text: str, css: str = "go hint") -> str:
    """Return a button that presses the first of some others that is shown; the script `access` does."""
    return f'<button type="button" class="{css}" data-press="{escape(selectors, quote=True)}">{escape(text)}</button>'


def attention(count: int) -> str:
    """Return a sentence with the number of invalid settings."""
    return "One setting needs your attention" if count == 1 else f"{count} settings need your attention"


def work_status(work: Work[Any] | None, stop_text: str) -> str:
    """Return how background work is doing, `stop_text` after a stop; empty where its result shows it, or there is none."""
    if work is None:
        return ""
    if work.is_under_way:
        return status(escape(work.progress_text) + progress_bar(work.title, work.fraction))
    if work.was_stopped:
        return notice(stop_text)
    return error_box(work.error) if work.error is not None else ""


def start_status(work: Work[Any] | None) -> str:
    """Return how a start is doing; empty once it has ended."""
    return small(work.progress_text, role="status") if work is not None and work.is_under_way else ""


def log(text: str, label: str) -> str:
    """Return preformatted text that scrolls."""
    return f'<pre class="log" tabindex="0" aria-label="{escape(label, quote=True)}">{escape(text)}</pre>'


def copyable(text: str, what: str) -> str:
    """Return text with a button that copies it; the script `copy` does the copying."""
    return (
        f'<div class="copyable"><pre tabindex="0">{escape(text.rstrip())}</pre>'
        f'<button type="button" data-copy aria-label="Copy the {escape(what)}">Copy</button></div>'
    )


def short_name(identifier: str) -> str:
    """Return the last part of a path or of a Hub id, safe to show; a root of the file system is its own name."""
    last = identifier.removeprefix("sample:").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return shown_name(last or identifier)


def shorten(text: str, most: int) -> str:
    """Return the beginning of a text in one line, of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]} …"


def dollars(amount: float) -> str:
    """Return a price: `$0.80`, or `under $0.01`."""
    return f"${amount:,.2f}" if amount >= 0.005 else "under $0.01"


def count_fact(number: int, singular: str, plural_form: str | None = None) -> tuple[str, str]:
    """Return a figure for `facts`: `4,812` and `rows`."""
    figure, _, noun = plural(number, singular, plural_form).partition(" ")
    return figure, noun


def plural(number: int, singular: str, plural_form: str | None = None) -> str:
    """Return `1 row` or `4,812 rows`."""
    return f"{number:,} {singular if number == 1 else plural_form or singular + 's'}"
