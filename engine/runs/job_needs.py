"""The RAM and time that a job requests from a scheduler."""

import math
from collections.abc import Iterable

from engine.config.objectives import preference_name
from engine.config.run import RunConfig
from engine.data.contract import RowLengths
from engine.errors import ConfigError, ModelError
from engine.hardware.device import Device, similar_device
from engine.memory.device_need import PROCESS_ITSELF
from engine.memory.estimate import GIB, Estimator
from engine.memory.methods.registry import count_trainable
from engine.models.shape import ModelShape
from engine.runs.plan import RunPlan
from engine.runs.summary import RunSummary

# CUDA's libraries and kernels in RAM after the first product: 1.2 GiB (issue 106511 of pytorch), 1.7 (12873), 2.0 (19397,
# 113326). Not measured here.
_CUDA_IN_RAM = 2 * GIB
_MAPPED_AT_ONCE = 5 * GIB  # of weight files, whose pages the kernel takes back; one file of most models on the Hub
_TRAINED_BYTES = 12  # a 32-bit weight and AdamW's two moments, read into RAM when a checkpoint is resumed
_TOKEN_BYTES = 32  # ids and labels of 64 bits, once as a list and once in a batch
_RAM_MARGIN = 1.3
_LEAST_BYTES = 4 * GIB


def host_memory_bytes(
    shape: ModelShape, config: RunConfig, device: Device, processes: int = 1, rows: RowLengths | None = None
) -> int:
    """Return the RAM that the processes of a run need on one machine, with a margin, in whole GiB.

    Args:
        device: That each process trains on; the processor's memory is estimated like that of a GPU.
        processes: On this machine.
        rows: Of the data; without them the data counts nothing.

    Raises:
        MemoryUnknownError: If it trains on a processor, and the model's layer structure is not supported.
    """
    if device.kind == "cpu":
        return _in_whole_gib(Estimator(shape, device, rows).need(config).needed_bytes * processes)
    weights = shape.num_parameters * 2
    if config.run.fsdp == "none":  # else each process has the whole model in RAM before it is divided
        weights = min(weights, _MAPPED_AT_ONCE)
    tokens = rows.count * rows.per_row * sum(rows.tokens) // len(rows.tokens) if rows is not None else 0
    each = (
        PROCESS_ITSELF + _CUDA_IN_RAM + weights + _count_trained(shape, config) * _TRAINED_BYTES + tokens * _TOKEN_BYTES
    )
    return _in_whole_gib(round(each * processes * _RAM_MARGIN))


def _count_trained(shape: ModelShape, config: RunConfig) -> int:
    try:
        return count_trainable(shape, config.adapter).trainable
    except (ConfigError, ModelError):  # a structure that is not known: all of it
        return shape.num_parameters


def _in_whole_gib(count: int) -> int:
    return math.ceil(max(count, _LEAST_BYTES) / GIB) * GIB


# Cautious guesses: the share of peak FLOP/s that training reaches, and the time outside training.
_REACHED_SHARE = 0.15
_SET_UP_HOURS = 0.4  # installing, fetching the model, measuring the held-out loss, saving
_OPERATIONS_PER_WEIGHT = 8  # forward 2, backward 4, and 2 to compute activations again
_MARGIN_OF_ESTIMATE = 2.0
PROCESSOR_TFLOPS_PER_CORE = 0.04
_SLOW_GPU_TFLOPS = 65.0  # of a T4, where a GPU is not known
_MARGIN_OF_MEASUREMENT = 1.5


def estimated_hours(parameters: int, tokens: float, tflops: float) -> float:
    """Return the time that a run is unlikely to exceed: twice the time at a cautious pace, plus set-up.

    Args:
        tokens: Tokens of all epochs.
        tflops: Dense, at 16 bits, of all devices together.

    Source: 6 operations per weight and token, Kaplan et al. 2020, section 2.1; 8 with activation checkpointing.
    """
    seconds = parameters * tokens * _OPERATIONS_PER_WEIGHT / (tflops * 1e12 * _REACHED_SHARE)
    return _SET_UP_HOURS + seconds / 3600 * _MARGIN_OF_ESTIMATE


def tflops_of(device: Device) -> float:
    """Return the TFLOP/s of a device at 16 bits, dense, from NVIDIA's data sheets; a cautious value if unknown."""
    if device.kind == "cpu":
        return max(1, device.cores) * PROCESSOR_TFLOPS_PER_CORE
    known_device = similar_device(device.name, device.total_bytes / 1e9)
    return (known_device.dense_tflops if known_device is not None else None) or _SLOW_GPU_TFLOPS


def measured_hours(config: RunConfig, plan: RunPlan, where: str, earlier: Iterable[RunSummary]) -> float | None:
    """Return the time by the pace of the newest similar run that completed there in one attempt.

    The pace includes loading, evaluations and saves. None without such a run.

    Args:
        where: The devices as `RunState.device` names them, such as `1×a100`.
        earlier: The person's runs.
    """
    paces = {
        one.created: one.trained_tokens / one.seconds
        for one in earlier
        if (one.model, one.method, one.objective) == (config.model.id, config.method_name, preference_name(config))
        and (one.state, one.attempt) == ("completed", 1)
        and where in one.device.split(" · ")
        and one.seconds
        and one.trained_tokens
    }
    if not paces:
        return None
    return _SET_UP_HOURS + plan.trained_tokens / paces[max(paces)] / 3600 * _MARGIN_OF_MEASUREMENT


def in_half_hours(hours: float, most: float) -> float:
    """Return a time limit in half hours, at most `most`."""
    return min(math.ceil(hours * 2) / 2, most)
