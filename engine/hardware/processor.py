"""The processor, Apple's GPU, and the memory that they share, within the limits of a container or a scheduler.

Apple's GPU, which torch calls mps, is found without torch, by what the system reports about itself.
"""

import itertools
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil

from loratory.engine.hardware.device import Device, MemoryNow

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def describe_processor() -> Device:
    """Return the processor as a device to train on; its memory is RAM."""
    cpuinfo = _read_text(_CPUINFO)
    return Device("cpu", 0, processor_name(cpuinfo), *memory_now(), has_fast_bfloat16(cpuinfo), cores=usable_cores())


def memory_now() -> MemoryNow:
    """RAM that there is, and that new processes can have: what is free and what the system would give back at once."""
    machine = psutil.virtual_memory()
    total_bytes, free_bytes = int(machine.total), int(machine.available)
    for folder in _own_cgroups(_read_text(_OWN_CGROUP), _CGROUP_ROOT):
        limit = cgroup_memory(folder)
        if limit is not None:
            total_bytes = min(total_bytes, limit.total_bytes)
            free_bytes = min(free_bytes, limit.free_bytes)
    return MemoryNow(total_bytes, free_bytes)


def cgroup_memory(folder: Path) -> MemoryNow | None:
    """Return the memory limit of one cgroup and what is left of it; None where it sets no limit.

    File cache that the kernel would drop first (inactive_file) counts as free, as it does in `MemAvailable`.

    Source: Linux Documentation/admin-guide/cgroup-v2.rst, Memory Interface Files.
    """
    limit = _read_text(folder / "memory.max").strip()
    if not limit.isdigit():
        return None
    usage = _read_text(folder / "memory.current").strip()
    cached = re.search(r"^inactive_file (\d+)$", _read_text(folder / "memory.stat"), re.MULTILINE)
    used_bytes = (int(usage) if usage.isdigit() else 0) - (int(cached[1]) if cached else 0)
    return MemoryNow(int(limit), max(0, int(limit) - max(0, used_bytes)))


def usable_cores() -> int:
    """Count the logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_fast_bfloat16(cpuinfo: str) -> bool:
    """Return whether the processor multiplies bfloat16 faster than float32, by Linux's /proc/cpuinfo; False elsewhere.

    AMX does, and so do AMD's vector units. Intel's have an instruction for it that is slower than theirs for float32, which
    matters where AMX is hidden from a virtual machine: on two cores of a fifth generation Xeon, 0.16 against 0.26 TFLOP/s.
    """
    facts = _facts(cpuinfo)
    flags = facts.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") != "GenuineIntel")


def processor_name(cpuinfo: str) -> str:
    """Return the processor's name, as far as the system reports it."""
    name = " ".join(_facts(cpuinfo).get("model name", "").split())
    return name or platform.processor() or platform.machine() or "CPU"


def _facts(cpuinfo: str) -> dict[str, str]:
    """Return the facts of the first core, by name."""
    lines = itertools.takewhile(lambda line: ":" in line, cpuinfo.splitlines())
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _own_cgroups(own: str, root: Path) -> list[Path]:
    """List the cgroup of this process and those above it; each may set a limit."""
    relative = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "/")
    folder = root / relative.lstrip("/")
    return [cgroup for cgroup in (folder, *folder.parents) if cgroup.is_relative_to(root)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def list_apple_gpus(memory: MemoryNow, recommended_bytes: int | None = None) -> tuple[Device, ...]:
    """List the GPU of a Mac with Apple's own chip; none elsewhere. PyTorch has no builds for other Macs.

    Args:
        memory: RAM, which such a GPU shares with the processor.
        recommended_bytes: How much of it Metal advises one program to take, where torch was asked
            (`torch.mps.recommended_max_memory`).
    """
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return ()
    macos = [int(part) for part in platform.mac_ver()[0].split(".")[:2] if part.isdigit()]
    total = min(memory.total_bytes, recommended_bytes or memory.total_bytes)
    has_fast_bfloat16 = macos >= [14]  # `is_torch_bf16_available_on_device`, transformers/utils/import_utils.py
    name, free = f"{_chip() or 'Apple'} GPU", min(memory.free_bytes, total)
    return (Device("mps", 0, name, total, free, has_fast_bfloat16),)


def _chip() -> str:
    """Return the chip's name, such as Apple M2 Pro; empty where the system does not report it."""
    try:
        return subprocess.check_output(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    except (OSError, subprocess.SubprocessError):
        return ""
