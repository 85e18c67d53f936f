"""Apple's GPU, which torch calls mps: found without torch, by what the system says of itself."""

import ctypes
import ctypes.util
import platform
import sys
from typing import NamedTuple

from engine.hardware.device import Device, MemoryNow


class AppleSystem(NamedTuple):
    """What must be known of a system to tell whether it has a GPU that torch trains on."""

    platform: str  # as sys.platform
    machine: str  # as platform.machine()
    macos: str  # such as 14.5; empty elsewhere
    chip: str  # such as Apple M2 Pro; empty where the system does not say


def this_system() -> AppleSystem:
    """The system that this process runs on."""
    macos = platform.mac_ver()[0] if sys.platform == "darwin" else ""
    return AppleSystem(sys.platform, platform.machine(), macos, _chip() if sys.platform == "darwin" else "")


def list_apple_gpus(system: AppleSystem, memory: MemoryNow, recommended_bytes: int | None = None) -> tuple[Device, ...]:
    """The GPU of a Mac with Apple's own chip; none elsewhere. PyTorch has no builds for Macs with others.

    Args:
        memory: RAM, which such a GPU shares with the processor.
        recommended_bytes: How much of it Metal advises one program to take, where torch was asked
            (`torch.mps.recommended_max_memory`).
    """
    if system.platform != "darwin" or system.machine != "arm64":
        return ()
    macos = [int(part) for part in system.macos.split(".")[:2] if part.isdigit()]
    total = memory.total_bytes if not recommended_bytes else min(memory.total_bytes, recommended_bytes)
    return (
        Device(
            kind="mps",
            index=0,
            name=f"{system.chip or 'Apple'} GPU",
            total_bytes=total,
            free_bytes=min(memory.free_bytes, total),
            # `is_torch_bf16_available_on_device`, transformers/utils/import_utils.py
            has_fast_bfloat16=macos >= [14],
        ),
    )


def _chip() -> str:
    """The chip's name, from the system call sysctlbyname(3); empty where there is none."""
    value, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    try:
        library = ctypes.CDLL(ctypes.util.find_library("c"))
        failed = library.sysctlbyname(b"machdep.cpu.brand_string", value, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (OSError, AttributeError):
        return ""
    return "" if failed else value.value.decode("utf-8", "replace").strip()
