"""Disk space of a lab: what each person uses, and whether there is room for more."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from engine.accounts.limits import LabLimits, is_lab
from engine.errors import EngineError, StorageError
from engine.paths import LoratoryHome
from engine.quantities import size
from engine.runs.store import folder_size_bytes

_GB = 10**9
_WARNED_FROM = 0.85  # of the quota
_FLOORS_WARNED_FROM = 2.0  # of the space that stays free


@dataclass(frozen=True)
class DiskUse:
    """Bytes that one person has in a lab."""

    owner: str
    runs: int
    uploads: int
    exports: int
    models: int = 0  # fetched with their own token, or converted
    cache: int = 0  # of their page, prepared pushes included
    transfers: int = 0  # on their way into or out of the page

    @property
    def parts(self) -> Mapping[str, int]:
        """Return the bytes by what they are of, leaving out what has none."""
        named = {
            "runs": self.runs, "uploads": self.uploads, "exports": self.exports, "own models": self.models,
            "cache": self.cache, "transfers": self.transfers,
        }  # fmt: skip
        return {name: bytes_ for name, bytes_ in named.items() if bytes_}

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())


def disk_use(home: LoratoryHome, owner: str) -> DiskUse:
    """Measure a person's folders; slow for thousands of files."""
    own = home.of(owner)
    folders = (own.own_runs, own.uploads, own.exports, own.own_models, own.cache, own.transfers)
    return DiskUse(owner, *map(folder_size_bytes, folders))


def free_bytes(home: LoratoryHome) -> int:
    """Return the free space of the disk that a home is on."""
    return shutil.disk_usage(home.root).free


def is_disk_short(home: LoratoryHome, limits: LabLimits) -> bool:
    """Whether less is free than a lab keeps free."""
    return free_bytes(home) < limits.free_disk_gb * _GB


def require_disk_space(home: LoratoryHome, owner: str, more_bytes: int = 0) -> None:
    """Raise an error if a person's quota or the disk is full; does nothing without accounts.

    Args:
        more_bytes: How much; 0 where that is not known.

    Raises:
        StorageError: If it exceeds the person's quota, or leaves less free than the lab keeps.
    """
    limits = _limits(home)
    if limits is None:
        return
    free = free_bytes(home)
    if free - more_bytes < limits.free_disk_gb * _GB:
        need = f", and {_gb(more_bytes)} GB are needed" if more_bytes else ""
        raise StorageError(
            f"The disk has {_gb(free)} GB free{need}; the lab keeps {limits.free_disk_gb:g} GB free.",
            "Delete runs, uploads or exports that are no longer needed, or ask an admin for space.",
        )
    room = _room(home, owner, limits)
    if room is not None and (more_bytes > room.bytes or room.bytes <= 0):
        need = f"; {size(more_bytes)} more are needed" if more_bytes else ""
        raise StorageError(f"{room.use}{need}.", FREE_SPACE)


FREE_SPACE = "Delete runs, uploads, exports or own models that you no longer need."
_SHARE_OF_TIME = 20  # measuring thousands of files takes long: a twentieth of the time at most


@dataclass(frozen=True)
class DiskRoom:
    """What a person may still store."""

    bytes: float  # below zero where it is more than that already
    use: str  # such as: You use 1.9 GB of 2.0 GB (runs 1.8 GB, uploads 100 MB)


class QuotaWatch:
    """Follows a person's disk quota from the process that writes their checkpoints; needs `lab.yaml`, not the accounts."""

    def __init__(self, home: LoratoryHome, owner: str) -> None:
        self._home = home
        self._owner = owner
        self._room: DiskRoom | None = None
        self._measure_from = float("-inf")

    def room(self, needed_bytes: float) -> DiskRoom | None:
        """Return what is left, as measured just now where that may not be enough; None where there is no limit."""
        began = time.monotonic()
        if self._room is None or self._room.bytes < needed_bytes or began >= self._measure_from:
            try:
                limits = _limits(self._home)
                self._room = None if limits is None else _room(self._home, self._owner, limits)
            except EngineError as error:  # lab.yaml is damaged: what was last known holds
                print(error, flush=True)
            now = time.monotonic()
            self._measure_from = now + _SHARE_OF_TIME * (now - began)
        return self._room

    def count(self, bytes_: float) -> None:
        """Count bytes that were written since, or deleted where negative."""
        if self._room is not None:
            self._room = replace(self._room, bytes=self._room.bytes - bytes_)


def _limits(home: LoratoryHome) -> LabLimits | None:
    if not is_lab(home):
        return None
    from engine.accounts.lab import read_settings  # a home without accounts does not pay for it

    return read_settings(home).limits


def _room(home: LoratoryHome, owner: str, limits: LabLimits) -> DiskRoom | None:
    if limits.disk_gb_per_person is None:
        return None
    quota, use = limits.disk_gb_per_person * _GB, disk_use(home, owner)
    parts = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in use.parts.items())
    words = f"You use {size(use.total)} of {size(quota)}" + (f" ({parts})" if parts else "")
    return DiskRoom(quota - use.total, words)


def disk_warning(use: DiskUse, limits: LabLimits, free: int) -> str:
    """Return a warning before starts and uploads are refused; empty while there is enough space."""
    quota = limits.disk_gb_per_person
    sentences = []
    if quota is not None and use.total >= quota * _GB:
        sentences.append(
            f"You use {_gb(use.total)} of {quota:g} GB of disk space, so starts and uploads are refused: "
            "delete runs, uploads or exports that you no longer need."
        )
    elif quota is not None and use.total >= _WARNED_FROM * quota * _GB:
        sentences.append(
            f"You use {_gb(use.total)} of {quota:g} GB of disk space. At {quota:g} GB, starts and uploads are refused: "
            "delete runs, uploads or exports that you no longer need."
        )
    if free < _FLOORS_WARNED_FROM * limits.free_disk_gb * _GB:
        below = "so" if free < limits.free_disk_gb * _GB else f"and below {limits.free_disk_gb:g} GB"
        sentences.append(f"The disk of the lab has {_gb(free)} GB free, {below} no run starts.")
    return " ".join(sentences)


def _gb(count: int) -> str:
    return f"{count / _GB:,.1f}"
