"""In what precision a run computes: chosen for the device where the settings leave it open."""

from dataclasses import dataclass
from typing import Literal

import torch

from engine.config.run import RunConfig
from engine.hardware.device import Device

DtypeName = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class Precision:
    """What is held and computed in which dtype. Trained weights are always float32, and so is the optimizer's state.

    Attributes:
        compute: Of matrix products and of what passes between layers.
        frozen: Of weights that are not trained and not quantized.
        needs_loss_scaling: float16 gradients underflow unless the loss is scaled up.
    """

    compute: torch.dtype
    frozen: torch.dtype
    needs_loss_scaling: bool

    @property
    def compute_name(self) -> DtypeName:
        """As settings and events call it."""
        names: dict[torch.dtype, DtypeName] = {
            torch.bfloat16: "bfloat16",
            torch.float16: "float16",
            torch.float32: "float32",
        }
        return names[self.compute]


def choose_precision(config: RunConfig, device: Device) -> Precision:
    """Choose as the settings say; `auto` takes bfloat16 where the device multiplies it in hardware.

    Without it, GPUs take float16, which tensor cores have had for longest, and CPUs float32, which they are built for.
    """
    asked = config.model.compute_dtype
    if asked == "auto":
        fallback = torch.float16 if device.kind == "cuda" else torch.float32
        compute = torch.bfloat16 if device.supports_bfloat16 else fallback
    else:
        compute = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[asked]
    trains_everything = config.adapter.method == "none"
    return Precision(
        compute=compute,
        frozen=torch.float32 if trains_everything else compute,
        needs_loss_scaling=compute is torch.float16,
    )
