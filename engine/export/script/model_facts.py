"""Facts about the model for an exported script: its location, compute dtype and chat template."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine.config.rules import choose_compute_dtype
from engine.config.run import RunConfig
from engine.data.render.template import DEFAULT_TEMPLATE
from engine.errors import EngineError
from engine.files import resolve_inside
from engine.hardware.device import Device
from engine.hardware.devices import choose_device
from engine.hardware.processor import describe_processor
from engine.memory.workload import has_flash_attention
from engine.models.batching import (
    PLAIN_ATTENTION,
    VARLEN_ATTENTION,
    AttentionFacts,
    choose_batching,
    expected_attention,
    takes_varlen_attention,
)
from engine.models.catalog import find_in_catalog
from engine.models.demo import DEMO_MODEL_ID, demo_folder, is_demo_prepared
from engine.models.folder import ModelPart
from engine.models.hub import find_snapshot
from engine.models.inventory_cache import known_inventory
from engine.models.source import DEMO_HUB_ID, resolve_model
from engine.paths import LoratoryHome, typed_path
from engine.runs.checkpoints import list_checkpoints
from engine.runs.history.events import ParametersData
from engine.runs.history.reader import read_history
from engine.runs.run import RunFolder
from engine.runs.store import RUN_ID

# A template that takes a list of parts reads the field `text` of each.
_READS_PARTS = re.compile(r"""\.text\b|\[\s*['"]text['"]\s*\]|\.get\(\s*['"]text['"]""")


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known about the tokenizer without loading it."""

    template: str | None = None  # of training, if the model's own differs
    default_template: Literal["never", "always", "if_missing"] = "never"  # when to use Loratory's default
    has_clock: bool = False  # the template may ask for today's date
    takes_parts: bool = False  # it may want the text of a turn as a list of parts
    names_eos: bool = True  # the files name an end-of-sequence token
    eos: str | None = None  # that of training, if known

    @property
    def written_template(self) -> str:
        """The template to write into the script; empty if it needs none."""
        return DEFAULT_TEMPLATE if self.default_template != "never" else self.template or ""


@dataclass(frozen=True)
class ModelFacts:
    """What is known about the model and the device of the run."""

    location: str  # hub id or folder, as `from_pretrained` takes it
    compute: str  # dtype of computation: bfloat16, float16 or float32
    on_cpu: bool  # the run computes on a CPU
    tokenizer: TokenizerFacts  # what is known about the tokenizer
    revision: str | None = None  # commit on the Hub
    warm_start: str | None = None  # folder of the adapter that training starts from
    groups_by_length: bool = False  # the rows of a step are of similar length
    pads_rows: bool = False  # rows are padded, not joined


def look_at_model(config: RunConfig, home: LoratoryHome, run: RunFolder | None) -> ModelFacts:
    """Collect the facts of the model: those of the run, or of this machine where there is no run.

    Raises:
        ModelError: If a model that is named by a path is not there.
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
    if (device.kind == "cpu") != on_cpu:  # the run is another machine's
        device = replace(device, kind="cpu" if on_cpu else "cuda")
    text, revision = config.model.id.strip(), config.model.revision
    entry = find_in_catalog(text)
    folder: Path | None
    if entry is None and (typed_path(text).exists() or text.lower().endswith(".gguf")):
        folder = Path(resolve_model(config.model, home, part=ModelPart.CONFIG).location)
        location, revision = str(folder), None
    elif entry is not None and entry.id == DEMO_MODEL_ID:
        is_prepared = revision is None and is_demo_prepared(home)
        folder = demo_folder(home) if is_prepared else _local_folder(DEMO_HUB_ID, revision, home)
        # Without access to the Hub it was unpacked from 4 bits, so it differs slightly from the Hub's.
        location = str(folder) if folder is not None else entry.hub_id
    else:
        location = entry.hub_id if entry is not None else text
        folder = _local_folder(location, revision, home)
    is_grouped, is_padded = _batching(config, home, run, parameters, device)
    return ModelFacts(
        location=location,
        compute=compute,
        on_cpu=on_cpu,
        revision=revision,
        tokenizer=_look_at_tokenizer(folder, run),
        warm_start=_warm_start(config, run),
        groups_by_length=is_grouped,
        pads_rows=is_padded,
    )


def _local_folder(hub_id: str, revision: str | None, home: LoratoryHome) -> Path | None:
    """Return the model's local folder if its tokenizer is there; nothing is downloaded."""
    snapshot = find_snapshot(hub_id, revision, ModelPart.TOKENIZER, home)
    return snapshot.folder if snapshot is not None else None


def _batching(
    config: RunConfig, home: LoratoryHome, run: RunFolder | None, parameters: ParametersData | None, device: Device
) -> tuple[bool, bool]:
    """Return whether steps hold rows of similar length, and whether rows are padded: as in the run, or on this device."""
    may_group = not config.training.packing and config.training.train_sampling_strategy == "group_by_length"
    newest = next(reversed(list_checkpoints(run.checkpoints)), None) if run is not None else None
    if newest is not None and newest.manifest.row_plan is not None:  # it may have begun on another kind of device
        plan = newest.manifest.row_plan
        return may_group and plan.order.groups_by_length, plan.batching == "padded"
    if parameters is not None and parameters.batching:
        is_padded = parameters.batching == "padded"
        return may_group and is_padded, is_padded
    shape = known_inventory(config.model, home)
    # A model that was never inspected is assumed to be a plain decoder.
    facts = AttentionFacts.of_shape(shape) if shape is not None else PLAIN_ATTENTION
    attention = expected_attention(facts.support, config, device, has_flash_package=has_flash_attention())
    if takes_varlen_attention(facts, attention, config, device):
        attention = VARLEN_ATTENTION
    is_padded = choose_batching(facts, attention, config, device.kind) == "padded"
    return may_group and is_padded, is_padded


def _look_at_tokenizer(folder: Path | None, run: RunFolder | None) -> TokenizerFacts:
    """Compare the model's own template with that of training, which a run has saved."""
    settings = _tokenizer_settings(folder)
    own_template = _template(folder)
    run_template = _template(run.adapter if run is not None else None)
    eos = (_tokenizer_settings(run.adapter if run is not None else None) or {}).get("eos_token")
    has_none = own_template is None and settings is not None and not settings.get("chat_template")
    template = run_template if run_template is not None else DEFAULT_TEMPLATE if has_none else own_template
    return TokenizerFacts(
        template=run_template if run_template != own_template else None,
        default_template="never" if run_template or own_template else "always" if has_none else "if_missing",
        has_clock=run_template is None and (template is None or "strftime_now" in template),
        takes_parts=template is None or _READS_PARTS.search(template) is not None,
        names_eos=settings is not None and bool(settings.get("eos_token")),
        eos=eos if isinstance(eos, str) else None,
    )


def _template(folder: Path | None) -> str | None:
    """Return a folder's chat template for conversations without tools."""
    if folder is None:
        return None
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        template = (_tokenizer_settings(folder) or {}).get("chat_template")
    if isinstance(template, list):  # templates with names
        templates = (one for one in template if isinstance(one, dict) and one.get("name") == "default")
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
