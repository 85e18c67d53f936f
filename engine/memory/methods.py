"""All methods side by side for one model and one set of rows."""

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.memory.allocator import need_on_device
from engine.memory.estimate import Estimator, judge
from engine.memory.inference import inference_bytes, inference_workload
from engine.memory.result import Verdict
from engine.memory.run_workload import workload_of_run
from engine.memory.tensors_at_peak import TensorsAtPeak
from engine.memory.variants import Changed, as_overrides, with_changes
from engine.models.shape import ModelShape


class MethodNeed(BaseModel):
    """One row of the method table."""

    model_config = ConfigDict(frozen=True)

    method: str  # as people call it
    needed_bytes: int | None  # None where the method cannot be used with this model
    verdict: Verdict | None
    trainable: int | None = None
    why_not: str = ""
    overrides: tuple[str, ...] = ()  # section.field=value: what choosing this row changes; none where it trains nothing
    is_current: bool = False


class _Method(NamedTuple):
    name: str
    changes: tuple[Changed, ...]


def _trains(method: str) -> Changed:
    return Changed("adapter", "method", method)


def _weights(quantization: str) -> Changed:
    return Changed("model", "quantization", quantization)


def _checkpoints(switched_on: bool) -> Changed:
    return Changed("training", "gradient_checkpointing", switched_on)


_METHODS = (
    _Method("Full fine-tuning", (_trains("none"), _weights("none"))),
    _Method("LoRA", (_trains("lora"), _weights("none"))),
    _Method("LoRA on int8", (_trains("lora"), _weights("int8"))),
    _Method("QLoRA", (_trains("lora"), _weights("nf4"), _checkpoints(False))),
    _Method("QLoRA with checkpointing", (_trains("lora"), _weights("nf4"), _checkpoints(True))),
    _Method("IA3", (_trains("ia3"), _weights("none"))),
    _Method("Prefix tuning", (_trains("prefix_tuning"), _weights("none"), _checkpoints(False))),
)


def compare_methods(shape: ModelShape, config: RunConfig, device: Device) -> tuple[MethodNeed, ...]:
    """Estimate every method with the other settings of `config` as they are, and what using the model alone would need."""
    estimator = Estimator(shape, device)
    return (*(_training(estimator, config, method) for method in _METHODS), _inference(estimator, config))


def _training(estimator: Estimator, config: RunConfig, method: _Method) -> MethodNeed:
    overrides = as_overrides(method.changes)
    other = with_changes(config, method.changes)
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
