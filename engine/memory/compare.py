"""All methods side by side for one model and one set of rows."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.config.methods.registry import METHODS
from engine.config.run import AdapterConfig, RunConfig
from engine.errors import EngineError, Problem
from engine.hardware.device import Device
from engine.memory.config_changes import Changed, as_overrides, new_problems, with_changes
from engine.memory.device.device_need import TensorsAtPeak, need_on_device
from engine.memory.estimate import Estimator, judge
from engine.memory.inference import inference_bytes, inference_workload
from engine.memory.result import Verdict
from engine.memory.run_workload import workload_of_run
from engine.models.shape import ModelShape


class MethodNeed(BaseModel):
    """One row of the method table."""

    model_config = ConfigDict(frozen=True)

    method: str  # as people call it
    needed_bytes: int | None  # None where it cannot be used with this model or these settings
    verdict: Verdict | None
    trainable: int | None = None
    why_not: str = ""
    overrides: tuple[str, ...] = ()  # section.field=value: what choosing this row changes; none where it trains nothing
    is_current: bool = False


class _Method(NamedTuple):
    name: str
    changes: tuple[Changed, ...]


def _compared(adapter: AdapterConfig) -> Iterator[_Method]:
    """Yield every row: full fine-tuning first, then the methods in their order."""
    for method in sorted(METHODS.values(), key=lambda method: not method.trains_all):
        adapted = tuple(Changed("adapter", name, value) for name, value in adapter.changes_for(method.name).items())
        for row in method.compared:
            changes = (*adapted, Changed("model", "quantization", row.quantization))
            if row.gradient_checkpointing is not None:
                changes = (*changes, Changed("training", "gradient_checkpointing", row.gradient_checkpointing))
            yield _Method(row.name, changes)


# What goes with a method where the draft has what it cannot be combined with, by the setting that would be refused.
_REPAIRS: Mapping[str, Changed] = {
    "adapter.bias": Changed("adapter", "bias", "none"),
    "training.packing": Changed("training", "packing", False),
}


def compare_methods(shape: ModelShape, config: RunConfig, device: Device) -> tuple[MethodNeed, ...]:
    """Estimate every method with the other settings of `config`, and what using the model alone would need.

    Other settings stay as they are, except where they cannot be combined with the method.
    """
    rows = compare_rows(shape, config, device, [row.name for row in _compared(config.adapter)])
    return (*rows, _inference(Estimator(shape, device), config))


def compare_rows(
    shape: ModelShape, config: RunConfig, device: Device, names: Collection[str]
) -> tuple[MethodNeed, ...]:
    """Estimate some rows of the table of methods, in its order."""
    estimator = Estimator(shape, device)
    return tuple(_training(estimator, config, row) for row in _compared(config.adapter) if row.name in names)


def _training(estimator: Estimator, config: RunConfig, method: _Method) -> MethodNeed:
    changes, refusals = _combinable(config, method, estimator.device)
    if refusals:
        return MethodNeed(method=method.name, needed_bytes=None, verdict=None, why_not=refusals[0].message)
    overrides = as_overrides(changes)
    other = with_changes(config, changes)
    try:
        estimate = estimator.estimate(other)
    except EngineError as error:
        return MethodNeed(method=method.name, needed_bytes=None, verdict=None, why_not=error.what, overrides=overrides)
    return MethodNeed(
        method=method.name,
        needed_bytes=estimate.needed_bytes,
        verdict=estimate.verdict,
        trainable=estimate.parameters.trainable,
        overrides=overrides,
        is_current=other == config,
    )


def _combinable(config: RunConfig, method: _Method, device: Device) -> tuple[tuple[Changed, ...], list[Problem]]:
    """The method's changes with what has to go with them, and why they would be refused all the same."""
    refusals = new_problems(config, with_changes(config, method.changes), device)
    repairs = tuple(_REPAIRS[problem.field] for problem in refusals if problem.field in _REPAIRS)
    changes = (*method.changes, *repairs)
    return changes, new_problems(config, with_changes(config, changes), device) if repairs else refusals


def _inference(estimator: Estimator, config: RunConfig) -> MethodNeed:
    """Answering with the weights in the precision of the draft, in a conversation as long as a row."""
    name = "Inference only"
    device = estimator.device
    try:
        workload = inference_workload(workload_of_run(estimator.shape, config, device))
        tensors = inference_bytes(estimator.structure, workload, device.name)
    except EngineError as error:
        return MethodNeed(method=name, needed_bytes=None, verdict=None, why_not=error.what)
    need = need_on_device(TensorsAtPeak(tensors), workload, device)
    return MethodNeed(method=name, needed_bytes=need.needed_bytes, verdict=judge(need, device), trainable=0)
