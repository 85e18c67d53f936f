"""NVIDIA GPUs, asked of the driver's own library (NVML), which needs no torch and starts no CUDA context."""

import importlib
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from engine.hardware.device import Device, MemoryNow

Answer = TypeVar("Answer")

_FIRST_CAPABILITY_WITH_BFLOAT16 = (8, 0)  # Ampere; CUDA C++ Programming Guide, arithmetic instructions


class NvmlSession(Protocol):
    """The part of pynvml that every question to the driver needs."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's own names
    def nvmlShutdown(self) -> None: ...  # noqa: N802


class Nvml(NvmlSession, Protocol):
    """The part of pynvml that is used here."""

    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str | bytes: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]: ...  # noqa: N802


def load_nvml() -> Nvml | None:
    """NVML's Python binding, or None where it is not installed."""
    try:
        nvml: Nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    return nvml


def ask_driver(nvml: NvmlSession, question: Callable[[], Answer]) -> Answer | None:
    """Ask the driver something between `nvmlInit` and `nvmlShutdown`; None where there is none, or it does not know."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return question()
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def list_cuda_devices(nvml: Nvml | None, shared_memory: MemoryNow) -> tuple[Device, ...]:
    """Every GPU that this process may use, in the order of `nvidia-smi`; none where there is no driver.

    Args:
        nvml: What `load_nvml` found.
        shared_memory: RAM, for GPUs that have no memory of their own and share it with the processor.
    """
    if nvml is None:
        return ()

    def describe_all() -> list[Device | None]:
        return [_describe(nvml, index, shared_memory) for index in range(nvml.nvmlDeviceGetCount())]

    return tuple(device for device in ask_driver(nvml, describe_all) or () if device is not None)


def _describe(nvml: Nvml, index: int, shared_memory: MemoryNow) -> Device | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if not _is_visible(index, _text(nvml.nvmlDeviceGetUUID(handle))):
            return None
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
        name = _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:  # fallen off the bus, or not ours to see; the others still count
        return None
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        now = MemoryNow(int(memory.total), int(memory.free))
    except nvml.NVMLError:
        now = shared_memory
    return Device(
        kind="cuda",
        index=index,
        name=name.removeprefix("NVIDIA "),
        total_bytes=now.total_bytes,
        free_bytes=now.free_bytes,
        has_fast_bfloat16=capability >= _FIRST_CAPABILITY_WITH_BFLOAT16,
    )


def _is_visible(index: int, uuid: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets programs use this GPU; names may be numbers or (shortened) UUIDs."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return True
    names = [name.strip() for name in setting.split(",")]
    return any(name == str(index) or (name.startswith("GPU-") and uuid.startswith(name)) for name in names)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
