"""The live run and what was written from it, loaded one after the other on one device and asked the same."""

import gc
from pathlib import Path
from typing import NamedTuple

import torch

from engine.chat.target import LoadPlan
from engine.chat.worker.adapter import AdaptedBase
from engine.chat.worker.weights import BranchWeights, ModelPlace, Weights, choose_dtype, load_model, weights_bytes
from engine.config.model import ModelConfig
from engine.export.worker.verify import Listener, Measured, OnAnswer
from engine.export.worker.write import ExportUnderWay
from engine.hardware.processor import memory_now

# Verification in float32 sees the rounding of the weights alone; it is worth that much of the free memory.
_SHARE_FOR_FLOAT32 = 0.6
# Answering takes most of the time, for it goes token by token; everything else reads each answer at once.
_LISTENING_SHARE = 0.7


class HeardRun(NamedTuple):
    """What the run answers, and how far rounding moves its logits."""

    listener: Listener
    allowed: dict[torch.dtype, float]  # for each precision to which weights may have been rounded


def comparison_place(export: ExportUnderWay) -> ModelPlace:
    """Where to verify; in float32 where memory is ample, because that hides nothing."""
    folder, device = Path(export.source.location), export.order.device
    exact = ModelPlace(folder, export.source.name, device, torch.float32)
    free = torch.cuda.mem_get_info()[0] if device.kind == "cuda" else memory_now().free_bytes
    if weights_bytes(exact, _unquantized(export)) < _SHARE_FOR_FLOAT32 * free:
        return exact
    return ModelPlace(folder, export.source.name, device, choose_dtype(export.order.plan.model, device))


def hear_run(export: ExportUnderWay, place: ModelPlace, *written: torch.dtype) -> HeardRun:
    """Listen to the adapter on its unquantized base; the model is gone from memory when this returns.

    Args:
        export: What is under way.
        place: As `comparison_place` gives it.
        written: Precisions to which weights may have been rounded.

    Raises:
        DeviceError: If memory is too small.
    """
    heard = _hear(export, place, written)
    gc.collect()  # modules and their hooks refer to each other
    return heard


def _hear(export: ExportUnderWay, place: ModelPlace, written: tuple[torch.dtype, ...]) -> HeardRun:
    plan = LoadPlan(model=_unquantized(export), tuned=export.trained)
    live = Weights(plan, place, lambda message: export.tell("verifying", message))
    listener = Listener(live, export.trained.folder, lambda share: tell_comparing(export, _LISTENING_SHARE * share))
    tuned = live.branch("tuned")
    finest_first = sorted(set(written), key=lambda dtype: torch.finfo(dtype).eps)
    return HeardRun(listener, {dtype: listener.rounding_effect(tuned, dtype) for dtype in finest_first})


def ask_merged(export: ExportUnderWay, aside: Path, place: ModelPlace, listener: Listener) -> Measured:
    """Load the merged model that was written, and ask it what the run was asked.

    Raises:
        DeviceError: If memory is too small.
    """
    export.tell("verifying", "Loading what was written.")
    again = load_model(ModelPlace(aside, "the merged model", place.device, place.dtype), _unquantized(export))
    measured = listener.compare(BranchWeights(AdaptedBase(again, "the merged model")), _tell_rest(export))
    del again
    gc.collect()
    return measured


def ask_adapter(export: ExportUnderWay, aside: Path, place: ModelPlace) -> Measured:
    """The exported adapter on the run's own base: the same tensors, so that nothing explains a difference.

    Raises:
        DeviceError: If memory is too small.
    """
    again = export.trained.model_copy(update={"folder": aside, "name": "the exported adapter"})
    plan = LoadPlan(model=export.order.plan.model, tuned=export.trained, second=again)
    live = Weights(plan, place, lambda message: export.tell("verifying", message))
    listener = Listener(live, export.trained.folder, lambda share: tell_comparing(export, _LISTENING_SHARE * share))
    return listener.compare(live.branch("second"), _tell_rest(export))


def tell_comparing(export: ExportUnderWay, share: float) -> None:
    """Report how far the comparison has come, from 0 to 1."""
    export.tell("verifying", "Comparing answers.", share)


def _tell_rest(export: ExportUnderWay) -> OnAnswer:
    return lambda share: tell_comparing(export, _LISTENING_SHARE + (1 - _LISTENING_SHARE) * share)


def _unquantized(export: ExportUnderWay) -> ModelConfig:
    return export.order.plan.model.model_copy(update={"quantization": "none"})
