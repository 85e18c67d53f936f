"""The process that exports: `python -P -m engine.export.worker HOME`, JSON lines on stdio."""

import gc
import os
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from engine.chat.adapter import AdaptedBase
from engine.chat.precision import choose_dtype
from engine.chat.target import LoadPlan
from engine.chat.weights import BranchWeights, ModelPlace, Weights, load_model, weights_bytes
from engine.config.model import ModelConfig
from engine.errors import DeviceError, ModelError, StorageError, WorkerError
from engine.export.card_facts import gather_facts
from engine.export.contract import ExportOrder, ExportProgress, ExportResult, Verification
from engine.export.folder import list_files, require_space, to_disk
from engine.export.gguf import WrittenGguf, finish, write_gguf
from engine.export.model_card import write_card
from engine.export.verify import QUESTIONS, Listener, Measured
from engine.export.verify_gguf import ask_llama, has_llama_cpp, look_into
from engine.export.write import ExportUnderWay, needed_bytes, write_adapter, write_merged
from engine.hardware.processor import memory_now
from engine.models.progress import ModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.answering import Request, serve
from engine.processes.json_lines import JsonObject

# Verification in float32 sees the rounding of the weights alone; it is worth that much of the free memory.
_SHARE_FOR_FLOAT32 = 0.6


class ExportWorker:
    """Answers the orders of `engine.export.job`."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home

    def export(self, params: JsonObject, request: Request) -> JsonObject:
        """Fill the folder and verify what is in it."""
        order = ExportOrder.model_validate(params)

        def tell_fetching(progress: ModelProgress) -> None:
            done, total = progress.done_bytes, progress.total_bytes
            fraction = done / total if done is not None and total else None
            told = ExportProgress(phase="fetching", message=progress.message, fraction=fraction)
            request.progress(told.model_dump(mode="json"))

        export = ExportUnderWay(order, resolve_model(order.plan.model, self._home, tell_fetching), request)
        notes: list[str] = []
        aside = order.folder
        try:
            require_space(aside, needed_bytes(export))
            if order.settings.kind == "gguf":
                verified = self._export_gguf(export, aside, notes)
            elif order.settings.kind == "merged":
                verified = _export_merged(export, aside, notes)
            else:
                verified = _verify(export, aside, write_adapter(export, aside), notes)
            (aside / "README.md").write_text(_card(export), encoding="utf-8")
            export.tell("ready", "Putting the folder in its place.", 1.0)
            to_disk(aside)
        except OSError as error:
            raise StorageError(
                f"{order.name} cannot be written ({error.strerror}).", "Free some space, or choose another folder."
            ) from error
        result = ExportResult(path=order.folder, files=list_files(order.folder), verified=verified, notes=tuple(notes))
        return result.model_dump(mode="json")

    def _export_gguf(self, export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
        written = write_gguf(export, aside, notes)
        verified = None
        if export.order.settings.verify and has_llama_cpp():
            verified = _verify_gguf(export, written, self._home.server / "llama_cpp.log", notes)
        elif export.order.settings.verify:
            export.tell("verifying", "Comparing the file with the merged model.")
            notes.append(look_into(written))
        finish(export, written)
        return verified


def _export_merged(export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
    """Write the merged model; in float32 where nobody chose the base's 16 bits and they turn an answer."""
    written = write_merged(export, aside, notes)
    verified = _verify(export, aside, written, notes)
    if verified is None or export.order.settings.dtype != "auto" or not _rounding_turned_answers(verified, written):
        return verified
    for path in aside.iterdir():
        path.unlink()
    short = str(written).removeprefix("torch.")
    notes[:] = [
        f"It was written in float32: rounded to the {short} of its base, it gave {verified.equal_answers} of the run's "
        f"{verified.prompts} answers, because 16 bits cannot hold the sum of base and adapter exactly. Choose {short} to "
        "have half the size all the same."
    ]
    exact = export.with_dtype("float32")
    return _verify(exact, aside, write_merged(exact, aside, notes), notes)


def _rounding_turned_answers(verified: Verification, written: torch.dtype) -> bool:
    """Whether the weights' own rounding shows; computed in 16 bits, float32 weights would show the same difference."""
    return written.itemsize < 4 and verified.dtype == "float32" and verified.equal_answers < verified.prompts


def _card(export: ExportUnderWay) -> str:
    source = export.source
    facts = gather_facts(
        export.order.plan,
        export.order.settings.kind,
        export.order.name,
        source.hub_id or source.name,
        base_is_on_hub=source.hub_id is not None,
        run=export.order.run,
        base_folder=Path(source.location),
    )
    return write_card(facts)


