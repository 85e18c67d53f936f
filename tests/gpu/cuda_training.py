"""A real trainer on a GPU in this process, on rows of random tokens."""

import torch

from engine.hardware.devices import list_devices
from engine.training.placement import Placement


def cuda_placement() -> Placement:
    """The first GPU that this process sees, as the worker places itself."""
    device = next(device for device in list_devices() if device.kind == "cuda")
    return Placement(device, torch.device("cuda", 0))


def auto_dtype(**sections: dict[str, object]) -> dict[str, dict[str, object]]:
    """Sections that leave the compute precision to the device."""
    model = {"compute_dtype": "auto", **sections.pop("model", {})}
    return {"model": model, **sections}
