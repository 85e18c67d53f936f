"""Combine adapters with PEFT's own `add_weighted_adapter`."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig

from loratory.engine.chat.contract import JobProgress, Phase
from loratory.engine.errors import ModelError
from loratory.engine.export.contract import ExportResult
from loratory.engine.export.folder import copy_tokenizer, list_files, rewrite_json
from loratory.engine.export.job import require_trained
from loratory.engine.export.merge import MergeOrder
from loratory.engine.models.folder import family_in
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import CancelledRequestError, JsonObject, Request
from loratory.engine.runs.provenance import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from loratory.engine.training.image_parts import model_class_of


def run_merge(home: LoratoryHome, params: JsonObject, request: Request) -> JsonObject:
    """Fill the folder of an order of `loratory.engine.export.merge` with the merged adapter and its tokenizer."""
    order = MergeOrder.model_validate(params)
    plan, settings = order.plans[0], order.settings
    source = resolve_model(
        plan.model, plan.home(home),
        lambda fetched: request.progress(JobProgress.fetching(fetched).model_dump(mode="json")),
    )  # fmt: skip
    folders = [require_trained(part).folder for part in order.plans]

    def report(phase: Phase, message: str) -> None:
        if request.is_cancelled():
            raise CancelledRequestError()
        request.progress(JobProgress(phase=phase, message=message).model_dump(mode="json"))

    report("loading_adapter", "Reading the adapters.")
    names = [f"part_{number}" for number in range(len(folders))]
    model = _adapters_alone(Path(source.location), source.name, dict(zip(names, folders, strict=True)))
    # The result has the scale 1, and PEFT copies the other settings of the first part: with rsLoRA, its scale would be √r.
    model.peft_config[names[0]].use_rslora = False
    report("writing", "Merging the adapters.")
    torch.manual_seed(settings.seed)
    try:
        model.base_model.add_weighted_adapter(
            names, list(order.weights), "merge", combination_type=settings.method, svd_rank=settings.rank,
            svd_full_matrices=False, density=settings.density if "ties" in settings.method else None,
        )  # fmt: skip
    except (ValueError, TypeError) as error:  # what PEFT cannot merge, in its own words
        raise ModelError(f"PEFT cannot merge these adapters: {error}", "Choose svd or cat, or other runs.") from error
    save_file(
        {name: tensor.contiguous() for name, tensor in get_peft_model_state_dict(model, adapter_name="merge").items()},
        order.folder / ADAPTER_WEIGHTS,
        {"format": "pt"},
    )
    report("ready", "Finishing the folder.")
    config = model.peft_config["merge"].to_dict() | {"inference_mode": True}
    shutil.copyfile(folders[0] / ADAPTER_CONFIG, order.folder / ADAPTER_CONFIG)
    targets = config["target_modules"]
    rewrite_json(
        order.folder / ADAPTER_CONFIG,
        **{name: config[name] for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")},
        target_modules=targets if isinstance(targets, str) else sorted(targets),
    )
    copy_tokenizer(folders[0], order.folder)
    return ExportResult(path=order.folder, files=list_files(order.folder)).model_dump(mode="json")


def _adapters_alone(base: Path, name: str, folders: Mapping[str, Path]) -> PeftModel:
    """Load adapters in float32 on a base without weights, which the update of a layer does not depend on."""
    kind = model_class_of(family_in(base, name))
    with torch.device("meta"):
        empty = kind.from_config(AutoConfig.from_pretrained(base, trust_remote_code=False), dtype=torch.float32)
    empty.to_empty(device="cpu")  # pages that nothing writes take no memory
    (first_name, first), *others = folders.items()
    model = PeftModel.from_pretrained(empty, first, adapter_name=first_name)
    for other_name, folder in others:
        model.load_adapter(folder, adapter_name=other_name)
    return model
