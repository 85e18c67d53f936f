"""How much of a GPU one process takes, as the driver counts it: with its context, which PyTorch does not know of."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from engine.hardware.cuda import NvmlSession, ask_driver, device_handle, load_nvml


class ProcessMeter(NvmlSession, Protocol):
    """The part of pynvml that is used here."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Sequence[Any]: ...  # noqa: N802 - NVML's own name


def gpu_process_bytes(index: int, nvml: ProcessMeter | None = None) -> int | None:
    """What this process takes of a GPU now; None where the driver does not tell, as on Windows.

    In a container the driver may count processes by numbers of the host. Where only one works on the GPU, it is this one.

    Args:
        index: Of the device, as `engine.hardware.cuda` numbers them. This process must have used it.
        nvml: The binding; None takes the installed one.

    Source: NVML API reference, nvmlDeviceGetComputeRunningProcesses and nvmlProcessInfo_t.
    """
    meter: ProcessMeter | None = nvml if nvml is not None else load_nvml()  # type: ignore[assignment]
    if meter is None:
        return None

    def processes() -> list[Any]:
        return list(meter.nvmlDeviceGetComputeRunningProcesses(device_handle(meter, index)))

    found = ask_driver(meter, processes) or []
    ours = [process for process in found if process.pid == os.getpid()] or (found if len(found) == 1 else [])
    return int(ours[0].usedGpuMemory) if ours and ours[0].usedGpuMemory else None