def _verify(export: ExportUnderWay, aside: Path, written: torch.dtype, notes: list[str]) -> Verification | None:
    if not export.order.settings.verify:
        return None
    started = time.perf_counter()
    merged = export.order.settings.kind == "merged"
    place = _place(export)
    try:
        if merged:
            allowed, measured = _compare_merged(export, aside, place, written)
        else:
            allowed, measured = 0.0, _compare_adapter(export, aside, place)
    except DeviceError as error:
        notes.append(f"It was not verified: {error.what}")
        return None
    return Verification(
        passed=measured.largest_difference <= allowed,
        compared="the merged model with the adapter on its unquantized base" if merged else "the export with the run",
        prompts=len(QUESTIONS),
        equal_answers=measured.equal_answers,
        largest_logit_difference=measured.largest_difference,
        allowed_logit_difference=allowed,
        dtype=str(place.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
    )


def _verify_gguf(export: ExportUnderWay, written: WrittenGguf, log_file: Path, notes: list[str]) -> Verification | None:
    started = time.perf_counter()
    place = _place(export)
    precision = torch.float16 if written.gguf_type == "f16" else torch.bfloat16  # the unit of q8_0 is bfloat16's
    try:
        listener, allowed = _listen_to_run(export, place, precision)
        gc.collect()  # one model at a time in memory
        asked = ask_llama(written, listener, log_file, lambda share: _tell_verifying(export, (2 + share) / 3))
    except (DeviceError, ModelError, WorkerError) as error:
        notes.append(f"The GGUF was not verified: {error.what}")
        return None
    prompts = len(listener.heard)
    allowed *= asked.roundings
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


def _place(export: ExportUnderWay) -> ModelPlace:
    """Where to verify; in float32 where memory is ample, because that hides nothing."""
    folder, device = Path(export.source.location), export.order.device
    exact = ModelPlace(folder, export.source.name, device, torch.float32)
    free = torch.cuda.mem_get_info()[0] if device.kind == "cuda" else memory_now().free_bytes
    if weights_bytes(exact, _unquantized(export)) < _SHARE_FOR_FLOAT32 * free:
        return exact
    return ModelPlace(folder, export.source.name, device, choose_dtype(export.order.plan.model, device))


def _unquantized(export: ExportUnderWay) -> ModelConfig:
    return export.order.plan.model.model_copy(update={"quantization": "none"})


def _compare_adapter(export: ExportUnderWay, aside: Path, place: ModelPlace) -> Measured:
    """The same tensors on the same base: nothing explains a difference."""
    again = export.trained.model_copy(update={"folder": aside, "name": "the exported adapter"})
    plan = LoadPlan(model=export.order.plan.model, tuned=export.trained, second=again)
    live = Weights(plan, place, lambda message: export.tell("verifying", message))
    listener = Listener(live, export.trained.folder, lambda share: _tell_verifying(export, share / 2))
    return listener.compare(live.branch("second"), lambda share: _tell_verifying(export, 0.5 + share / 2))


def _compare_merged(
    export: ExportUnderWay, aside: Path, place: ModelPlace, written: torch.dtype
) -> tuple[float, Measured]:
    """The difference that rounding explains, and the difference that there is."""
    listener, allowed = _listen_to_run(export, place, written)
    gc.collect()  # one model at a time in memory
    export.tell("verifying", "Loading what was written.")
    again = load_model(ModelPlace(aside, "the merged model", place.device, place.dtype), _unquantized(export))
    branch = BranchWeights(AdaptedBase(again, "the merged model"))
    return allowed, listener.compare(branch, lambda share: _tell_verifying(export, (2 + share) / 3))


def _listen_to_run(export: ExportUnderWay, place: ModelPlace, written: torch.dtype) -> tuple[Listener, float]:
    plan = LoadPlan(model=_unquantized(export), tuned=export.trained)
    live = Weights(plan, place, lambda message: export.tell("verifying", message))
    listener = Listener(live, export.trained.folder, lambda share: _tell_verifying(export, share / 3))
    tuned = live.branch("tuned")
    allowed = listener.rounding_effect(tuned, written, lambda share: _tell_verifying(export, (1 + share) / 3))
    return listener, allowed


def _tell_verifying(export: ExportUnderWay, share: float) -> None:
    export.tell("verifying", "Comparing answers.", share)


def main() -> None:
    """Serve until stdin closes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    serve({"export": ExportWorker(LoratoryHome(Path(sys.argv[1]))).export})


if __name__ == "__main__":
    main()
