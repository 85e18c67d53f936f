"""The process that exports: `python -P -m loratory.engine.export.worker.main HOME`, JSON lines on stdio.

Each kind of export is written, loaded again and compared with the live run.
"""

import gc
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from loratory.engine.chat.contract import JobProgress
from loratory.engine.chat.target import LoadPlan
from loratory.engine.chat.worker import weights
from loratory.engine.chat.worker.adapter import AdaptedBase
from loratory.engine.chat.worker.answer import DecodingTokenizer
from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import DeviceError, EngineError, ModelError, WorkerError, explain_os_errors
from loratory.engine.evaluation.job import perplexity_of
from loratory.engine.export.card import write_card
from loratory.engine.export.contract import ExportOrder, ExportResult, PerplexityCheck, Verification
from loratory.engine.export.folder import list_files
from loratory.engine.export.gguf.llama_cpp import has_llama_cpp
from loratory.engine.export.gguf.precisions import PERPLEXITY_LIMIT, PRECISIONS
from loratory.engine.export.kinds import ADAPTER, COMPRESSED, GGUF, MERGED
from loratory.engine.export.worker.combine import run_merge
from loratory.engine.export.worker.compress import write_compressed
from loratory.engine.export.worker.gguf import (
    WrittenGguf,
    compare_answers,
    compare_with_merged,
    mean_loss_of_gguf,
    write_gguf,
)
from loratory.engine.export.worker.script import run_script
from loratory.engine.export.worker.verify import (
    QUESTIONS,
    ModelDifference,
    PerplexityRows,
    Reference,
    choose_rows,
    images_of_rows,
    mean_loss,
)
from loratory.engine.export.worker.write import ExportTask, merged_bytes, trained_bytes, write_adapter, write_merged
from loratory.engine.files import fsync_tree
from loratory.engine.hardware.processor import memory_now
from loratory.engine.models.prepared import require_space
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import JsonObject, Request, serve
from loratory.engine.processes.spawn import Access, give_up_access

# Verification in float32 shows only the rounding of weights; the share of free memory that it may take.
_SHARE_FOR_FLOAT32 = 0.6
# Recording answers token by token takes most of the time of a verification.
_RECORDING_SHARE = 0.7


class Writer(NamedTuple):
    """Writes one kind of export."""

    needed_bytes: Callable[[ExportTask], int]  # on the disk
    # Fills the folder and verifies it; None if that was not requested, or failed.
    write: Callable[[ExportTask], Verification | None]


def run_export(home: LoratoryHome, params: JsonObject, request: Request) -> JsonObject:
    """Fill the folder of an order of `loratory.engine.export.job`, and verify it."""
    order = ExportOrder.model_validate(params)
    source = resolve_model(
        order.plan.model,
        order.plan.home(home),
        lambda fetched: request.progress(JobProgress.fetching(fetched).model_dump(mode="json")),
    )
    give_up_access(Access.HUB)
    changes = order.plan.base_changes(Path(source.location), source.name, home)
    if changes and not order.plan.trained_weights["tuned"].is_whole_model:
        raise ModelError(changes[0], "Put the original files of the base back, or train again.")
    task = ExportTask(order, source, request, home)
    with explain_os_errors(f"{order.name} cannot be written", "Free some space, or choose another folder."):
        writer = WRITERS[order.settings.kind]
        require_space(order.folder, writer.needed_bytes(task), "The export", "export")
        verified = writer.write(task)
        card = write_card(order.plan, order.settings.kind, order.name, source, run=order.run, checkpoint=None)
        if verified is not None and verified.perplexity is not None:
            card += f"\n## Perplexity\n\nOf the unquantized result and of this file: {verified.perplexity.summary}.\n"
        (order.folder / "README.md").write_text(card, encoding="utf-8")
        task.report("ready", "Finishing the folder.", 1.0)
        fsync_tree(order.folder)
    files, notes = list_files(order.folder), tuple(task.notes)
    result = ExportResult(path=order.folder, files=files, precision=task.precision, verified=verified, notes=notes)
    return result.model_dump(mode="json")


def _write_adapter(export: ExportTask) -> Verification | None:
    write_adapter(export, export.order.folder)
    if not export.order.settings.verify:
        return None
    started, spec = time.perf_counter(), _comparison_spec(export)
    with _failures_noted(export, "It", DeviceError):
        # On the run's own base the tensors are the same, so no difference is allowed.
        again = export.trained.model_copy(update={"folder": export.order.folder, "name": "the exported adapter"})
        plan = LoadPlan(model=export.order.plan.model, tuned=export.trained, second=again)
        reference, live = _record(export, plan, spec)
        difference = reference.compare(live.branch("second"), _reporting(export, _RECORDING_SHARE, 1.0))
        return _verification("the export with the run", difference, 0.0, spec, started)
    return None


