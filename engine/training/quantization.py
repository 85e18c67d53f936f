"""How frozen weights are loaded in fewer bits, for training and for chat."""

import logging

import torch
from transformers import BitsAndBytesConfig

from engine.config.model import ModelConfig


def quantization_of(model: ModelConfig, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` takes as `quantization_config`; None for weights that are not quantized.

    Args:
        model: Says which quantization.
        compute: Of matrix products, into which 4-bit weights are unpacked.
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
    )
