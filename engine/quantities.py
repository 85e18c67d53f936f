"""Figures as people read them, in commands and on the page: memory in GiB, files in GB, durations, counts."""

import math
import time

GIB = 2**30


def gib(size_bytes: float) -> str:
    """Return memory in GiB: `10.6`, or `0.47` where one decimal would hide the figure."""
    value = size_bytes / GIB
    return f"{value:,.1f}" if value >= 9.95 else f"{value:.2f}"


def size(size_bytes: float) -> str:
    """Return the size of a file: `1.2 GB`, in the decimal units in which disks and downloads are sold."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{size_bytes:.0f} bytes"


def count(number: float) -> str:
    """Return `4,812` in full up to a million, then `1.62 M`."""
    for suffix, factor, from_there in (("T", 1e12, 999.5e9), ("B", 1e9, 999.5e6), ("M", 1e6, 1e6)):
        if number >= from_there:  # a number just below would round to a thousand at three figures
            return f"{number / factor:.3g} {suffix}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    """Return `45 s`, `12 min`, `1 h 12 min` or `2 d 3 h`."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 10:
        return f"{minutes} min {seconds % 60:02d} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def ago(moment: float | None) -> str:
    """Return how long a moment is past, in seconds since the epoch: `never`, `just now`, `12 min ago`, `3 h ago`, `3 days ago`."""
    if not moment:
        return "never"
    seconds = time.time() - moment
    for unit, factor in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * factor if unit == "days" else factor):
            return f"{seconds // factor:,.0f} {unit} ago"
    return "just now"