def _write_merged(export: ExportTask) -> Verification | None:
    """Write a complete model; in float32 if the dtype is auto and 16 bits change an answer."""
    folder = export.order.folder
    written_dtype = write_merged(export, folder)
    if not export.order.settings.verify:
        return None
    started, spec = time.perf_counter(), _comparison_spec(export)
    # Computed in 16 bits, float32 weights would show the same differences.
    may_be_exact = export.order.settings.dtype == "auto" and written_dtype.itemsize < 4 and spec.dtype == torch.float32
    with _failures_noted(export, "It", DeviceError):
        reference, allowed = _record_run(
            export, spec, *({written_dtype, torch.float32} if may_be_exact else {written_dtype})
        )
        difference = _compare_merged(export, spec, reference)
        if may_be_exact and difference.equal_answers < len(QUESTIONS):
            shutil.rmtree(folder)
            folder.mkdir()
            short = str(written_dtype).removeprefix("torch.")
            export.notes[:] = [
                f"Written in float32: rounded to the {short} of its base, it gave {difference.equal_answers} of the "
                f"run's {len(QUESTIONS)} answers, because 16 bits cannot store the sum of base and adapter exactly. Choose "
                f"{short} for half the size."
            ]
            written_dtype = write_merged(export.with_dtype("float32"), folder)
            difference = _compare_merged(export, spec, reference)
        comparison = "the merged model with the adapter on its unquantized base"
        return _verification(comparison, difference, allowed[written_dtype], spec, started)
    return None


def _write_gguf(export: ExportTask) -> Verification | None:
    gguf = write_gguf(export)
    export.precision, verified = gguf.gguf_type, None
    if export.order.settings.verify and has_llama_cpp():
        with _failures_noted(export, "The GGUF", DeviceError, ModelError, WorkerError):
            verified = _verify_gguf(export, gguf)
    elif export.order.settings.verify:
        export.report("verifying", "Comparing the file with the merged model.")
        export.notes.append(compare_with_merged(gguf))
    if not export.order.settings.keep_merged:
        shutil.rmtree(gguf.merged)
    return verified


def _verify_gguf(export: ExportTask, gguf: WrittenGguf) -> Verification:
    precision, log = PRECISIONS[gguf.gguf_type], export.home.server / "llama_cpp.log"

    def allow(reference: Reference, live: weights.BranchWeights) -> float | None:
        if precision.needed_share is None:
            return None
        rounded_to = torch.float16 if precision.weights == "f16" else torch.bfloat16  # the unit of q8_0 is bfloat16's
        return precision.roundings * reference.rounding_effect(live, rounded_to)

    def measure(reference: Reference, rows: PerplexityRows) -> tuple[ModelDifference, float]:
        difference = compare_answers(gguf, reference, log, _reporting(export, 0.0, _RECORDING_SHARE))
        return difference, mean_loss_of_gguf(gguf, rows, log, _reporting(export, _RECORDING_SHARE, 1.0))

    return _verify_by_perplexity(export, "llama.cpp's answers from the GGUF", gguf.tokenizer, allow, measure)


def _write_compressed(export: ExportTask) -> Verification | None:
    tokenizer = write_compressed(export)
    export.precision, verified = export.order.settings.compression, None

    def measure(reference: Reference, rows: PerplexityRows) -> tuple[ModelDifference, float]:
        export.report("verifying", "Loading the compressed model.")
        spec = replace(_comparison_spec(export), folder=export.order.folder, name="the compressed model")
        branch = weights.BranchWeights(
            AdaptedBase(weights.load_model(spec, _without_quantization(export)), spec.name, reference.images)
        )
        difference = reference.compare(branch, _reporting(export, 0.0, 1.0))
        return difference, mean_loss(branch, rows, export, "the compressed model's")

    if export.order.settings.verify:
        with _failures_noted(export, "The compressed model", DeviceError, ModelError):
            verified = _verify_by_perplexity(export, "the compressed model's answers", tokenizer, _allow_any, measure)
    if not export.order.settings.keep_merged:
        shutil.rmtree(export.order.folder / "merged")
    return verified


def _allow_any(_: Reference, __: weights.BranchWeights) -> None:
    """Allow any difference: quantization may change answers, and perplexity decides."""


def _verify_by_perplexity(
    export: ExportTask,
    subject: str,
    tokenizer: DecodingTokenizer,
    allow: Callable[[Reference, weights.BranchWeights], float | None],
    measure: Callable[[Reference, PerplexityRows], tuple[ModelDifference, float]],
) -> Verification:
    """Compare answers and perplexity with those of the run.

    Args:
        allow: Returns the allowed difference of a logit, and may change the weights of the run's model; None where perplexity
            decides.
        measure: Returns how the export differs, and its mean loss on rows, once the run's model is released.
    """
    started, spec, rows = time.perf_counter(), _comparison_spec(export), choose_rows(export, tokenizer)
    reference, live = _record(export, LoadPlan(model=_without_quantization(export), tuned=export.trained), spec)
    expected = mean_loss(live.branch("tuned"), rows, export)
    allowed = allow(reference, live.branch("tuned"))
    del live
    gc.collect()  # modules and their hooks refer to each other
    difference, loss = measure(reference, rows)
    comparison = f"{subject} with those of the adapter on its unquantized base"
    perplexity = PerplexityCheck(run=perplexity_of(expected), file=perplexity_of(loss), tokens=rows.tokens, on=rows.on)
    verified = _verification(comparison, difference, allowed, spec, started)
    # If answers may differ, the file passes as long as its perplexity is close to the run's.
    is_close = allowed is not None or perplexity.file <= PERPLEXITY_LIMIT * perplexity.run
    # JSON has no NaN.
    finite = perplexity if math.isfinite(perplexity.run) and math.isfinite(perplexity.file) else None
    return verified.model_copy(update={"passed": verified.passed and is_close, "perplexity": finite})


