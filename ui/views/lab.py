"""A lab: devices and queue as every user sees them; people, models, usage and audit log as an admin does."""

import csv
import io
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.people import Person
from loratory.engine.hardware.lease import device_words
from loratory.engine.lab.queue import DeviceUse, QueueEntry
from loratory.engine.models.cache_space import CachedModel, ModelCache
from loratory.engine.quantities import ago
from loratory.engine.runs.disk import DiskUse
from loratory.engine.runs.usage import Week, WeekOfPerson
from loratory.ui.views import html
from loratory.ui.views.loss_chart import AXIS, SERIES, chart_layout, figure_json
from loratory.ui.views.run_view import state_mark

if TYPE_CHECKING:  # they import argon2, which only labs need
    from loratory.engine.accounts.accounts import InvitationState
    from loratory.engine.accounts.audit import AuditEntry
    from loratory.ui.backend.lab import RunsOfPerson, SharedItem, Usage

MODEL_PREFIX, OFFERED = "model:", "offered"
_ABOUT_TO_END_SECONDS = 20
_CHART_WEEKS, _TABLE_WEEKS = 12, 8
STOP_PREFIX, LOOK_PREFIX, URGENT_PREFIX, TURN = "stop:", "look:", "urgent:", "turn"


def render_devices(devices: Sequence[DeviceUse], entries: Sequence[QueueEntry]) -> str:
    """Return a row per device: user, purpose, end, and programs outside Loratory."""
    if not devices:
        return html.empty("No device", "This machine has no device that Loratory can use.")
    runs = {name: entry for entry in entries for name in entry.device.split(", ") if name}
    rows = [(html.under(escape(_device(use.device)), use.title), _use(use, runs.get(use.device))) for use in devices]
    return html.table(("Device", "In use"), rows, css="rows devices")


def render_queue(entries: Sequence[QueueEntry], viewer: str, *, manages: bool = False) -> str:
    """Return active and queued runs; of other users' runs, the public part; with `manages`, what an admin does to all."""
    if not entries:
        return html.empty("No runs", "No active or queued runs. The next run starts immediately.")
    rows = [_row(entry, viewer, manages) for entry in entries]
    columns = ("Owner", "State", "Expected end, or why it waits", *(("",) if manages else ()))
    return html.table(columns, rows, css="rows turns")


def render_own_disk(use: DiskUse, limits: LabLimits, free: int) -> str:
    """Return the user's disk usage and quota, and the free space."""
    quota = limits.disk_gb_per_person
    parts = ", ".join(f"{name} {html.size(bytes_)}" for name, bytes_ in use.parts.items())
    allowance = f" of {quota:g} GB" if quota is not None else ""
    floor = f"; from {limits.free_disk_gb:g} GB down, no run starts" if limits.free_disk_gb else ""
    text = f"You use {html.size(use.total)}{allowance} of disk space{f' ({parts})' if parts else ''}. {html.size(free)} are free{floor}."
    bar = "" if quota is None else html.progress_bar("Disk space", min(1.0, use.total / (quota * 10**9)))
    return f'<div class="disk">{bar}{html.small(text)}</div>'


def _device(name: str) -> str:
    return device_words(name).removeprefix("The ")


def _use(device: DeviceUse, entry: QueueEntry | None) -> str:
    if device.purpose is None:
        use = "in use by other programs" if device.programs else "free"
    else:
        use = f"{f'<b>{escape(device.owner)}</b>, for' if device.owner else 'for'} {device.purpose}"
        times = _times(device.since, entry.expected_end if entry is not None else None, ends=entry is not None)
        use = html.under(use, times) if times else use
    programs = ", ".join(program.description for program in device.programs)
    return html.under(use, f"Outside Loratory: {programs}") if programs else use


def _row(entry: QueueEntry, viewer: str, manages: bool) -> tuple[str, ...]:
    is_own, waits = entry.owner == viewer, entry.position is not None
    name = f"{entry.owner}/{entry.run_id}"
    identity = f"{'yours · ' if is_own else ''}{entry.run_id[-4:]}"
    if waits:
        position, text = f"place {entry.position}", entry.text or "Starts when a device is free."
    else:
        position = ", ".join(_device(device) for device in entry.device.split(", ") if device)
        text = f"{_times(entry.since, entry.expected_end, ends=True).capitalize()}. {entry.text}".strip()
    urgent = f"<b>{escape(entry.urgent)}</b> " if entry.urgent else ""
    owner = html.under(f"<b>{escape(entry.owner)}</b>", identity)
    cells = (owner, html.under(state_mark(entry.state), position), f"{urgent}{escape(text)}")
    return (*cells, _actions(entry, name, is_own)) if manages else cells


def _actions(entry: QueueEntry, name: str, is_own: bool) -> str:
    waits = entry.position is not None
    buttons = [] if is_own else [html.pick_button(f"{LOOK_PREFIX}{name}", "Look", label=f"Look into the run {name}")]
    if entry.urgent:
        buttons.append(html.pick_button(TURN, "Not urgent", label=f"Return the run {name} to its turn"))
    elif waits:
        buttons.append(html.pick_button(f"{URGENT_PREFIX}{name}", "Make urgent", label=f"Make the run {name} urgent"))
    stop = html.pick_button(f"{STOP_PREFIX}{name}", "Remove" if waits else "Stop", label=f"Stop the run {name}")
    return f'<span class="acts">{"".join(buttons)}{stop}</span>'


