"""The processor and the memory beside it, within the limits that a container or a scheduler sets."""

import os
import platform
from pathlib import Path

import psutil

from engine.hardware.device import Device, MemoryNow

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_FLAGS_WITH_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})


def describe_processor() -> Device:
    """The processor as a device to train on; its memory is RAM."""
    memory = memory_now()
    return Device(
        kind="cpu",
        index=0,
        name=processor_name(_read(_CPUINFO)),
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        supports_bfloat16=has_bfloat16(_read(_CPUINFO)),
        cores=usable_cores(),
    )


def memory_now() -> MemoryNow:
    """RAM that there is, and that new processes can have: what is free and what the system would give back at once."""
    machine = psutil.virtual_memory()
    total_bytes, free_bytes = int(machine.total), int(machine.available)
    for folder in _own_cgroups(_read(_OWN_CGROUP), _CGROUP_ROOT):
        limit = cgroup_memory(folder)
        if limit is not None:
            total_bytes = min(total_bytes, limit.total_bytes)
            free_bytes = min(free_bytes, limit.free_bytes)
    return MemoryNow(total_bytes, free_bytes)


def cgroup_memory(folder: Path) -> MemoryNow | None:
    """Memory limit of one cgroup and what is left of it; None where it sets no limit.

    File cache that the kernel would drop first (inactive_file) counts as free, as it does in `MemAvailable`.

    Source: Linux Documentation/admin-guide/cgroup-v2.rst, Memory Interface Files.
    """
    limit = _read(folder / "memory.max").strip()
    if not limit.isdigit():
        return None
    used = _read(folder / "memory.current").strip()
    used_bytes = int(used) if used.isdigit() else 0
    for line in _read(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == "inactive_file" and value.isdigit():
            used_bytes -= int(value)
    return MemoryNow(int(limit), max(0, int(limit) - max(0, used_bytes)))


def usable_cores() -> int:
    """Logical cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether the processor multiplies bfloat16 in hardware, by the flags in Linux's /proc/cpuinfo; False elsewhere."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return not _FLAGS_WITH_BFLOAT16.isdisjoint(value.split())
    return False


def processor_name(cpuinfo: str) -> str:
    """What the processor is called, as well as the system tells."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "CPU"


def _own_cgroups(own: str, root: Path) -> list[Path]:
    """The cgroup of this process and all above it, each of which may set a limit."""
    relative = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "/")
    folder = root / relative.lstrip("/")
    chain = [folder, *folder.parents]
    return [place for place in chain if place == root or root in place.parents]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
