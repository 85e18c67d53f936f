"""What a run needs, before it starts: steps and tokens, memory on each device that it may get, RAM and time of a job."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loratory.engine.config.derived_defaults import planned_steps
from loratory.engine.config.objectives import objective_of, preference_name
from loratory.engine.config.run import RunConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.contract import DatasetReport, RowLengths
from loratory.engine.errors import ConfigError, DeviceError, EngineError, MemoryUnknownError, ModelError
from loratory.engine.hardware.device import Device, similar_device
from loratory.engine.hardware.devices import first_that_fits, list_devices
from loratory.engine.hardware.lease import lease_name
from loratory.engine.memory.advice import advise
from loratory.engine.memory.device_need import PROCESS_ITSELF, DeviceNeed
from loratory.engine.memory.estimate import GIB, Estimator
from loratory.engine.memory.methods.registry import count_trainable
from loratory.engine.models.inventory_cache import known_inventory
from loratory.engine.models.shape import ModelShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.summary import RunSummary
from loratory.engine.scoring.scorers.judge import judging_cost


class RunPlan(NamedTuple):
    """Figures of a run that has not started."""

    steps: int
    sequences_per_step: int
    seen_tokens: int  # trained and masked, over all epochs
    trained_tokens: int
    is_estimate: bool  # packing decides at the start how many rows there are


def plan_run(training: TrainingConfig, report: DatasetReport) -> RunPlan | None:
    """Return steps and tokens as the trainer will count them; None where no tokens were counted.

    Source: transformers' `Trainer.set_initial_training_values`: batches are cut into whole steps, the last one may be
    smaller, and `max_steps` wins over the epochs.
    """
    if report.total_tokens is None or report.trained_tokens is None or not report.train_rows:
        return None
    share = report.train_rows / max(1, report.train_rows + report.held_out_rows)
    per_row = report.row_lengths.per_row if report.row_lengths is not None else 1  # a pair is a row of two
    sequences = round((report.sequences or report.kept) * share / per_row)
    tokens = report.total_tokens * share
    if training.packing:
        sequences = max(1, math.ceil(tokens / training.max_length))
    batches = math.ceil(sequences / training.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    steps = math.ceil(training.num_train_epochs * per_epoch)
    if training.max_steps > 0:
        steps = training.max_steps
    epochs = steps / per_epoch
    return RunPlan(
        steps=steps,
        sequences_per_step=training.per_device_train_batch_size * training.gradient_accumulation_steps,
        seen_tokens=round(tokens * epochs),
        trained_tokens=round(report.trained_tokens * share * epochs),
        is_estimate=training.packing,
    )


def sampled_answers(config: RunConfig, steps: int) -> int:
    """Return how many answers are sampled, and scored, in so many steps; those to held-out prompts are not among them."""
    training = config.training
    prompts = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return math.ceil(steps / training.num_iterations) * prompts * training.num_generations


def expected_judging(config: RunConfig, rows: RowLengths | None) -> str:
    """Return what judges cost in a run in words; empty without a judge."""
    if not objective_of(config).samples_answers:
        return ""
    steps, training = planned_steps(config, rows.known if rows is not None else None), config.training
    longest = sum(rows.tokens) / len(rows.tokens) if rows is not None else training.max_length
    tokens = longest + training.max_completion_length
    cost = judging_cost(training.rewards, sampled_answers(config, steps or 1), tokens)
    return f"In {f'{steps:,} steps' if steps else 'each step'}, {cost}." if cost is not None else ""


_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """The memory that a run needs on the device that the queue would choose if all were free."""

    devices: tuple[Device, ...]
    need: DeviceNeed  # on that of them where it is the most
    by_name: dict[str, int]  # bytes on each kind of device that it may get


def predict(
    shape: ModelShape, config: RunConfig, options: Sequence[tuple[Device, ...]], rows: RowLengths | None = None
) -> Prediction:
    """Return the needs of a run on the first option with enough memory, by the rule of the queue.

    Without known `rows`, all of them are as long as `max_length` allows.

    Raises:
        DeviceError: If each option is smaller than what the run needs there.
        EngineError: As `needs_of` does.
    """
    by_option = {option: needs_of(shape, config, option, rows) for option in options}
    by_name: dict[str, int] = {}
    too_small: dict[tuple[Device, ...], DeviceError] = {}
    for option, needs in by_option.items():
        for device, need in zip(option, needs, strict=True):
            by_name[device.name] = max(need.expected_bytes, by_name.get(device.name, 0))
            if need.expected_bytes > device.total_bytes:
                too_small.setdefault(option, _too_small(config, device, need))
    possible = [option for option in options if option not in too_small]
    if not possible:
        raise too_small[max(options, key=lambda option: option[0].total_bytes)]
    devices = first_that_fits(possible, lambda device: by_name[device.name]) or possible[0]
    return Prediction(devices, max(by_option[devices], key=lambda need: need.expected_bytes), by_name)


def most_likely(
    shape: ModelShape, config: RunConfig, options: Sequence[tuple[Device, ...]], rows: RowLengths | None = None
) -> tuple[Device, ...]:
    """Return the devices that the queue would give a run; the best where it fits none, or its needs are unknown."""
    if len(options) == 1:
        return options[0]
    try:
        return predict(shape, config, options, rows).devices
    except (DeviceError, MemoryUnknownError):
        return options[0]


def _too_small(config: RunConfig, device: Device, need: DeviceNeed) -> DeviceError:
    where = f" on {lease_name(device)}" if config.run.spread_over > 1 else ""
    return DeviceError(
        f"This run needs about {need.expected_bytes / GIB:.1f} GiB{where}, and {device.name} has "
        f"{device.total_bytes / GIB:.1f} GiB in all.",
        "See `loratory estimate` for what would make it fit: often nf4, shorter rows or checkpointing.",
    )


def needs_of(
    shape: ModelShape, config: RunConfig, devices: Sequence[Device], rows: RowLengths | None = None
) -> tuple[DeviceNeed, ...]:
    """Return the expected memory on each of the run's devices, in order.

    Raises:
        ConfigError: If there are more devices than layers to spread over them.
        MemoryUnknownError: If the model's layer structure is not supported.
    """
    if config.run.spread_over == 1:
        return tuple(Estimator(shape, device, rows).need(config) for device in devices)
    estimator = Estimator(shape, devices[0], rows)
    return tuple(step.need for step in estimator.split_layers(estimator.workload(config), len(devices)))


# A run that was expected to fit and did not needs clearly less than before, however much the device seemed to have.
_ROOM_SHARE = 0.9


def advice_on_memory(
    config: RunConfig, home: LoratoryHome, device: Device | None = None, rows: RowLengths | None = None
) -> str | None:
    """Return the estimate's first advice that makes this run fit, as a sentence; None if there is none.

    Without known `rows`, all of them are as long as `max_length` allows. `device` is where it ran; unless given, the first GPU, or the processor.
    """
    try:
        shape = known_inventory(config.model, home)
        if shape is None:
            return None
        device = device or _device_of(config)
        need = Estimator(shape, device, rows).need(config).needed_bytes
        room = min(device.total_bytes, round(need * _ROOM_SHARE))
        changes = advise(shape, config, dataclasses.replace(device, free_bytes=room), rows).changes
    except (EngineError, OSError, MemoryError):
        return None
    except Exception:  # the reason is reported without advice, too
        _log.exception("no advice on the memory of %s", config.model.id)
        return None
    best = next((change for change in changes if change.verdict == "fits"), changes[0] if changes else None)
    if best is None or best.needed_bytes >= need:
        return None
    return (
        f"{best.change} ({best.cost}): the estimate needs {best.needed_bytes / GIB:.1f} GiB with it instead of "
        f"{need / GIB:.1f}. Set {', '.join(best.overrides)}."
    )


def _device_of(config: RunConfig) -> Device:
    usable = (device for device in list_devices() if device.obstacle is None)
    return next(device for device in usable if device.kind == "cpu" or config.run.devices != "cpu")


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
        return count_trainable(shape, config.adapter, vision=config.vision).trainable
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

    The pace includes loading, evaluations and saves. None without such a run. `where` names the devices as `RunState.device`
    does, such as `1×a100`.
    """
    paces = {
        summary.created: summary.trained_tokens / summary.seconds
        for summary in earlier
        if (summary.model, summary.method, summary.objective)
        == (config.model.id, config.method_name, preference_name(config))
        and (summary.state, summary.attempt) == ("completed", 1)
        and where in summary.device.split(" · ")
        and summary.seconds
        and summary.trained_tokens
    }
    if not paces:
        return None
    return _SET_UP_HOURS + plan.trained_tokens / paces[max(paces)] / 3600 * _MARGIN_OF_MEASUREMENT


def in_half_hours(hours: float, most: float) -> float:
    """Return a time limit in half hours, at most `most`."""
    return min(math.ceil(hours * 2) / 2, most)
