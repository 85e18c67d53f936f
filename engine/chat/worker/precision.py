"""In which precision to compute: as configured, else what the device does well."""

import time

import torch
from torch.nn import functional

from engine.config.model import ModelConfig
from engine.hardware.device import Device
from engine.hardware.processor import this_processor_has_bfloat16

# One row times this matrix: larger than processor caches, as a model's weights are, so that memory sets the pace.
_OUT_FEATURES, _IN_FEATURES = 8192, 2048
_ROUNDS = 12


def choose_dtype(model: ModelConfig, device: Device) -> torch.dtype:
    """The configured precision; for `auto` bfloat16 or float16 on GPUs, and on processors the one that generates faster.

    One row at a time, memory sets the pace, and bfloat16 moves half the bytes: with instructions for it a processor is no
    slower in it, also where products of many rows are. Without, it is measured.
    """
    if model.compute_dtype != "auto":
        return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[model.compute_dtype]
    if device.kind != "cpu":
        return torch.bfloat16 if device.has_fast_bfloat16 else torch.float16
    return torch.bfloat16 if this_processor_has_bfloat16() else faster_dtype_on_this_processor()


def faster_dtype_on_this_processor() -> torch.dtype:
    """Measure a token's matrix product in bfloat16 and float32; takes about a tenth of a second.

    The two take turns and the best time of each counts, so that other programs on the machine seldom decide.
    """
    dtypes = (torch.bfloat16, torch.float32)
    weights = {dtype: torch.ones(_OUT_FEATURES, _IN_FEATURES, dtype=dtype) for dtype in dtypes}
    best = dict.fromkeys(dtypes, float("inf"))
    with torch.inference_mode():
        for _ in range(_ROUNDS):
            for dtype, weight in weights.items():
                row = torch.ones(1, _IN_FEATURES, dtype=dtype)
                started = time.perf_counter()
                functional.linear(row, weight)
                best[dtype] = min(best[dtype], time.perf_counter() - started)
    return min(dtypes, key=lambda dtype: best[dtype])
