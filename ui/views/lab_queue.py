"""Devices and queue of a lab, as every user sees them: who has what, until when, and why the rest waits."""

import time
from collections.abc import Sequence
from html import escape

from engine.accounts.limits import LabLimits
from engine.hardware.lease import device_words
from engine.runs.disk import DiskUse
from engine.runs.lab_queue import DeviceUse, QueueEntry
from ui.views.html import duration, empty, pick_button, progress_bar, size, small, table, under
from ui.views.run_view import state_mark

_ABOUT_TO_END_SECONDS = 20
STOP_PREFIX, LOOK_PREFIX, URGENT_PREFIX, TURN = "stop:", "look:", "urgent:", "turn"


def render_devices(devices: Sequence[DeviceUse], entries: Sequence[QueueEntry]) -> str:
    """Return a row per device: user, purpose, end, and programs outside Loratory."""
    if not devices:
        return empty("No device", "This machine has no device that Loratory can use.")
    ends = {name: one for one in entries for name in one.device.split(", ") if name}
    rows = [(under(escape(_device(one.device)), one.title), _use(one, ends.get(one.device))) for one in devices]
    return table(("Device", "In use"), rows, css="rows devices")


def render_queue(entries: Sequence[QueueEntry], viewer: str, *, manages: bool = False) -> str:
    """Return active and queued runs; of other users' runs, the public part.

    Args:
        entries: As the viewer may see them.
        manages: Add what an admin does to runs of all.
    """
    if not entries:
        return empty("No runs", "No active or queued runs. The next run starts immediately.")
    rows = [_row(one, viewer, manages) for one in entries]
    columns = ("Owner", "State", "Expected end, or why it waits", *(("",) if manages else ()))
    return table(columns, rows, css="rows turns")


def render_own_disk(use: DiskUse, limits: LabLimits, free: int) -> str:
    """Return the user's disk usage and quota, and the free space."""
    quota = limits.disk_gb_per_person
    parts = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in use.parts.items())
    of = f" of {quota:g} GB" if quota is not None else ""
    floor = f"; from {limits.free_disk_gb:g} GB down, no run starts" if limits.free_disk_gb else ""
    text = f"You use {size(use.total)}{of} of disk space{f' ({parts})' if parts else ''}. {size(free)} are free{floor}."
    bar = "" if quota is None else progress_bar("Disk space", min(1.0, use.total / (quota * 10**9)))
    return f'<div class="disk">{bar}{small(text)}</div>'


def _device(name: str) -> str:
    return device_words(name).removeprefix("The ")


def _use(device: DeviceUse, entry: QueueEntry | None) -> str:
    if device.purpose is None:
        use = "in use by other programs" if device.programs else "free"
    else:
        who = f"<b>{escape(device.owner)}</b>, for" if device.owner else "for"
        use = f"{who} {device.purpose}"
        times = _times(device.since, entry.expected_end if entry is not None else None, ends=entry is not None)
        use = under(use, times) if times else use
    return use + _programs(device)


def _programs(device: DeviceUse) -> str:
    if not device.programs:
        return ""
    words = ", ".join(one.words for one in device.programs)
    return f'<span class="under">Outside Loratory: {escape(words)}</span>'


def _row(one: QueueEntry, viewer: str, manages: bool) -> tuple[str, ...]:
    is_own = one.owner == viewer
    name = f"{one.owner}/{one.run_id}"
    whose = "yours" if is_own else ""
    identity = " · ".join(filter(None, (whose, one.run_id[-4:])))
    place = (
        f"place {one.place}" if one.place is not None else ", ".join(map(_device, filter(None, one.device.split(", "))))
    )
    urgent = f"<b>{escape(one.urgent)}</b> " if one.urgent else ""
    words = one.words or ("Starts when a device is free." if one.place is not None else "")
    if one.place is None:
        words = " ".join(filter(None, (f"{_times(one.since, one.expected_end, ends=True)}.".capitalize(), one.words)))
    cells = (
        under(f"<b>{escape(one.owner)}</b>", identity),
        under(state_mark(one.state), place),
        f"{urgent}{escape(words)}",
    )
    return (*cells, _actions(one, name, is_own)) if manages else cells


def _actions(one: QueueEntry, name: str, is_own: bool) -> str:
    waits = one.place is not None
    buttons = [] if is_own else [pick_button(f"{LOOK_PREFIX}{name}", "Look", label=f"Look into the run {name}")]
    if one.urgent:
        buttons.append(pick_button(TURN, "Not urgent", label=f"The run {name} waits for its turn"))
    elif waits:
        buttons.append(pick_button(f"{URGENT_PREFIX}{name}", "Make urgent", label=f"Make the run {name} urgent"))
    buttons.append(pick_button(f"{STOP_PREFIX}{name}", "Remove" if waits else "Stop", label=f"Stop the run {name}"))
    return f'<span class="acts">{"".join(buttons)}</span>'


def _time_left(seconds: float) -> str:
    return f"about {duration(seconds)} left" if seconds > _ABOUT_TO_END_SECONDS else "about to end"


def _times(since: float | None, end: float | None, *, ends: bool) -> str:
    now = time.time()
    began = "" if since is None else f"for {duration(now - since)}"
    left = "" if not ends else "end not known yet" if end is None else _time_left(end - now)
    return ", ".join(filter(None, (began, left)))