@contextmanager
def _failures_noted(export: ExportTask, subject: str, *kinds: type[EngineError]) -> Iterator[None]:
    """Note why a verification failed to run, instead of failing the export."""
    try:
        yield
    except kinds as error:
        export.notes.append(f"{subject} was not verified: {error.what}")


def _comparison_spec(export: ExportTask) -> weights.ModelSpec:
    """Return the model to verify with; in float32 if memory suffices, which hides no difference."""
    device, exact = export.order.device, export.base_in(torch.float32)
    free = torch.cuda.mem_get_info()[0] if device.kind == "cuda" else memory_now().free_bytes
    if weights.weights_bytes(exact, _without_quantization(export)) < _SHARE_FOR_FLOAT32 * free:
        return exact
    return replace(exact, dtype=weights.choose_dtype(export.order.plan.model, device))


def _record_run(
    export: ExportTask, spec: weights.ModelSpec, *dtypes: torch.dtype
) -> tuple[Reference, dict[torch.dtype, float]]:
    """Record the answers of the adapter on its unquantized base, and release the model.

    Returns:
        The answers, and how far rounding to each precision moves their logits.
    """
    reference, live = _record(export, LoadPlan(model=_without_quantization(export), tuned=export.trained), spec)
    finest_first = sorted(set(dtypes), key=lambda dtype: torch.finfo(dtype).eps)
    allowed = {dtype: reference.rounding_effect(live.branch("tuned"), dtype) for dtype in finest_first}
    del live
    gc.collect()  # modules and their hooks refer to each other
    return reference, allowed


def _record(export: ExportTask, plan: LoadPlan, spec: weights.ModelSpec) -> tuple[Reference, weights.Weights]:
    live = weights.Weights(plan, spec, lambda message: export.report("verifying", message))
    images = images_of_rows(export)
    return Reference(live, export.trained.folder, _reporting(export, 0.0, _RECORDING_SHARE), images), live


def _compare_merged(export: ExportTask, spec: weights.ModelSpec, reference: Reference) -> ModelDifference:
    export.report("verifying", "Loading the merged model.")
    again = weights.load_model(
        replace(spec, folder=export.order.folder, name="the merged model"), _without_quantization(export)
    )
    branch = weights.BranchWeights(AdaptedBase(again, "the merged model", reference.images))
    measured = reference.compare(branch, _reporting(export, _RECORDING_SHARE, 1.0))
    del again, branch
    gc.collect()
    return measured


def _reporting(export: ExportTask, start: float, end: float) -> Callable[[float], None]:
    """Return a callback that reports a part of the comparison as progress between two shares."""
    return lambda share: export.report("verifying", "Comparing answers.", start + (end - start) * share)


def _without_quantization(export: ExportTask) -> ModelConfig:
    return export.order.plan.model.model_copy(update={"quantization": "none"})


def _verification(
    comparison: str, difference: ModelDifference, allowed: float | None, spec: weights.ModelSpec, started: float
) -> Verification:
    prompts = len(QUESTIONS)
    return Verification(
        passed=(allowed is None or difference.largest_logit_difference <= allowed)
        and difference.equal_prompts in (None, prompts)
        and difference.equal_answers >= (difference.needed_answers or 0),
        comparison=comparison,
        prompts=prompts,
        allowed_logit_difference=allowed,
        dtype=str(spec.dtype).removeprefix("torch."),
        seconds=time.perf_counter() - started,
        **difference._asdict(),
    )


WRITERS: Mapping[str, Writer] = {
    ADAPTER.name: Writer(trained_bytes, _write_adapter),
    MERGED.name: Writer(merged_bytes, _write_merged),
    # The merged model, the 16-bit file and the quantized one exist at the same time.
    GGUF.name: Writer(lambda export: 3 * merged_bytes(export), _write_gguf),
    COMPRESSED.name: Writer(lambda export: 2 * merged_bytes(export), _write_compressed),
}


if __name__ == "__main__":
    own_home = LoratoryHome(Path(sys.argv[1]))
    serve(
        {
            "export": partial(run_export, own_home),
            "script": partial(run_script, own_home),
            "merge": partial(run_merge, own_home),
        }
    )
