"""The lab as an admin sees it: people, runs of all, usage, shared folders, audit log."""

import csv
import io
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from html import escape
from typing import Any

from engine.accounts.accounts import InvitationState
from engine.accounts.audit import AuditEntry
from engine.accounts.people import Person
from engine.runs.disk import DiskUse
from engine.runs.lab_queue import QueueEntry
from engine.runs.usage import Week, WeekOfPerson
from ui.backend.lab import SharedItem, Usage
from ui.views.html import (
    Column,
    Row,
    copyable,
    duration,
    empty,
    pick_button,
    pickable,
    plural,
    size,
    small,
    table,
    under,
)
from ui.views.loss_chart import AXIS, SERIES, chart_layout, figure_json

STOP_PREFIX = "stop:"
_CHART_WEEKS = 12
_TABLE_WEEKS = 8
_OTHERS = "all other people"


def render_people(people: Sequence[Person], invitations: Sequence[InvitationState], chosen: str) -> str:
    """Return a row for each account, to be picked, and what invitations are open."""
    rows = [
        Row(
            (
                f"<b>{escape(person.name)}</b>",
                person.role,
                escape(_ago(person.last_sign_in)),
                "active"
                if person.disabled is None
                else f'<span class="off">disabled {escape(_ago(person.disabled))}</span>',
            ),
            pickable(person.name, chosen=person.name == chosen),
        )
        for person in people
    ]
    listed = table(("Name", "Role", "Last sign-in", "State"), rows, css="rows")
    open_links = [
        f"{one.role if one.person is None else f'new password of {one.person}'} by {one.invited_by or 'command line'}, "
        f"valid for {duration(max(one.expires - time.time(), 0))}"
        for one in invitations
    ]
    return listed + (small(f"{plural(len(open_links), 'open link')}: {'; '.join(open_links)}.") if open_links else "")


def render_link(link: str, what: str) -> str:
    """Return a link that is shown this once."""
    words = f"{what}. It can be used once, within 72 hours. Send it over a channel you trust; it is not shown again."
    return f'<div class="notice" role="status"><b>{escape(words)}</b>{copyable(link, "link")}</div>'


def render_queue(entries: Sequence[QueueEntry]) -> str:
    """Return the runs of all people at work and in the queue, each with a button that stops it."""
    if not entries:
        return empty("No runs", "Nothing runs or waits.")
    rows = []
    for one in entries:
        waits = one.place is not None
        name = f"{one.owner}/{one.run_id}"
        rows.append(
            (
                under(f"<b>{escape(one.owner)}</b>", one.run_id),
                f"{one.place} in the queue{', urgent' if one.is_urgent else ''}" if waits else one.state,
                escape(one.device or "–"),
                escape(one.words or _times(one) or "–"),
                pick_button(f"{STOP_PREFIX}{name}", "Remove" if waits else "Stop", label=f"Stop the run {name}"),
            )
        )
    return table(("Run", "State", "Device", "Times, or why it waits", ""), rows, css="rows")


def render_usage(usage: Usage) -> str:
    """Return what each person used in the last weeks, and what they have on disk."""
    weeks = sorted({one.week for one in usage.weeks}, reverse=True)[:_TABLE_WEEKS]
    disks = {one.owner: one for one in usage.disks}
    shown = sorted(
        (one for one in usage.weeks if one.week in weeks), key=lambda one: (weeks.index(one.week), one.owner)
    )
    rows = [_usage_row(one, disks.get(one.owner)) for one in shown]
    used = {one.owner for one in usage.weeks if one.week in weeks}
    rows += [
        _usage_row(WeekOfPerson(owner, Week(0, 0), 0.0, 0.0, None, 0), disk)
        for owner, disk in disks.items()
        if owner not in used and disk.total
    ]
    total = sum(disk.total for disk in usage.disks)
    below = small(f"People have {size(total)} on disk; {size(usage.free_bytes)} are free. Disk space is as of now.")
    if not rows:
        return below
    numbers = [Column.of_numbers(title) for title in ("GPU hours", "CPU hours", "kWh", "Runs", "Disk")]
    return table(("Week", "Person", *numbers), rows, css="rows", scrolls="scroll tall") + below


def _usage_row(one: WeekOfPerson, disk: DiskUse | None) -> tuple[str, ...]:
    return (
        _week_name(one.week) if one.week.year else "–", f"<b>{escape(one.owner)}</b>", f"{one.gpu_hours:,.1f}",
        f"{one.cpu_hours:,.1f}", "–" if one.kwh is None else f"{one.kwh:,.2f}", f"{one.runs:,}",
        "–" if disk is None else size(disk.total),
    )  # fmt: skip


