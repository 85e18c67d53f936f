"""Which devices there are, which one a run gets, and what it cannot run there."""

from collections.abc import Callable, Iterator, Sequence

from loratory.engine.config.run import ModelConfig, RunConfig, RunSection
from loratory.engine.errors import DeviceError, Problem
from loratory.engine.hardware.cuda import list_cuda_devices, load_nvml
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.libraries import installed_torch
from loratory.engine.hardware.processor import describe_processor, list_apple_gpus, memory_now
from loratory.engine.paths import LoratoryHome

_FIRST_WITH_FLASH_ATTENTION_2 = (8, 0)  # Ampere; README of flash-attn, "NVIDIA CUDA Support"
_COUNTS_AS_FREE = 0.5  # share of a GPU's memory; below it another program is at work there


def list_devices() -> tuple[Device, ...]:
    """Every device of this machine as it is now: GPUs in the order of `nvidia-smi`, or Apple's; the processor last.

    Takes milliseconds, needs no torch, and works without a driver.
    """
    memory = memory_now()
    gpus = list_cuda_devices(load_nvml(), memory, installed_torch(LoratoryHome.locate()))
    return (*gpus, *list_apple_gpus(memory), describe_processor())


def choose_device(run: RunSection) -> Device:
    """Return the device that a run with these settings would start on now; the first of several.

    Raises:
        DeviceError: If the run names a GPU that is not there.
    """
    return device_options(list_devices(), run)[0][0]


def choose_devices(run: RunSection) -> tuple[Device, ...]:
    """Return all devices that one process of such a run works on: several only where the layers are spread over them.

    Raises:
        DeviceError: If the run names a GPU that is not there.
    """
    devices = device_options(list_devices(), run)[0]
    return devices if run.spread_over > 1 else devices[:1]


def device_options(devices: Sequence[Device], run: RunSection) -> tuple[tuple[Device, ...], ...]:
    """Return every set of devices that a run may get, the best first; at least one. Several for `auto` alone.

    `auto` prefers GPUs of which at least half is free, in their order, then those with the most free memory, else Apple's
    GPU, else the processor. It passes over GPUs that PyTorch cannot use.

    Raises:
        DeviceError: If the run names a GPU that is not there or that PyTorch cannot use, names one twice, or names a MIG
            instance together with another device; if there is no device at all.
    """
    gpus = {device.index: device for device in devices if device.kind == "cuda"}
    usable = [gpu for gpu in gpus.values() if gpu.obstacle is None]
    if run.devices == "auto" and usable:
        free = [gpu for gpu in usable if gpu.free_bytes >= gpu.total_bytes * _COUNTS_AS_FREE]
        busy = sorted((gpu for gpu in usable if gpu not in free), key=lambda gpu: -gpu.free_bytes)
        return tuple((gpu,) for gpu in (*free, *busy))
    if isinstance(run.devices, str):
        kinds = ("mps", "cpu") if run.devices == "auto" else ("cpu",)
        first = next((device for kind in kinds for device in devices if device.kind == kind), None)
        if first is None:
            raise DeviceError("This machine shows no device to train on.", "Name a GPU in run.devices.")
        return ((first,),)
    indexes = run.devices
    missing = [index for index in indexes if index not in gpus]
    if missing or not indexes:
        there = ", ".join(f"{index} ({gpu.name})" for index, gpu in gpus.items()) or "none"
        what = f"There is no CUDA device {', '.join(map(str, missing)) or '(the list is empty)'}; there is {there}."
        raise DeviceError(what, "Set run.devices to one of these numbers, to auto, or to cpu.")
    if len(set(indexes)) < len(indexes):
        raise DeviceError(f"run.devices names a device twice ({list(indexes)}).", "Name each device once.")
    selection = tuple(gpus[index] for index in indexes)
    obstacle = next((gpu.obstacle for gpu in selection if gpu.obstacle is not None), None)
    if obstacle is not None:
        raise DeviceError(obstacle.what, obstacle.fix)
    if len(selection) > 1 and any(gpu.is_mig for gpu in selection):
        raise DeviceError(
            f"run.devices names {list(indexes)}, and one of them is a MIG instance; CUDA gives a process only one instance.",
            "Name one device, or switch MIG off on GPUs that are to work together.",
        )
    return (selection,)


def first_that_fits(
    options: Sequence[tuple[Device, ...]], need: Callable[[Device], int | None]
) -> tuple[Device, ...] | None:
    """Return the first set of devices that all have enough free memory; a `need` that is not known, None, is nothing."""
    return next((option for option in options if all((need(gpu) or 0) <= gpu.free_bytes for gpu in option)), None)


def device_problems(config: RunConfig, device: Device) -> list[Problem]:
    """List the settings that the device cannot run, each with the nearest that it can."""
    training, model = config.training, config.model
    if device.kind == "cuda":
        own = device.capability
        if model.attn_implementation != "flash_attention_2" or own is None or own >= _FIRST_WITH_FLASH_ATTENTION_2:
            return []
        message = f"flash_attention_2 needs compute capability 8.0, and {device.name} has {own[0]}.{own[1]}; sdpa is the nearest."
        return [Problem("model.attn_implementation", message)]
    where = "Apple's GPU" if device.kind == "mps" else "the CPU"
    problems = []
    if training.optim in ("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"):
        message = f"{training.optim} needs a CUDA device, and this run would use {where}; adamw_torch is the nearest."
        problems.append(Problem("training.optim", message))
    if model.attn_implementation == "flash_attention_2":
        message = f"flash_attention_2 needs a CUDA device, and this run would use {where}; sdpa is the nearest."
        problems.append(Problem("model.attn_implementation", message))
    if device.kind == "mps":
        return [*problems, *_apple_problems(model, device)]
    if model.compute_dtype == "float16":
        message = "float16 trains on GPUs only, and this run would use the CPU; auto chooses what it can."
        problems.append(Problem("model.compute_dtype", message))
    if model.quantization == "int8" and "use_dora" in config.adapter.traits.fields and config.adapter.use_dora:
        message = "PEFT cannot read back the lengths of int8 weights on a CPU, which DoRA needs; nf4 is the nearest."
        problems.append(Problem("adapter.use_dora", message))
    return problems


def _apple_problems(model: ModelConfig, device: Device) -> Iterator[Problem]:
    """Yield the problems of Apple's GPU, most of them on older systems."""
    # Source: the table of platforms in bitsandbytes' README: macOS 14 for int8 and 4 bits, 8-bit optimizers still to come.
    has_macos_14 = device.has_fast_bfloat16  # this is what decides it
    if model.compute_dtype == "bfloat16" and not has_macos_14:
        message = "bfloat16 on Apple's GPU needs macOS 14; float32 is the nearest, and float16 takes as little memory."
        yield Problem("model.compute_dtype", message)
    if model.quantization != "none" and not has_macos_14:
        message = (
            f"{model.quantization} weights on Apple's GPU need macOS 14. Update, set none for 16-bit weights, or set "
            "run.devices to cpu, where they work."
        )
        yield Problem("model.quantization", message)


def version_parts(version: str, count: int = 2) -> tuple[int, ...]:
    """Return the first numbers of a version, to be compared: 0.50.2.dev0 → (0, 50)."""
    return tuple(int(part) for part in version.split(".")[:count] if part.isdigit())
