"""Write an adapter, or a complete model with the adapter merged."""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from loratory.engine.chat.contract import JobProgress, Phase
from loratory.engine.chat.target import PlannedWeights
from loratory.engine.chat.worker.adapter_patterns import base_module_names, resolve_patterns
from loratory.engine.chat.worker.answer import TOKENIZER_CONFIG, end_token_ids, load_chat_tokenizer
from loratory.engine.chat.worker.weights import ModelSpec, load_model, memory_errors, weights_bytes
from loratory.engine.config.results import ExportDtype
from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError
from loratory.engine.export.contract import ExportOrder
from loratory.engine.export.folder import PROCESSOR_FILES, copy_tokenizer, rewrite_json
from loratory.engine.export.vllm import VLLM_FOLDER, read_vllm_adapter
from loratory.engine.export.worker.merge import (
    BaseFiles,
    Merge,
    NotByTensorError,
    plan_merge,
    untie,
    untie_changed,
    write_shards,
    write_untied_config,
)
from loratory.engine.models.families.base import ImageFamily
from loratory.engine.models.folder import family_in, read_config
from loratory.engine.models.source import ModelSource
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import CancelledRequestError, Request
from loratory.engine.runs.provenance import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class ExportTask:
    """An order with its base and the request to report to."""

    order: ExportOrder
    source: ModelSource
    request: Request
    home: LoratoryHome
    notes: list[str] = field(default_factory=list)  # for the user
    precision: str = ""  # that was written, of a kind that has one of its own

    @property
    def trained(self) -> PlannedWeights:
        assert self.order.plan.tuned is not None  # `loratory.engine.export.job` requires it
        return self.order.plan.tuned

    @property
    def family(self) -> ImageFamily | None:
        """The family of a base that takes images; None of a text model."""
        return family_in(Path(self.source.location), self.source.name)

    def base_in(self, dtype: torch.dtype) -> ModelSpec:
        """Return the base in this dtype, with the device of the order."""
        media = self.order.plan.home(self.home).media
        return ModelSpec(Path(self.source.location), self.source.name, self.order.device, dtype, media)

    def with_dtype(self, dtype: ExportDtype | None) -> "ExportTask":
        """Return a copy with this dtype for merged weights, unless the person chose one."""
        settings = self.order.settings
        if dtype is None or settings.dtype != "auto":
            return self
        order = self.order.model_copy(update={"settings": settings.model_copy(update={"dtype": dtype})})
        return replace(self, order=order)

    def report(self, phase: Phase, message: str, fraction: float | None = None) -> None:
        """Report progress; raise if the export was stopped."""
        if self.request.is_cancelled():
            raise CancelledRequestError()
        progress = JobProgress(phase=phase, message=message, fraction=fraction)
        self.request.progress(progress.model_dump(mode="json"))


def trained_bytes(export: ExportTask) -> int:
    """Return the size of the trained weights."""
    return sum(path.stat().st_size for path in export.trained.folder.iterdir() if path.is_file())


def merged_bytes(export: ExportTask) -> int:
    """Return an upper bound of the size of the merged model."""
    spec = export.base_in(_TORCH_DTYPES.get(export.order.settings.dtype, torch.float32))
    return trained_bytes(export) + weights_bytes(spec, ModelConfig(id=export.source.name))


def write_adapter(export: ExportTask, folder: Path) -> None:
    """Copy the adapter with its tokenizer, and set the public id of its base."""
    export.report("writing", "Copying the adapter.")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        shutil.copyfile(export.trained.folder / name, folder / name)
    base = {"base_model_name_or_path": export.source.hub_id or export.source.name, "revision": export.source.revision}
    rewrite_json(folder / ADAPTER_CONFIG, **base)
    _write_tokenizer(export, folder)
    _write_processor(export, folder)
    _write_for_vllm(export, folder)