def _times(since: float | None, end: float | None, *, ends: bool) -> str:
    now = time.time()
    began = "" if since is None else f"for {html.duration(now - since)}"
    left = "" if not ends else "end not known yet" if end is None else "about to end"
    if ends and end is not None and end - now > _ABOUT_TO_END_SECONDS:
        left = f"about {html.duration(end - now)} left"
    return ", ".join(filter(None, (began, left)))


def render_people(people: Sequence[Person], invitations: "Sequence[InvitationState]", chosen: str) -> str:
    """Return a pickable row per account, and the open invitations."""
    rows = []
    for person in people:
        state = "active"
        if person.disabled is not None:
            state = f'<span class="off">disabled {escape(ago(person.disabled))}</span>'
        cells = (f"<b>{escape(person.name)}</b>", person.role, escape(ago(person.last_sign_in)), state)
        rows.append(html.Row(cells, html.pickable(person.name, chosen=person.name == chosen)))
    people_table = html.table(("Name", "Role", "Last sign-in", "State"), rows, css="rows")
    links = Counter(
        f"{invitation.role if invitation.person is None else f'new password of {invitation.person}'} "
        f"by {invitation.invited_by or 'command line'}, valid for {html.duration(max(invitation.expires - time.time(), 0))}"
        for invitation in invitations
    )
    summary = "; ".join(f"{count} × {link}" if count > 1 else link for link, count in links.items())
    return people_table + (html.small(f"{html.plural(links.total(), 'open link')}: {summary}.") if links else "")


def render_link(link: str, what: str) -> str:
    """Return a link that is shown this once."""
    sentence = f"{what}. It can be used once, within 72 hours. Send it over a channel you trust; it is not shown again."
    return f'<div class="notice" role="status"><b>{escape(sentence)}</b>{html.copyable(link, "link")}</div>'


def removal_words(name: str, runs: "RunsOfPerson") -> str:
    """Return what removing an account does to it and its runs."""
    runs_words = "This account has no runs."
    if runs.all:
        runs_words = f"Kept: {html.plural(runs.all, 'run')}, which admins can read."
    if runs.active or runs.waiting:
        runs_words += f" {html.plural(runs.active, 'run')} at work and {runs.waiting:,} waiting continue; stop them in the list below."
    return f"{name} is signed out and cannot sign in again; the name is not given to another person. {runs_words}"


def render_cache(cache: ModelCache) -> str:
    """Return the models in the cache: size, last use, users; those offered for removal are marked."""
    if not cache.models:
        return html.empty("No models yet", "Models from the Hub are downloaded once and shared by all users.")
    most = "no limit is set" if cache.most_bytes is None else f"the limit is {html.size(cache.most_bytes)}"
    text = f"{html.plural(len(cache.models), 'model')}, {html.size(cache.bytes)}; {most}."
    if cache.removable:
        text += f" Remove the {len(cache.removable):,} marked ones, used least recently, to get below it."
    elif cache.most_bytes is not None and cache.bytes > cache.most_bytes:
        text += " All of them are needed by runs."
    rows = [_cache_row(model, model.id in cache.removable) for model in reversed(cache.models)]
    columns = ("Model", html.Column.of_numbers("Size"), "Last used", "Runs", "")
    button = html.pick_button(OFFERED, f"Remove the {html.plural(len(cache.removable), 'marked model')}")
    models = html.table(columns, rows, css="rows", scrolls="scroll tall")
    return f"{html.small(text)}{models}{button if cache.removable else ''}"


def _cache_row(model: CachedModel, is_offered: bool) -> tuple[str, ...]:
    users = ", ".join(name.partition("/")[0] for name in model.use.needed_by)
    remove = html.pick_button(f"{MODEL_PREFIX}{model.id}", "Remove", label=f"Remove {model.id}")
    return (
        html.under(escape(model.id), "offered for removal" if is_offered else ""), html.size(model.bytes), escape(ago(model.last_used)),
        html.under(f"{model.use.runs:,}", f"needed by {users}" if users else ""), "" if users else remove,
    )  # fmt: skip


def models_question(ids: Sequence[str], cache: ModelCache) -> str:
    """Return the question before models are removed from the cache."""
    models = [model for model in cache.models if model.id in ids]
    runs = sum(model.use.runs for model in models)
    again = f" {html.plural(runs, 'run that has ended', 'runs that have ended')} used them; a chat or export downloads them again."
    return (
        f"Remove {', '.join(model.id for model in models)}? This frees {html.size(sum(model.bytes for model in models))}."
        + (again if runs else " They are downloaded again when needed.")
    )


