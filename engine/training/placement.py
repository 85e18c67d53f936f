"""Where a process trains: its device, and its place among several processes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from engine.config.run import RunConfig
from engine.errors import DeviceError
from engine.hardware.apple import list_apple_gpus, this_system
from engine.hardware.cuda import Nvml, ask_driver, driver_version, list_cuda_devices, load_nvml
from engine.hardware.device import Device
from engine.hardware.devices import list_devices
from engine.hardware.libraries import TorchBuild, installed_torch
from engine.hardware.processor import memory_now
from engine.paths import LoratoryHome
from engine.training.process_group import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True)
class Placement:
    """Where this process trains, and as which of how many."""

    device: Device  # the first of `spread`, where layers are spread
    torch_device: torch.device
    group: ProcessGroup = SINGLE_PROCESS
    spread: tuple[Device, ...] = ()  # devices that one model's layers are divided among, as torch numbers them

    @property
    def torch_indexes(self) -> tuple[int, ...]:
        """Numbers of its CUDA devices as torch has them; none on other devices."""
        if self.torch_device.type != "cuda":
            return ()
        return tuple(range(len(self.spread))) or (self.torch_device.index or 0,)

    @property
    def device_name(self) -> str:
        """Where it trains, for people."""
        return " + ".join(device.name for device in self.spread) or self.device.name


def choose_placement(config: RunConfig) -> Placement:
    """Return the device that this process sees, and its rank where a launcher started several.

    Raises:
        DeviceError: If torch cannot use the GPU that the run has, if layers are to be spread over more GPUs than this process
            sees, or by several processes.
    """
    group = ProcessGroup.from_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    devices = list_devices()
    processor = next(device for device in devices if device.kind == "cpu")
    gpus = in_torch_order([device for device in devices if device.kind == "cuda"])
    if config.run.devices != "cpu":
        require_usable(gpus, names_gpus=config.run.devices != "auto")
    if torch.cuda.is_available() and config.run.devices != "cpu":
        if config.run.spread_over > 1:
            return _spread(gpus, config.run.spread_over, group)
        # The supervisor hides every GPU but ours, so torch's first is the first that is listed.
        device = gpus[local_rank] if local_rank < len(gpus) else _unlisted_gpu(local_rank)
        return Placement(device, torch.device("cuda", local_rank), group)
    if torch.backends.mps.is_available() and config.run.devices != "cpu":
        (apple,) = list_apple_gpus(this_system(), memory_now(), _recommended_bytes()) or (processor,)
        return Placement(apple, torch.device("mps"), group)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), processor.cores // group.world_size)))
    return Placement(processor, torch.device("cpu"), group)


def passed_over(config: RunConfig, placement: Placement, home: LoratoryHome) -> tuple[str, ...]:
    """Return why `auto` left each GPU of this machine to itself that torch cannot use, where it took the processor."""
    if config.run.devices != "auto" or placement.torch_device.type != "cpu":
        return ()
    gpus = list_cuda_devices(load_nvml(), memory_now(), installed_torch(home), hidden_too=True)
    return tuple(f"{gpu.obstacle.what} {gpu.obstacle.fix}" for gpu in gpus if gpu.obstacle is not None)


def _recommended_bytes() -> int | None:
    """How much memory Metal advises one program to take; None where this torch does not ask it."""
    recommended = getattr(torch.mps, "recommended_max_memory", None)
    return int(recommended()) if recommended is not None else None


def in_torch_order(gpus: Sequence[Device]) -> list[Device]:
    """Return GPUs as torch numbers them: in the order of CUDA_VISIBLE_DEVICES where it is set, not that of `nvidia-smi`."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]

    def place(gpu: Device) -> int:
        called = (
            place for place, name in enumerate(names) if name == str(gpu.index) or (name and gpu.uuid.startswith(name))
        )
        return next(called, gpu.index)

    return sorted(gpus, key=place)


def require_usable(gpus: Sequence[Device], *, names_gpus: bool) -> None:
    """Refuse to compute on the processor what has a GPU, which torch would do without a word.

    Args:
        gpus: Those that the driver lists and CUDA_VISIBLE_DEVICES shows.
        names_gpus: Whether there must be one.

    Raises:
        DeviceError: If torch cannot use them.
    """
    version, cuda = str(torch.__version__), torch.version.cuda
    if torch.cuda.is_available():
        if cuda is not None:
            build = TorchBuild(version, cuda, tuple(torch.cuda.get_arch_list()))
            for gpu in gpus:
                obstacle = build.obstacle(gpu.name, gpu.capability, None) if gpu.capability is not None else None
                if obstacle is not None:
                    raise DeviceError(obstacle.what, obstacle.fix)
        return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    nvml = load_nvml()
    if gpus:
        known = gpus[0].obstacle
        if known is not None:
            raise DeviceError(known.what, known.fix)
        driver = ask_driver(nvml, lambda: driver_version(nvml)) if nvml is not None else None
        raise DeviceError(
            f"PyTorch {version} (CUDA {cuda or 'none'}) cannot use {gpus[0].name}, which NVIDIA's driver "
            f"{driver.version if driver is not None else '(version unknown)'} lists.",
            f"Run `nvidia-smi` here, and check that CUDA_VISIBLE_DEVICES ({shown or 'not set'}) is right; then restart or "
            "reinstall the driver, or set run.devices to cpu.",
        )
    if names_gpus or (nvml is not None and _names_devices(shown or "") and _count(nvml) > 0):
        raise DeviceError(
            f"This process was given a GPU and sees none: CUDA_VISIBLE_DEVICES is {shown or 'not set'}.",
            "Correct CUDA_VISIBLE_DEVICES, or set run.devices to cpu.",
        )


def _names_devices(shown: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names GPUs; an empty one, -1 or NoDevFiles hides all."""
    return shown[:1].isdigit() or shown.startswith(("GPU-", "MIG-"))


def _count(nvml: Nvml) -> int:
    return ask_driver(nvml, nvml.nvmlDeviceGetCount) or 0


def _spread(gpus: Sequence[Device], wanted: int, group: ProcessGroup) -> Placement:
    if group.world_size > 1:
        raise DeviceError(
            f"run.device_map divides layers within one process, and a launcher started {group.world_size} of them.",
            "Start one process, or set run.device_map to none, so each process has a whole model.",
        )
    if len(gpus) < wanted:
        raise DeviceError(
            f"run.devices names {wanted} GPUs to divide the layers among; this process sees {len(gpus)}.",
            "Name fewer GPUs, or let this process see all of them (CUDA_VISIBLE_DEVICES).",
        )
    spread = tuple(gpus[:wanted])
    # What one of them cannot multiply, none may be asked to.
    first = replace(spread[0], has_fast_bfloat16=all(gpu.has_fast_bfloat16 for gpu in spread))
    return Placement(first, torch.device("cuda", 0), group, spread)


def _unlisted_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Device("cuda", index, properties.name, total, free, torch.cuda.is_bf16_supported(including_emulation=False))
