"""What a stand-alone script needs to know about the model: where it is, how it computes, and which template it trains with."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.rules import choose_compute_dtype
from engine.config.run import RunConfig
from engine.data.render.template import DEFAULT_TEMPLATE
from engine.errors import EngineError
from engine.export.script.facts import ModelFacts, TokenizerFacts
from engine.hardware.device import Device
from engine.hardware.devices import choose_device
from engine.hardware.processor import describe_processor
from engine.memory.workload import has_flash_attention
from engine.models.batching import PLAIN_ATTENTION, AttentionFacts, choose_batching, expected_attention
from engine.models.catalog import find_in_catalog
from engine.models.demo import DEMO_MODEL_ID
from engine.models.folder import ModelPart
from engine.models.inventory_cache import known_inventory
from engine.models.source import DEMO_HUB_ID, resolve_model
from engine.paths import LoratoryHome, typed_path
from engine.runs.checkpoints import list_checkpoints
from engine.runs.history.reader import read_history
from engine.runs.run import RunFolder
from engine.runs.store import RUN_ID

# A template that takes a list of parts reads the field `text` of each.
_READS_PARTS = re.compile(r"""\.text\b|\[\s*['"]text['"]\s*\]|\.get\(\s*['"]text['"]""")


def look_at_model(config: RunConfig, home: LoratoryHome, run: RunFolder | None) -> ModelFacts:
    """Find out where the model is and in which precision it computes, as the run did or as this machine would.

    Raises:
        ModelError: If a model that is named by a path is not there.
    """
    device = _device_here(config)
    compute, on_cpu = _compute(config, run, device)
    if (device.kind == "cpu") != on_cpu:  # the run is another machine's
        device = replace(device, kind="cpu" if on_cpu else "cuda")
    text = config.model.id.strip()
    entry = find_in_catalog(text)
    folder: Path | None = None
    revision = config.model.revision
    if entry is None and (typed_path(text).exists() or text.lower().endswith(".gguf")):
        folder = Path(resolve_model(config.model, home, part=ModelPart.CONFIG).location)
        location, revision = str(folder), None
    else:
        location = entry.hub_id if entry is not None else text
        folder = _cached(config, home)
        if entry is not None and entry.id == DEMO_MODEL_ID and folder is not None:
            location = str(folder)  # not quite the Hub's: unpacked from 4 bits where the Hub cannot be reached
    return ModelFacts(
        location=location,
        compute=compute,
        on_cpu=on_cpu,
        revision=revision,
        tokenizer=_look_at_tokenizer(folder, run),
        warm_start=_warm_start(config, run),
        grouped=_groups_rows(config, home, run, device),
    )


def _cached(config: RunConfig, home: LoratoryHome) -> Path | None:
    """Return the model's folder on this machine, if its tokenizer is here; nothing is fetched."""
    from engine.models.hub import cached_snapshot

    entry = find_in_catalog(config.model.id.strip())
    if entry is not None and entry.id == DEMO_MODEL_ID and config.model.revision is None:
        from engine.models.demo import demo_folder, is_demo_prepared

        if is_demo_prepared(home):
            return demo_folder(home)
    hub_id = DEMO_HUB_ID if entry is not None and entry.id == DEMO_MODEL_ID else None
    snapshot = cached_snapshot(
        hub_id or (entry.hub_id if entry is not None else config.model.id.strip()),
        config.model.revision,
        ModelPart.TOKENIZER,
    )
    return snapshot.folder if snapshot is not None else None


def _compute(config: RunConfig, run: RunFolder | None, device: Device) -> tuple[str, bool]:
    known = read_history(run.events).parameters if run is not None else None
    if known is not None:
        return known.compute_dtype, known.device == describe_processor().name
    # Layers are spread over GPUs alone, wherever this is written.
    on_cpu = device.kind == "cpu" and config.run.spread_over == 1
    dtype = choose_compute_dtype(config.model.compute_dtype, device.kind, has_fast_bfloat16=device.has_fast_bfloat16)
    return dtype, on_cpu


def _device_here(config: RunConfig) -> Device:
    try:
        return choose_device(config.run)
    except EngineError:
        return describe_processor()


def _groups_rows(config: RunConfig, home: LoratoryHome, run: RunFolder | None, device: Device) -> bool:
    """Whether steps hold rows of like length: where rows are padded, as the run said or as it would be on this device."""
    if config.training.packing or config.training.train_sampling_strategy != "group_by_length":
        return False
    if run is not None:
        newest = next(reversed(list_checkpoints(run.checkpoints)), None)
        if newest is not None and newest.manifest.row_plan is not None:  # it may have begun on another kind of device
            return newest.manifest.row_plan.order.groups_by_length
    known = read_history(run.events).parameters if run is not None else None
    if known is not None and known.batching:
        return known.batching == "padded"
    shape = known_inventory(config.model, home)
    # A model that was never inspected is taken for a plain decoder.
    facts = AttentionFacts.of_shape(shape) if shape is not None else PLAIN_ATTENTION
    attention = expected_attention(facts.support, config, device, has_flash_package=has_flash_attention())
    return choose_batching(facts, attention, config, device.kind) == "padded"


def _look_at_tokenizer(folder: Path | None, run: RunFolder | None) -> TokenizerFacts:
    """The template of training, where the model's own differs from it: frozen with a run, or ours for a base model."""
    settings = _tokenizer_settings(folder) if folder is not None else None
    own = _template(folder) if folder is not None else None
    trained = _template(run.adapter) if run is not None else None
    trained_settings = (_tokenizer_settings(run.adapter) if run is not None else None) or {}
    eos = trained_settings.get("eos_token")
    has_none = own is None and settings is not None and not settings.get("chat_template")
    used = trained if trained is not None else DEFAULT_TEMPLATE if has_none else own
    return TokenizerFacts(
        template=trained if trained != own else None,
        default_template="never" if trained or own else "always" if has_none else "if_missing",
        has_clock=trained is None and (used is None or "strftime_now" in used),
        takes_parts=used is None or _READS_PARTS.search(used) is not None,
        names_eos=settings is not None and bool(settings.get("eos_token")),
        eos=eos if isinstance(eos, str) else None,
    )


def _template(folder: Path) -> str | None:
    """Return the template that conversations without tools are written by."""
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        found = (_tokenizer_settings(folder) or {}).get("chat_template")
    if isinstance(found, list):  # templates with names
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return found if isinstance(found, str) else None


def _tokenizer_settings(folder: Path) -> dict[str, Any] | None:
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _warm_start(config: RunConfig, run: RunFolder | None) -> str | None:
    text = config.adapter.warm_start
    if text is None:
        return None
    named = run.path.parent / text if run is not None and RUN_ID.match(text) else typed_path(text)
    return str(named / "adapter" if (named / "adapter").is_dir() else named)