def usage_figure(usage: Usage) -> str:
    """Return the hours of each person by week as stacked bars; empty where there are none. On GPUs, if there is one."""
    weeks = sorted({one.week for one in usage.weeks})[-_CHART_WEEKS:]
    shown = [one for one in usage.weeks if one.week in weeks]
    has_gpu = any(one.gpu_hours for one in shown)
    hours = {(one.owner, one.week): one.gpu_hours if has_gpu else one.cpu_hours for one in shown}
    totals: dict[str, float] = {}
    for (owner, _), value in hours.items():
        totals[owner] = totals.get(owner, 0.0) + value
    people = sorted((owner for owner in totals if totals[owner]), key=lambda owner: -totals[owner])
    if not people:
        return ""
    named = people if len(people) <= len(SERIES) else people[: len(SERIES) - 1]
    groups: list[tuple[str, Collection[str]]] = [(owner, (owner,)) for owner in named]
    if len(named) < len(people):
        groups.append((_OTHERS, people[len(named) :]))
    traces: list[dict[str, Any]] = [
        {
            "type": "bar", "name": name, "x": [_week_name(week) for week in weeks],
            "y": [round(sum(hours.get((owner, week), 0.0) for owner in owners), 2) for week in weeks],
            "marker": {"color": colour}, "hovertemplate": "%{y:,.1f} h",
        }
        for (name, owners), (colour, _) in zip(groups, SERIES, strict=False)
    ]  # fmt: skip
    title = "GPU hours" if has_gpu else "CPU hours"
    layout = chart_layout(280, "usage") | {
        "barmode": "stack", "bargap": 0.4, "showlegend": True, "xaxis": AXIS | {"type": "category"},
        "yaxis": AXIS | {"title": {"text": title}, "rangemode": "tozero"},
    }  # fmt: skip
    return figure_json(traces, layout, f"{title} by week of {', '.join(name for name, _ in groups)}.")


def usage_csv(usage: Usage) -> str:
    """Return one line for each person and week, and what the person has on disk now."""
    disks = {one.owner: one for one in usage.disks}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("week", "person", "gpu_hours", "cpu_hours", "kwh", "runs", "disk_bytes_now"))
    for one in usage.weeks:
        disk = disks.get(one.owner)
        kwh = "" if one.kwh is None else f"{one.kwh:.4f}"
        writer.writerow(
            (_week_name(one.week), one.owner, f"{one.gpu_hours:.4f}", f"{one.cpu_hours:.4f}", kwh, one.runs)
            + (("",) if disk is None else (disk.total,))
        )
    return text.getvalue()


def render_shared(items: Sequence[SharedItem]) -> str:
    """Return what all people may read."""
    if not items:
        return empty(
            "Nothing is shared", "Put models into shared/models and data into shared/data below LORATORY_HOME."
        )
    rows = [(item.kind, escape(item.name), size(item.bytes)) for item in items]
    return table(("Kind", "Name", Column.of_numbers("Size")), rows, css="rows", scrolls="scroll tall")


def render_log(entries: Sequence[AuditEntry]) -> str:
    """Return entries of the audit log."""
    if not entries:
        return empty("No matching entries", "Change the filter.")
    rows = [
        (
            f'<span class="num">{datetime.fromtimestamp(one.time):%Y-%m-%d %H:%M:%S}</span>',
            escape(one.person or "–"), one.kind, escape(" · ".join(filter(None, (one.subject, one.detail)))) or "–",
            escape(one.address or "–"),
        )
        for one in entries
    ]  # fmt: skip
    return table(("Time", "Person", "What", "Of what", "Address"), rows, css="rows", scrolls="scroll tall")


def _week_name(week: Week) -> str:
    return f"{week.year}-W{week.number:02d}"


def _ago(moment: float | None) -> str:
    if moment is None:
        return "never"
    seconds = time.time() - moment
    return "just now" if seconds < 60 else f"{duration(seconds // 60 * 60).removesuffix(' 00 s')} ago"


def _times(entry: QueueEntry) -> str:
    began = "" if entry.since is None else f"for {duration(time.time() - entry.since)}"
    left = "" if entry.expected_end is None else f"{duration(entry.expected_end - time.time())} left"
    return ", ".join(filter(None, (began, left)))
