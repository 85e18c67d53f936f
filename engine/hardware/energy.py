"""How much electricity GPUs have used, as their own meters say."""

import re
from typing import Any, Protocol

from engine.hardware.cuda import NvmlSession, ask_driver, device_handle, load_nvml

_MILLIJOULES = 1000.0
_GPU = re.compile(r"cuda:(\d+)")


class EnergyMeter(NvmlSession, Protocol):
    """The part of pynvml that is used here."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int: ...  # noqa: N802 - NVML's own name


def energy_so_far_joules(devices: str, nvml: EnergyMeter | None = None) -> float | None:
    """Joules that these GPUs have used since their driver was loaded; a run's share is the difference of two readings.

    Args:
        devices: As leases name them: "cuda:0", "cuda:0, cuda:1", "cpu".
        nvml: The binding; None takes the installed one.

    Returns:
        None where there is no meter: for the processor, older GPUs, and slices of a shared one.

    Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption.
    """
    meter: EnergyMeter | None = nvml if nvml is not None else load_nvml()  # type: ignore[assignment]
    indexes = [int(found[1]) for name in devices.split(", ") if (found := _GPU.fullmatch(name)) is not None]
    if meter is None or not indexes:
        return None

    def joules() -> float:
        handles = [device_handle(meter, index) for index in indexes]
        return sum(meter.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / _MILLIJOULES

    return ask_driver(meter, joules)
