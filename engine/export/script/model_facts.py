"""Facts about the model for an exported script: its location, compute dtype and chat template."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratory.engine.config.rules import choose_compute_dtype
from loratory.engine.config.run import RunConfig
from loratory.engine.data.render.template import DEFAULT_TEMPLATE
from loratory.engine.data.step_plan import RowOrder
from loratory.engine.errors import EngineError
from loratory.engine.files import resolve_inside
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import choose_device
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.memory.workload import has_flash_attention
from loratory.engine.models import batching as batch_rules
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.families.base import ImageFamily
from loratory.engine.models.folder import ModelPart, family_in
from loratory.engine.models.inventory_cache import known_inventory
from loratory.engine.models.prepared import DEMO_MODEL_ID, DEMO_VISION_ID
from loratory.engine.models.source import find_model, resolve_model
from loratory.engine.paths import LoratoryHome, typed_path
from loratory.engine.runs.checkpoints import list_checkpoints
from loratory.engine.runs.history.events import ParametersData
from loratory.engine.runs.history.run_history import read_history
from loratory.engine.runs.run import RUN_ID, RunFolder


@dataclass(frozen=True)
class ModelFacts:
    """Facts about the model and the device of the run."""

    location: str  # hub id or folder, as `from_pretrained` takes it
    compute: str  # dtype of computation: bfloat16, float16 or float32
    on_cpu: bool  # the run computes on a CPU
    revision: str | None = None  # commit on the Hub
    template: str = ""  # chat template for a short script, if the model's own differs from that of training
    warm_start: str | None = None  # folder of the adapter that training starts from
    family: ImageFamily | None = None  # of a vision-language model that is here; None of a text model
    batching: batch_rules.Batching = "joined"
    pinned_order: RowOrder | None = None  # of the rows, from a checkpoint of the run


def read_model_facts(config: RunConfig, home: LoratoryHome, run: RunFolder | None) -> ModelFacts:
    """Collect the facts of the model: those of the run, or of this machine without a run.

    Raises:
        ModelError: If the model is a path that does not exist.
    """
    try:
        device = choose_device(config.run)
    except EngineError:
        device = describe_processor()
    parameters = read_history(run.events).parameters if run is not None else None
    if parameters is not None:
        compute, on_cpu = parameters.compute_dtype, parameters.device == describe_processor().name
    else:
        compute = choose_compute_dtype(
            config.model.compute_dtype, device.kind, has_fast_bfloat16=device.has_fast_bfloat16
        )
        # Layers can only be spread over GPUs, even if this machine has none.
        on_cpu = device.kind == "cpu" and config.run.spread_over == 1
    if (device.kind == "cpu") != on_cpu:  # the run is from another machine
        device = replace(device, kind="cpu" if on_cpu else "cuda")
    text, revision = config.model.id.strip(), config.model.revision
    entry = find_in_catalog(text)
    folder: Path | None
    if entry is None and (typed_path(text).exists() or text.lower().endswith(".gguf")):
        folder = Path(resolve_model(config.model, home, part=ModelPart.CONFIG).location)
        location, revision = str(folder), None
    else:
        folder = find_model(config.model, home, ModelPart.TOKENIZER)
        is_demo = text == DEMO_VISION_ID or (entry is not None and entry.id == DEMO_MODEL_ID)
        # Without access to the Hub a demo was unpacked from 4 bits, so it differs slightly from the Hub's.
        hub_id = entry.hub_id if entry is not None else text
        location = str(folder) if is_demo and folder is not None else hub_id
    newest = next(reversed(list_checkpoints(run.checkpoints)), None) if run is not None else None
    plan = newest.manifest.row_plan if newest is not None else None  # it may have started on another kind of device
    return ModelFacts(
        location=location,
        compute=compute,
        on_cpu=on_cpu,
        revision=revision,
        template=_written_template(folder, run),
        family=family_in(folder, config.model.shown_name),
        warm_start=_warm_start(config, run),
        batching=_batching(config, home, parameters, device),
        pinned_order=plan.order if plan is not None else None,
    )


def _batching(
    config: RunConfig, home: LoratoryHome, parameters: ParametersData | None, device: Device
) -> batch_rules.Batching:
    """Return how rows are batched: as in the run, or on this device."""
    if config.training.packing:
        return "joined"
    if parameters is not None and parameters.batching:
        return "padded" if parameters.batching == "padded" else "joined"
    shape = known_inventory(config.model, home)
    # A model that was never inspected is assumed to be a plain decoder.
    facts = batch_rules.AttentionFacts.of_shape(shape) if shape is not None else batch_rules.PLAIN_ATTENTION
    attention = batch_rules.expected_attention(facts.support, config, device, has_flash_package=has_flash_attention())
    if batch_rules.takes_varlen_attention(facts, attention, config, device):
        attention = batch_rules.VARLEN_ATTENTION
    return batch_rules.choose_batching(facts, attention, config, device.kind)


def _written_template(folder: Path | None, run: RunFolder | None) -> str:
    """Return the template of training, which a run has saved, if the model's own differs; the default for a model without."""
    own, of_run = own_template(folder), own_template(run.adapter if run is not None else None)
    if of_run is not None:
        return of_run if of_run != own else ""
    settings = _tokenizer_settings(folder)
    return DEFAULT_TEMPLATE if own is None and settings is not None and not settings.get("chat_template") else ""


def own_template(folder: Path | None) -> str | None:
    """Return a folder's chat template for conversations without tools."""
    if folder is None:
        return None
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        template = (_tokenizer_settings(folder) or {}).get("chat_template")
    if isinstance(template, list):  # templates with names
        templates = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(templates, {}).get("template")
    return template if isinstance(template, str) else None


def _tokenizer_settings(folder: Path | None) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _warm_start(config: RunConfig, run: RunFolder | None) -> str | None:
    text = config.adapter.warm_start
    if text is None:
        return None
    path = resolve_inside(run.path.parent, text) if run is not None and RUN_ID.match(text) else typed_path(text)
    return str(path / "adapter" if (path / "adapter").is_dir() else path)
