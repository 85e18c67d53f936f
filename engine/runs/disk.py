"""Disk space of a lab: what each person uses, and whether there is room for more."""

import shutil
from dataclasses import dataclass

from engine.accounts.limits import LabLimits, read_rules
from engine.errors import StorageError
from engine.paths import LoratoryHome
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

    @property
    def total(self) -> int:
        """All of them."""
        return self.runs + self.uploads + self.exports + self.models + self.cache


def disk_use(home: LoratoryHome, owner: str) -> DiskUse:
    """Measure a person's folders; slow for thousands of files."""
    own = home.of(owner)
    folders = (own.own_runs, own.uploads, own.exports, own.own_models, own.cache)
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
    rules = read_rules(home)
    if rules is None:
        return
    limits, free = rules.limits, free_bytes(home)
    if free - more_bytes < limits.free_disk_gb * _GB:
        need = f", and {_gb(more_bytes)} GB are needed" if more_bytes else ""
        raise StorageError(
            f"The disk has {_gb(free)} GB free{need}; the lab keeps {limits.free_disk_gb:g} GB free.",
            "Delete runs, uploads or exports that are no longer needed, or ask an admin for space.",
        )
    quota = limits.disk_gb_per_person
    if quota is None:
        return
    use = disk_use(home, owner)
    if use.total + more_bytes > quota * _GB or use.total >= quota * _GB:
        parts = f"runs {_gb(use.runs)}, uploads {_gb(use.uploads)}, exports {_gb(use.exports)}"
        parts += "".join(
            f", {name} {_gb(bytes_)}" for name, bytes_ in (("own models", use.models), ("cache", use.cache)) if bytes_
        )
        need = f"; {_gb(more_bytes)} GB more are needed" if more_bytes else ""
        raise StorageError(
            f"You use {_gb(use.total)} of {quota:g} GB ({parts}){need}.",
            "Delete runs, uploads, exports or own models that you no longer need.",
        )


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