def render_usage(usage: "Usage") -> str:
    """Return usage by person and week, and the disk space in use."""
    weeks = sorted({entry.week for entry in usage.weeks}, reverse=True)[:_TABLE_WEEKS]
    entries = (entry for entry in usage.weeks if entry.week in weeks)
    all_weeks = sorted(entries, key=lambda entry: (weeks.index(entry.week), entry.owner))
    rows = [_usage_row(entry, usage.disk.get((entry.owner, entry.week))) for entry in all_weeks]
    total = sum(disk.total for disk in usage.disks)
    below = html.small(
        f"People have {html.size(total)} on disk now; {html.size(usage.free_bytes)} are free. Of earlier weeks, disk space is as of "
        "their last day."
    )
    if not rows:
        return below
    numbers = [html.Column.of_numbers(title) for title in ("GPU hours", "CPU hours", "kWh", "Runs", "Disk")]
    return html.table(("Week", "Person", *numbers), rows, css="rows", scrolls="scroll tall") + below


def _usage_row(entry: WeekOfPerson, disk: int | None) -> tuple[str, ...]:
    return (
        _week_name(entry.week), f"<b>{escape(entry.owner)}</b>", f"{entry.gpu_hours:,.1f}", f"{entry.cpu_hours:,.1f}",
        "–" if entry.kwh is None else f"{entry.kwh:,.2f}", f"{entry.runs:,}", "–" if disk is None else html.size(disk),
    )  # fmt: skip


def usage_figure(usage: "Usage") -> str:
    """Return the hours of each person by week as stacked bars, on GPUs if there is one; empty where there is nothing."""
    weeks = sorted({entry.week for entry in usage.weeks})[-_CHART_WEEKS:]
    rows = [entry for entry in usage.weeks if entry.week in weeks]
    has_gpu = any(entry.gpu_hours for entry in rows)
    hours = {(entry.owner, entry.week): entry.gpu_hours if has_gpu else entry.cpu_hours for entry in rows}
    totals: defaultdict[str, float] = defaultdict(float)
    for (owner, _), value in hours.items():
        totals[owner] += value
    people = sorted(filter(totals.__getitem__, totals), key=lambda owner: -totals[owner])
    if not people:
        return ""
    names = people if len(people) <= len(SERIES) else people[: len(SERIES) - 1]
    groups = [(owner, [owner]) for owner in names]
    if len(names) < len(people):
        groups.append(("all other people", people[len(names) :]))
    traces: list[dict[str, Any]] = [
        {
            "type": "bar", "name": name, "x": [_week_name(week) for week in weeks],
            "y": [round(sum(hours.get((owner, week), 0.0) for owner in owners), 2) for week in weeks],
            "marker": {"color": colour}, "hovertemplate": "%{y:,.2f} hours",
        }
        for (name, owners), (colour, _) in zip(groups, SERIES, strict=False)
    ]  # fmt: skip
    title = "GPU hours" if has_gpu else "CPU hours"
    layout = chart_layout(280, "usage") | {
        "barmode": "stack", "bargap": 0.4, "showlegend": True, "xaxis": AXIS | {"type": "category", "automargin": True},
        "yaxis": AXIS | {"title": {"text": title}, "rangemode": "tozero", "automargin": True},
    }  # fmt: skip
    return figure_json(traces, layout, f"{title} by week of {', '.join(name for name, _ in groups)}.")


def usage_csv(usage: "Usage") -> str:
    """Return usage as CSV by person and week; disk space at the end of the week, if measured."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("week", "person", "gpu_hours", "cpu_hours", "kwh", "runs", "disk_bytes"))
    for entry in usage.weeks:
        kwh = "" if entry.kwh is None else f"{entry.kwh:.4f}"
        disk = usage.disk.get((entry.owner, entry.week), "")
        hours = f"{entry.gpu_hours:.4f}", f"{entry.cpu_hours:.4f}"
        writer.writerow((_week_name(entry.week), entry.owner, *hours, kwh, entry.runs, disk))
    return text.getvalue()


def render_shared(items: "Sequence[SharedItem]") -> str:
    """Return the folders and files that everyone may read."""
    if not items:
        folders = "Put models into shared/models and data into shared/data below LORATORY_HOME."
        return html.empty("Nothing is shared", folders)
    rows = [(item.kind, escape(item.name), html.size(item.bytes)) for item in items]
    return html.table(("Kind", "Name", html.Column.of_numbers("Size")), rows, css="rows", scrolls="scroll tall")


def render_log(entries: "Sequence[AuditEntry]") -> str:
    """Return entries of the audit log."""
    if not entries:
        return html.empty("No matching entries", "Change the filter.")
    rows = [
        (
            f'<span class="num">{datetime.fromtimestamp(entry.time):%Y-%m-%d %H:%M:%S}</span>',
            escape(entry.person or "–"), entry.kind, escape(" · ".join(filter(None, (entry.subject, entry.detail)))) or "–",
            escape(entry.address or "–"),
        )
        for entry in entries
    ]  # fmt: skip
    return html.table(("Time", "Person", "What", "Of what", "Address"), rows, css="rows", scrolls="scroll tall")


def _week_name(week: Week) -> str:
    return f"{week.year}-W{week.number:02d}"
