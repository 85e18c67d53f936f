"""Which devices there are, and which one a run gets."""

from collections.abc import Callable, Iterable, Sequence

from engine.config.run import RunSection
from engine.errors import DeviceError
from engine.hardware.apple import list_apple_gpus, this_system
from engine.hardware.cuda import list_cuda_devices, load_nvml
from engine.hardware.device import Device
from engine.hardware.libraries import installed_torch
from engine.hardware.processor import describe_processor, memory_now
from engine.paths import LoratoryHome

__all__ = [
    "Device",
    "choose_device",
    "choose_devices",
    "choose_from",
    "device_options",
    "first_that_fits",
    "list_devices",
]

_COUNTS_AS_FREE = 0.5  # share of a GPU's memory; below it another program is at work there


def list_devices() -> tuple[Device, ...]:
    """Every device of this machine as it is now: GPUs in the order of `nvidia-smi`, or Apple's; the processor last.

    Takes milliseconds, needs no torch, and never fails for want of a driver.
    """
    memory = memory_now()
    gpus = list_cuda_devices(load_nvml(), memory, installed_torch(LoratoryHome.located()))
    return (*gpus, *list_apple_gpus(this_system(), memory), describe_processor())


def usable_gpus(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Return the CUDA devices that nothing is known to keep PyTorch from using, in their order."""
    return tuple(device for device in devices if device.kind == "cuda" and device.obstacle is None)


def choose_device(run: RunSection) -> Device:
    """The device that a run with these settings would start on now; the first of them where it names several.

    Raises:
        DeviceError: If the run names a GPU that is not there.
    """
    return choose_from(list_devices(), run)[0]


def choose_devices(run: RunSection) -> tuple[Device, ...]:
    """All devices that one process of such a run works on: several only where the layers are spread over them.

    Raises:
        DeviceError: If the run names a GPU that is not there.
    """
    chosen = choose_from(list_devices(), run)
    return chosen if run.spread_over > 1 else chosen[:1]


def choose_from(devices: Sequence[Device], run: RunSection) -> tuple[Device, ...]:
    """Choose among `devices`, as `list_devices` gives them; several only where the run names several.

    Raises:
        DeviceError: If the run cannot have the devices that it names; see `device_options`.
    """
    return device_options(devices, run)[0]


def device_options(devices: Sequence[Device], run: RunSection) -> tuple[tuple[Device, ...], ...]:
    """Return every set of devices that a run may get, the best first; at least one. Several for `auto` alone.

    `auto` prefers GPUs of which at least half is free, in their order, then those with the most free memory, else Apple's
    GPU, else the processor. It passes over GPUs that PyTorch cannot use.

    Raises:
        DeviceError: If the run names a GPU that is not there or that PyTorch cannot use, names one twice, or names a MIG
            instance together with another device; if there is no device at all.
    """
    gpus = {device.index: device for device in devices if device.kind == "cuda"}
    if run.devices == "auto" and (usable := usable_gpus(devices)):
        free = [gpu for gpu in usable if gpu.free_bytes >= gpu.total_bytes * _COUNTS_AS_FREE]
        busy = sorted((gpu for gpu in usable if gpu not in free), key=lambda gpu: -gpu.free_bytes)
        return tuple((gpu,) for gpu in (*free, *busy))
    if isinstance(run.devices, str):
        kinds = ("mps", "cpu") if run.devices == "auto" else ("cpu",)
        found = next((device for kind in kinds for device in devices if device.kind == kind), None)
        if found is None:
            raise DeviceError("This machine shows no device to train on.", "Name a GPU in run.devices.")
        return ((found,),)
    wanted = tuple(run.devices)
    missing = [index for index in wanted if index not in gpus]
    if missing or not wanted:
        there = ", ".join(f"{index} ({gpu.name})" for index, gpu in gpus.items()) or "none"
        raise DeviceError(
            f"There is no CUDA device {', '.join(map(str, missing)) or '(the list is empty)'}; there is {there}.",
            "Set run.devices to one of these numbers, to auto, or to cpu.",
        )
    if len(set(wanted)) < len(wanted):
        raise DeviceError(f"run.devices names a device twice ({list(wanted)}).", "Name each device once.")
    chosen = tuple(gpus[index] for index in wanted)
    obstacle = next((gpu.obstacle for gpu in chosen if gpu.obstacle is not None), None)
    if obstacle is not None:
        raise DeviceError(obstacle.what, obstacle.fix)
    if len(chosen) > 1 and any(gpu.is_mig for gpu in chosen):
        raise DeviceError(
            f"run.devices names {list(wanted)}, of which one is a MIG instance; CUDA gives a process one instance alone.",
            "Name one device, or switch MIG off on GPUs that are to work together.",
        )
    return (chosen,)


def first_that_fits(
    options: Sequence[tuple[Device, ...]], needed: Callable[[Device], int | None]
) -> tuple[Device, ...] | None:
    """Return the first set of devices on each of which the memory is free that the run needs there.

    Args:
        options: As `device_options` gives them.
        needed: Bytes that the run needs on a device; None where that is not known, and counts as nothing.
    """
    return next((option for option in options if all((needed(one) or 0) <= one.free_bytes for one in option)), None)
