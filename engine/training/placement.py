"""Where a process trains: its device, and its place among several processes."""

import os
from dataclasses import dataclass

import torch

from engine.config.run import RunConfig
from engine.hardware.device import Device
from engine.hardware.devices import list_devices
from engine.training.companions import ALONE, Companions


@dataclass(frozen=True)
class Placement:
    """Where this process trains, and as which of how many."""

    device: Device
    torch_device: torch.device
    companions: Companions = ALONE


def choose_placement(config: RunConfig) -> Placement:
    """The device that this process sees, and its rank where a launcher started several.

    Apple's GPU shares the processor's memory, so that it is described as the processor; torch calls it `mps`.
    """
    companions = Companions.from_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    devices = list_devices()
    processor = next(device for device in devices if device.kind == "cpu")
    if torch.cuda.is_available() and config.run.devices != "cpu":
        gpus = [device for device in devices if device.kind == "cuda"]
        # The supervisor hides every GPU but ours, so that torch's first is the first of those that are listed.
        device = gpus[local_rank] if local_rank < len(gpus) else _unlisted_gpu(local_rank)
        return Placement(device, torch.device("cuda", local_rank), companions)
    if torch.backends.mps.is_available() and config.run.devices != "cpu":
        return Placement(processor, torch.device("mps"), companions)
    torch.set_num_threads(max(1, min(torch.get_num_threads(), processor.cores // companions.world_size)))
    return Placement(processor, torch.device("cpu"), companions)


def _unlisted_gpu(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return Device("cuda", index, properties.name, total, free, torch.cuda.is_bf16_supported(including_emulation=False))
