"""The process that exports: `python -P -m engine.export.worker.main HOME`, JSON lines on stdio."""

import os
import sys
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from engine.chat.worker.weights import ModelPlace
from engine.errors import DeviceError, ModelError, StorageError, WorkerError
from engine.export.card_facts import gather_facts
from engine.export.contract import ExportOrder, ExportProgress, ExportResult, Verification
from engine.export.folder import empty_folder, list_files, require_space, to_disk
from engine.export.gguf.worker.verify import ask_llama, has_llama_cpp, look_into
from engine.export.gguf.worker.write import WrittenGguf, finish, write_gguf
from engine.export.model_card import write_card
from engine.export.worker.comparison import ask_adapter, ask_merged, comparison_place, hear_run, tell_comparing
from engine.export.worker.verify import QUESTIONS, Measured
from engine.export.worker.write import ExportUnderWay, needed_bytes, write_adapter, write_merged
from engine.models.prepared import ModelProgress
from engine.models.source import resolve_model
from engine.paths import LoratoryHome
from engine.processes.answering import Request, serve
from engine.processes.environment import Access, give_up_access
from engine.processes.messages import JsonObject


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

        source = resolve_model(order.plan.model, self._home, tell_fetching)
        give_up_access(Access.HUB)
        export = ExportUnderWay(order, source, request)
        notes: list[str] = []
        aside = order.folder
        try:
            require_space(aside, needed_bytes(export))
            if order.settings.kind == "gguf":
                verified = self._export_gguf(export, aside, notes)
            elif order.settings.kind == "merged":
                verified = _export_merged(export, aside, notes)
            else:
                verified = _export_adapter(export, aside, notes)
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


def _export_adapter(export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
    write_adapter(export, aside)
    if not export.order.settings.verify:
        return None
    started, place = time.perf_counter(), comparison_place(export)
    try:
        measured = ask_adapter(export, aside, place)
    except DeviceError as error:
        notes.append(f"It was not verified: {error.what}")
        return None
    return _verification("the export with the run", measured, 0.0, place, started)


def _export_merged(export: ExportUnderWay, aside: Path, notes: list[str]) -> Verification | None:
    """Write the merged model; in float32 where nobody chose the base's 16 bits and they turn an answer."""
    written = write_merged(export, aside, notes)
    if not export.order.settings.verify:
        return None
    started, place = time.perf_counter(), comparison_place(export)
    # Computed in 16 bits, weights in float32 would show the same differences.
    may_be_exact = export.order.settings.dtype == "auto" and written.itemsize < 4 and place.dtype == torch.float32
    try:
        heard = hear_run(export, place, *({written, torch.float32} if may_be_exact else {written}))
        measured = ask_merged(export, aside, place, heard.listener)
        if may_be_exact and measured.equal_answers < len(QUESTIONS):
            written = _write_exactly(export, aside, written, measured, notes)
            measured = ask_merged(export, aside, place, heard.listener)
    except DeviceError as error:
        notes.append(f"It was not verified: {error.what}")
        return None
    compared = "the merged model with the adapter on its unquantized base"
    return _verification(compared, measured, heard.allowed[written], place, started)


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


def _verify_gguf(export: ExportUnderWay, written: WrittenGguf, log_file: Path, notes: list[str]) -> Verification | None:
    started = time.perf_counter()
    place = comparison_place(export)
    precision = torch.float16 if written.gguf_type == "f16" else torch.bfloat16  # the unit of q8_0 is bfloat16's
    try:
        listener, allowed_by_dtype = hear_run(export, place, precision)
        asked = ask_llama(written, listener, log_file, lambda share: tell_comparing(export, share))
    except (DeviceError, ModelError, WorkerError) as error:
        notes.append(f"The GGUF was not verified: {error.what}")
        return None
    prompts = len(listener.heard)
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


def main() -> None:
    """Serve until stdin closes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    serve({"export": ExportWorker(LoratoryHome(Path(sys.argv[1]))).export})


if __name__ == "__main__":
    main()
