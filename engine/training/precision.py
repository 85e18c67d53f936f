"""In what precision a run computes: chosen for the device where the settings leave it open."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from transformers import BitsAndBytesConfig

from engine.config.rules import DtypeName, choose_compute_dtype
from engine.config.run import ModelConfig, RunConfig
from engine.hardware.device import Device

_DTYPES: Mapping[DtypeName, torch.dtype] = {name: getattr(torch, name) for name in get_args(DtypeName)}


@dataclass(frozen=True)
class Precision:
    """What is held and computed in which dtype. Trained weights are always float32, and so is the optimizer's state."""

    compute: torch.dtype  # of matrix products and of what passes between layers
    frozen: torch.dtype  # of weights that are not trained and not quantized

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients underflow unless the loss is scaled up."""
        return self.compute is torch.float16

    @property
    def compute_name(self) -> DtypeName:
        """As settings and events call it."""
        return next(name for name, dtype in _DTYPES.items() if dtype is self.compute)


def choose_precision(config: RunConfig, device: Device, begun_in: str | None = None) -> Precision:
    """Choose the precision of a run by its settings and device.

    A resumed run continues in the precision that its checkpoint was `begun_in`, wherever that can be computed: another
    rounding is another trajectory.
    """
    setting = config.model.compute_dtype
    if setting == "auto":
        setting = next((name for name in _DTYPES if name == begun_in and _trains_in(name, device)), setting)
    compute = _DTYPES[choose_compute_dtype(setting, device.kind, has_fast_bfloat16=device.has_fast_bfloat16)]
    return Precision(compute, torch.float32 if config.adapter.traits.trains_all else compute)


def _trains_in(name: DtypeName, device: Device) -> bool:
    """Whether a device computes in it at all, be it slowly."""
    if name == "bfloat16":
        return device.has_fast_bfloat16 or device.kind == "cpu"
    return name == "float32" or device.kind != "cpu"


def resumed_notes(config: RunConfig, device: Device, begun_in: str | None) -> tuple[str, ...]:
    """Return notes for a person where a resumed run cannot continue in the precision that it began in."""
    now = choose_precision(config, device, begun_in).compute_name
    if config.model.compute_dtype != "auto" or begun_in in (None, now):
        return ()
    return (
        f"This run began in {begun_in}, which this device does not train in; it continues in {now}, and its losses may differ a "
        "little from those that it would have had.",
    )


def apple_notes(config: RunConfig, device: Device) -> tuple[str, ...]:
    """Return notes for a person about a run on Apple's GPU; none on other devices."""
    if device.kind != "mps":
        return ()
    notes = []
    if not device.has_fast_bfloat16 and config.model.compute_dtype == "auto":
        notes.append(
            "bfloat16 on Apple's GPU needs macOS 14, so this run computes in float32, which takes twice the memory; "
            "model.compute_dtype float16 takes half of it and is less exact."
        )
    if config.model.quantization != "none":
        notes.append(
            f"bitsandbytes has {config.model.quantization} on Apple's GPU without kernels that are made for it: it works, and "
            "may be slower than 16-bit weights."
        )
    return tuple(notes)


def quantization_of(model: ModelConfig, compute: torch.dtype, *, sharded: bool = False) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` takes as `quantization_config`; None for weights that are not quantized.

    4-bit weights are unpacked into the dtype `compute` of matrix products. To be sharded, they are packed into numbers of
    that dtype, for FSDP2 divides floating-point numbers alone.
    """
    if model.quantization == "none":
        return None
    if model.quantization == "int8":
        # It logs that inputs are cast to float16, in each layer of each pass: 200 lines a step.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute if sharded else None,
    )
