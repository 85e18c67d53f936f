"""The sets of a person on the Data tab: their list, their operations, and what a replacement would change."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from typing import Any

from loratory.engine.quantities import ago, size
from loratory.ui.views.html import Column, Row, pick_button, pickable, plural, small, table, under


def render_sets(
    sets: Sequence[Mapping[str, Any]], uses: Sequence[tuple[str, str, str]], form: Mapping[str, Any]
) -> str:
    """Return the list of sets; `uses` are set, version and run of each use, `form` is what a script sends of the draft."""
    name, chosen = str(form["openable"]), str(form["dataset"].get("source") or "")
    make = f"<p>{pick_button('make', f'Edit rows of {name}')}</p>" if name else ""
    last_runs = {name: run for name, _, run in sorted(uses, key=lambda use: use[2])}
    rows = (_set_row(entry, last_runs.get(entry["name"], "–"), chosen) for entry in sets)
    columns = ("My datasets", Column.of_numbers("Rows"), "Version", "Last run", "Changed")
    return make + (table(columns, rows, css="sets", scrolls="") if sets else "")


def _set_row(entry: Mapping[str, Any], run: str, chosen: str) -> Row:
    verbs = (("open", "Edit rows"), ("download", "Download"), ("delete", "Delete"))
    name = entry["name"]
    buttons = [pick_button(f"{verb}:{name}", text, label=f"{text}: {name}") for verb, text in verbs]
    if "problem" in entry:
        return Row([f"{under(escape(name), entry['problem'])}{buttons[-1]}", *["–"] * 4])
    bytes_ = size(entry["bytes"]) if entry["bytes"] is not None else "on the Hub"
    version = under(f"<code>{entry['version']}</code>", plural(entry["operations"], "operation"))
    cells = [f"{under(escape(name), entry['source'])}{' '.join(buttons)}", under(f"{entry['rows']:,}", bytes_), version]
    is_chosen = chosen.partition("@")[0] == f"set:{name}"
    return Row([*cells, run, ago(entry["changed"])], pickable(f"set:{name}", chosen=is_chosen))


def render_deletion(name: str, runs: Sequence[str]) -> str:
    """Return the question before a set is deleted, with the runs that used it."""
    used = f" These runs used it, and cannot be resumed without it: {escape(', '.join(runs))}." if runs else ""
    yes, no = pick_button(f"really-delete:{name}", "Delete the set"), pick_button("dismiss", "Keep it")
    return f'<div class="notice"><b>{escape(name)}</b> with all of its versions is deleted.{used} {yes} {no}</div>'


def render_log(answer: Mapping[str, Any]) -> str:
    """Return the operations on a set, the newest first, with a button to undo each."""
    rows = []
    for entry in answer["entries"]:
        when = ago(datetime.fromisoformat(entry["time"]).timestamp())
        undo = pick_button(f"undo:{entry['id']}", "Undo", label=f"Undo operation {entry['id']}")
        version = f"<code>{entry['version']}</code>" if entry["version"] else "–"
        facts = ((key, value) for key, value in entry["operation"].items() if value not in ("", [], False))
        texts = (f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in facts)
        about = escape(" ".join(texts).removeprefix("kind ")[:200]) or "the source"
        end = "undone" if entry["is_undone"] else undo if entry["id"] else ""
        rows.append([f"{entry['id']:,}", about, escape(entry["author"]), when, version, end])
    columns = (Column.of_numbers("No."), "Operation", "By", "When", "Version", Column("", "verbs"))
    return table(columns, rows)


def render_hits(answer: Mapping[str, Any]) -> str:
    """Return the number of rows that a replacement changes, and the first of them before and after."""
    count, hits = answer["count"], answer["hits"]
    if not count:
        return small("No matching rows")
    rows = ([f"{h['row']:,}", f"<del>{escape(h['before'])}</del><ins>{escape(h['after'])}</ins>"] for h in hits)
    heading = small(f"Changes {plural(count, 'row')}; the first {len(hits)} are listed.")
    return heading + table([Column.of_numbers("Row"), "Before and after"], rows)
