"""How each kind of export is written, loaded again and compared with the live run."""

import gc
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from engine.chat.target import LoadPlan
from engine.chat.worker.adapter import AdaptedBase
from engine.chat.worker.weights import BranchWeights, ModelPlace, Weights, choose_dtype, load_model, weights_bytes
from engine.config.run import ModelConfig
from engine.errors import DeviceError, ModelError, WorkerError
from engine.export.contract import Verification
from engine.export.folder import empty_folder
from engine.export.gguf.worker.verify import ask_llama, has_llama_cpp, look_into
from engine.export.gguf.worker.write import WrittenGguf, finish, write_gguf
from engine.export.kinds import ADAPTER, GGUF, MERGED
from engine.export.worker.verify import QUESTIONS, Measured, OnAnswer, Reference
from engine.export.worker.write import ExportUnderWay, merged_bytes, trained_bytes, write_adapter, write_merged
from engine.hardware.processor import memory_now

# Verification in float32 sees the rounding of the weights alone; it is worth that much of the free memory.
_SHARE_FOR_FLOAT32 = 0.6
# Answering takes most of the time, for it goes token by token; everything else reads each answer at once.
_RECORDING_SHARE = 0.7


class Writer(Protocol):
    """Writes one kind of export."""

    def needed_bytes(self, export: ExportUnderWay) -> int:
        """Return the room that the export takes on the disk."""

    def write(self, export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
        """Fill the folder and verify what is in it.

        Args:
            export: What is wanted.
            aside: The folder to fill.
            notes: Takes what the person should know.

        Returns:
            The comparison; None where it was not asked for, or could not be done.
        """


class RunReference(NamedTuple):
    """The run's answers, and how far rounding moves its logits."""

    reference: Reference
    allowed: dict[torch.dtype, float]  # for each precision to which weights may have been rounded


def _comparison_place(export: ExportUnderWay) -> ModelPlace:
    """Return where to verify; in float32 where memory is ample, because that hides nothing."""
    folder, device = Path(export.source.location), export.order.device
    exact = ModelPlace(folder, export.source.name, device, torch.float32)
    free = torch.cuda.mem_get_info()[0] if device.kind == "cuda" else memory_now().free_bytes
    if weights_bytes(exact, _unquantized(export)) < _SHARE_FOR_FLOAT32 * free:
        return exact
    return ModelPlace(folder, export.source.name, device, choose_dtype(export.order.plan.model, device))


def record_run(export: ExportUnderWay, place: ModelPlace, *written: torch.dtype) -> RunReference:
    """Record the answers of the adapter on its unquantized base; the model is gone from memory when this returns.

    Args:
        export: What is under way.
        place: As `_comparison_place` gives it.
        written: Precisions to which weights may have been rounded.

    Raises:
        DeviceError: If memory is too small.
    """
    recorded = _record(export, place, written)
    gc.collect()  # modules and their hooks refer to each other
    return recorded


def _record(export: ExportUnderWay, place: ModelPlace, written: tuple[torch.dtype, ...]) -> RunReference:
    plan = LoadPlan(model=_unquantized(export), tuned=export.trained)
    live = Weights(plan, place, lambda message: export.report("verifying", message))
    reference = Reference(
        live, export.trained.folder, lambda share: _report_comparing(export, _RECORDING_SHARE * share)
    )
    tuned = live.branch("tuned")
    finest_first = sorted(set(written), key=lambda dtype: torch.finfo(dtype).eps)
    return RunReference(reference, {dtype: reference.rounding_effect(tuned, dtype) for dtype in finest_first})


def _ask_merged(export: ExportUnderWay, aside: Path, place: ModelPlace, reference: Reference) -> Measured:
    """Load the merged model that was written, and ask it what the run was asked.

    Raises:
        DeviceError: If memory is too small.
    """
    export.report("verifying", "Loading what was written.")
    again = load_model(ModelPlace(aside, "the merged model", place.device, place.dtype), _unquantized(export))
    measured = reference.compare(BranchWeights(AdaptedBase(again, "the merged model")), _report_rest(export))
    del again
    gc.collect()
    return measured


def _ask_adapter(export: ExportUnderWay, aside: Path, place: ModelPlace) -> Measured:
    """Return the exported adapter on the run's own base: the same tensors, so nothing explains a difference.

    Raises:
        DeviceError: If memory is too small.
    """
    again = export.trained.model_copy(update={"folder": aside, "name": "the exported adapter"})
    plan = LoadPlan(model=export.order.plan.model, tuned=export.trained, second=again)
    live = Weights(plan, place, lambda message: export.report("verifying", message))
    reference = Reference(
        live, export.trained.folder, lambda share: _report_comparing(export, _RECORDING_SHARE * share)
    )
    return reference.compare(live.branch("second"), _report_rest(export))


def _report_comparing(export: ExportUnderWay, share: float) -> None:
    """Report how far the comparison has come, from 0 to 1."""
    export.report("verifying", "Comparing answers.", share)


def _report_rest(export: ExportUnderWay) -> OnAnswer:
    return lambda share: _report_comparing(export, _RECORDING_SHARE + (1 - _RECORDING_SHARE) * share)


def _unquantized(export: ExportUnderWay) -> ModelConfig:
    return export.order.plan.model.model_copy(update={"quantization": "none"})


class _AdapterWriter:
    """Copies the adapter."""

    def needed_bytes(self, export: ExportUnderWay) -> int:
        return trained_bytes(export)

    def write(self, export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
        write_adapter(export, aside)
        if not export.order.settings.verify:
            return None
        started, place = time.perf_counter(), _comparison_place(export)
        try:
            measured = _ask_adapter(export, aside, place)
        except DeviceError as error:
            notes.append(f"It was not verified: {error.what}")
            return None
        return _verification("the export with the run", measured, 0.0, place, started)


class _MergedWriter:
    """Writes a complete model; in float32 where 16 bits were not asked for and they change an answer."""

    def needed_bytes(self, export: ExportUnderWay) -> int:
        return merged_bytes(export)

    def write(self, export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
        written = write_merged(export, aside, notes)
        if not export.order.settings.verify:
            return None
        started, place = time.perf_counter(), _comparison_place(export)
        # Computed in 16 bits, weights in float32 would show the same differences.
        may_be_exact = export.order.settings.dtype == "auto" and written.itemsize < 4 and place.dtype == torch.float32
        try:
            run = record_run(export, place, *({written, torch.float32} if may_be_exact else {written}))
            measured = _ask_merged(export, aside, place, run.reference)
            if may_be_exact and measured.equal_answers < len(QUESTIONS):
                written = _write_exactly(export, aside, written, measured, notes)
                measured = _ask_merged(export, aside, place, run.reference)
        except DeviceError as error:
            notes.append(f"It was not verified: {error.what}")
            return None
        compared = "the merged model with the adapter on its unquantized base"
        return _verification(compared, measured, run.allowed[written], place, started)


class _GgufWriter:
    """Merges, and converts that with llama.cpp."""

    def needed_bytes(self, export: ExportUnderWay) -> int:
        return 2 * merged_bytes(export)  # the merged model and the file are both there for a while

    def write(self, export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
        written = write_gguf(export, aside, notes)
        verified = None
        if export.order.settings.verify and has_llama_cpp():
            verified = _verify_gguf(export, written, notes)
        elif export.order.settings.verify:
            export.report("verifying", "Comparing the file with the merged model.")
            notes.append(look_into(written))
        finish(export, written)
        return verified


def _write_exactly(
    export: ExportUnderWay, aside: Path, rounded: torch.dtype, measured: Measured, notes: list[str]
) -> torch.dtype:
    """Write once more what turned answers when it was rounded."""
    empty_folder(aside)
    short = str(rounded).removeprefix("torch.")
    notes[:] = [
        f"It was written in float32: rounded to the {short} of its base, it gave {measured.equal_answers} of the run's "
        f"{len(QUESTIONS)} answers, because 16 bits cannot hold the sum of base and adapter exactly. Choose {short} to have "
        "half the size all the same."
    ]
    return write_merged(export.with_dtype("float32"), aside, notes)


def _verification(compared: str, measured: Measured, allowed: float, place: ModelPlace, started: float) -> Verification:
    return Verification(
        passed=measured.largest_difference <= allowed,
        compared=compared,
        prompts=len(QUESTIONS),
        equal_answers=measured.equal_answers,
        largest_logit_difference=measured.largest_difference,
        allowed_logit_difference=allowed,
        dtype=str(place.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


def _verify_gguf(export: ExportUnderWay, written: WrittenGguf, notes: list[str]) -> Verification | None:
    started = time.perf_counter()
    place = _comparison_place(export)
    precision = torch.float16 if written.gguf_type == "f16" else torch.bfloat16  # the unit of q8_0 is bfloat16's
    try:
        reference, allowed_by_dtype = record_run(export, place, precision)
        asked = ask_llama(
            written, reference, export.logs / "llama_cpp.log", lambda share: _report_comparing(export, share)
        )
    except (DeviceError, ModelError, WorkerError) as error:
        notes.append(f"The GGUF was not verified: {error.what}")
        return None
    prompts = len(reference.answers)
    allowed = asked.roundings * allowed_by_dtype[precision]
    return Verification(
        passed=asked.equal_prompts == prompts
        and asked.equal_answers >= asked.needed_answers
        and asked.largest_difference <= allowed,
        compared="llama.cpp's answers from the GGUF with those of the adapter on its unquantized base",
        prompts=prompts,
        equal_answers=asked.equal_answers,
        largest_logit_difference=asked.largest_difference,
        allowed_logit_difference=allowed,
        dtype=str(place.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
        equal_prompts=asked.equal_prompts,
        needed_answers=asked.needed_answers,
    )


WRITERS: Mapping[str, Writer] = {
    ADAPTER.name: _AdapterWriter(),
    MERGED.name: _MergedWriter(),
    GGUF.name: _GgufWriter(),
}