def _write_for_vllm(export: ExportTask, folder: Path) -> None:
    """Add a copy with vLLM's names if they differ from PEFT's."""
    facts = read_vllm_adapter(folder, Path(export.source.location), export.source.name)
    if facts.note:
        export.notes.append(facts.note)
    if not facts.names:
        return
    (folder / VLLM_FOLDER).mkdir()
    shutil.copyfile(folder / ADAPTER_CONFIG, folder / VLLM_FOLDER / ADAPTER_CONFIG)
    tensors = {facts.names[name]: tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    save_file(tensors, folder / VLLM_FOLDER / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _write_tokenizer(export: ExportTask, folder: Path) -> None:
    if (export.trained.folder / TOKENIZER_CONFIG).is_file():
        copy_tokenizer(export.trained.folder, folder)
        return
    tokenizer = load_chat_tokenizer([], Path(export.source.location), export.source.name)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]


def _write_processor(export: ExportTask, folder: Path) -> None:
    """Copy what transformers' processor of a vision-language model needs, with the pixel budget of the training."""
    if export.family is None:
        return
    base = Path(export.source.location)
    for name in PROCESSOR_FILES:
        source = next((place / name for place in (export.trained.folder, base) if (place / name).is_file()), None)
        if source is not None:
            shutil.copyfile(source, folder / name)
            rewrite_json(folder / name)
    settings = read_config(base / "config.json", export.source.name)
    # The folder of an adapter has no config.json, by which transformers would find the class.
    values: dict[str, object] = {"processor_class": PROCESSOR_MAPPING_NAMES[settings["model_type"]]}
    path, images = folder / "processor_config.json", folder / "preprocessor_config.json"
    if not path.is_file():
        path.write_text("{}", encoding="utf-8")
    elif images.is_file() and "image_processor" in read_config(path, export.source.name):  # which would come first
        values["image_processor"] = read_config(images, export.source.name)
    rewrite_json(path, **values)


def write_merged(export: ExportTask, folder: Path) -> torch.dtype:
    """Write a complete model: merged weights, configuration, tokenizer and stop tokens; return its dtype.

    Raises:
        ModelError: If the base or the adapter cannot be merged.
    """
    trained = export.trained
    whole = trained.is_whole_model
    model = trained.folder if whole else Path(export.source.location)
    files = BaseFiles.open(model, trained.name if whole else export.source.name)
    dtype = _TORCH_DTYPES.get(export.order.settings.dtype)
    quantization = export.order.plan.model.quantization
    if quantization != "none":
        export.notes.append(
            f"The adapter was trained on {quantization} weights and is merged into the unquantized ones, as is usual; "
            "its answers can differ a little from those on the quantized model."
        )
    untied = False
    try:
        untied = _merge_by_tensor(export, files, folder, dtype)
    except NotByTensorError as reason:
        export.notes.append(f"Merged with the whole model in memory, because {reason}.")
        _merge_whole(export, folder, dtype or files.dtype)
    for name in ("config.json", "generation_config.json"):
        if (model / name).is_file() and not (folder / name).is_file():
            shutil.copyfile(model / name, folder / name)
    written_dtype = dtype or files.dtype
    rewrite_json(folder / "config.json", dtype=str(written_dtype).removeprefix("torch."))
    if untied:
        write_untied_config(folder / "config.json")
    _write_tokenizer(export, folder)
    _write_processor(export, folder)
    _write_ends(export, folder)
    return written_dtype


def _merge_by_tensor(export: ExportTask, files: BaseFiles, folder: Path, dtype: torch.dtype | None) -> bool:
    """Write the weights; return whether the output head and the embedding were untied."""
    if export.trained.is_whole_model:
        merge, untied = Merge(files, dtype), False
    else:
        merge = plan_merge(export.trained, files, dtype)
        untied = untie_changed(merge)
    plans = merge.plans()
    total, done = sum(plan.size_bytes for plan in plans), 0

    def count(written_bytes: int) -> None:
        nonlocal done
        done += written_bytes
        export.report("writing", f"Writing merged weights, {done / 1e9:.1f} of {total / 1e9:.1f} GB.", done / total)

    write_shards(folder, plans, merge.read, int(export.order.settings.max_shard_gb * 1e9), count)
    return untied


def _merge_whole(export: ExportTask, folder: Path, dtype: torch.dtype) -> None:
    """Merge with PEFT, for adapters whose tensors do not match those of the files one to one."""
    export.report("writing", "Merging with the whole model in memory.")
    spec = export.base_in(dtype)
    model = load_model(spec, ModelConfig(id=export.source.name))
    untie(model)  # otherwise a merge into the embedding would change the output head too
    config = PeftConfig.from_pretrained(str(export.trained.folder))
    resolve_patterns(config, base_module_names(model), export.trained.name)
    try:
        with memory_errors(spec):
            peft_model = PeftModel.from_pretrained(model, str(export.trained.folder), config=config)
            merged = peft_model.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"The adapter {export.trained.name} cannot be merged ({type(error).__name__}).",
            "Export the adapter instead.",
        ) from error
    merged.save_pretrained(folder, max_shard_size=int(export.order.settings.max_shard_gb * 1e9))


def _write_ends(export: ExportTask, folder: Path) -> None:
    """Write the stop tokens, including the template's, so other programs end answers at them."""
    tokenizer = load_chat_tokenizer([folder], folder, export.trained.name)
    path = folder / "generation_config.json"
    generation = GenerationConfig.from_pretrained(folder) if path.is_file() else GenerationConfig()
    ends = sorted(end_token_ids(tokenizer, generation))
    if not path.is_file():
        generation.save_pretrained(folder)
    # The base's other settings stay unchanged, including those that transformers refuses to write.
    rewrite_json(path, eos_token_id=ends if len(ends) > 1 else ends[0], pad_token_id=tokenizer.pad_token_id)
