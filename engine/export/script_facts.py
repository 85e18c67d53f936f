"""What a stand-alone script has to know beside its configuration: how the rows look, and where the model is."""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.config.run import RunConfig
from engine.data.access import ANY_FILE
from engine.data.conversation import Conversation
from engine.data.examine import DatasetPart, DatasetReader, Examined
from engine.data.files import DATA_ENDINGS, open_file
from engine.data.source import SAMPLE_PREFIX, SourceOptions
from engine.data.template import DEFAULT_TEMPLATE
from engine.errors import DatasetError, EngineError
from engine.export.script_data import DataFacts, FileKind
from engine.export.script_training import ModelFacts
from engine.hardware.devices import choose_device
from engine.hardware.processor import describe_processor
from engine.memory.run_workload import has_flash_attention
from engine.models.catalog import find_in_catalog
from engine.models.demo import DEMO_MODEL_ID
from engine.models.folder import ModelPart
from engine.models.source import DEMO_HUB_ID, resolve_model
from engine.paths import SAMPLES_FOLDER, LoratoryHome
from engine.runs.history import read_history
from engine.runs.run import RunFolder
from engine.runs.store import RUN_ID

_MOST_ROWS_LOOKED_AT = 200_000
_MOST_LEFT_OUT = 1_000
# Held-out rows of fewer tokens are all measured; a token is at least a byte, and a template adds some to each turn.
_ALL_MEASURED_TOKENS = 16_384
_TEMPLATE_TOKENS = 40


def look_at_data(config: RunConfig, home: LoratoryHome) -> DataFacts:
    """Read the rows once, without a tokenizer.

    Raises:
        DatasetError: If the source cannot be read, or is laid out in a way that a short script cannot read.
    """
    reader = DatasetReader(config.dataset.model_copy(update={"mix": {}}), SourceOptions(home=home))
    part = reader.parts[0]
    kind, files = _files(config, part)
    look = _Look(part)
    for row in itertools.islice(reader.rows(), _MOST_ROWS_LOOKED_AT):
        look.add(row)
    if len(look.left_out) > _MOST_LEFT_OUT:
        raise DatasetError(
            f"More than {_MOST_LEFT_OUT:,} rows of {part.source.name} are left out, too many for a script to name.",
            "Correct the file; `loratory inspect` says what is wrong with it.",
        )
    described = part.source.kind
    delimiter = "\t" if "tab" in described else ";" if "semicolon" in described else "|" if "pipe" in described else ","
    return DataFacts(
        kind=kind,
        files=files,
        encoding="utf-16" if "UTF-16" in described else "utf-8-sig",
        delimiter=delimiter,
        gzip="gzip" in described.lower(),
        format=part.detection.format,
        columns=part.detection.columns,
        tags=tuple(look.tags),
        turn_fields=look.turn_fields,
        left_out=tuple(look.left_out),
        has_system=look.has_system,
        has_parts=look.has_parts,
        has_empty_answers=look.has_empty_answers,
        opens_with_answer=look.opens_with_answer,
        most_answers=look.most_answers,
        has_duplicates=look.has_duplicates,
        held_out_draw=config.dataset.eval_fraction * look.most_tokens > _ALL_MEASURED_TOKENS,
    )


def unsaid_about_data(config: RunConfig, home: LoratoryHome) -> Iterator[str]:
    """What the script leaves out of what rows hold, in sentences."""
    reader = DatasetReader(config.dataset.model_copy(update={"mix": {}}), SourceOptions(home=home))
    seen: set[str] = set()
    for row in itertools.islice(reader.rows(), _MOST_ROWS_LOOKED_AT):
        if not isinstance(row.example, Conversation):
            continue
        if row.example.tools or any(message.tool_calls or message.role == "tool" for message in row.example.messages):
            seen.add("Rows hold tools or calls of them, which the run rendered and this script cannot.")
        if any(message.reasoning for message in row.example.messages):
            seen.add(
                "Answers hold reasoning, which this script leaves where it stands in the answer; the run gave it to "
                "the template apart."
            )
        if any(one.role == two.role for one, two in itertools.pairwise(row.example.messages)):
            seen.add(
                "Some rows have two turns of one role behind each other; the run joins them if the template refuses."
            )
    yield from sorted(seen)


class _Look:
    """What rows have in them."""

    def __init__(self, part: DatasetPart) -> None:
        columns = part.detection.columns
        self._columns = columns
        self._turns = columns.get("conversations") or columns.get("messages") or columns.get("prompt")
        self._role_names = (columns.get("from", "from"), columns.get("role", "role"))
        self._content_names = (columns.get("value", "value"), columns.get("content", "content"))
        self.tags: dict[str, None] = {}
        self.turn_fields = ("from", "value") if part.detection.format == "sharegpt" else ("role", "content")
        self.left_out: list[int] = []
        self.has_system = self.has_parts = self.has_empty_answers = self.opens_with_answer = False
        self.has_duplicates = False
        self._digests: set[int] = set()
        self.most_answers = 0
        self.most_tokens = 0

    def add(self, row: Examined) -> None:
        if row.example is None:
            self.left_out.append(row.record.row)
            return
        self.has_duplicates = self.has_duplicates or row.digest in self._digests
        self._digests.add(row.digest)
        self.most_tokens += len(row.example.text().encode("utf-8", "replace"))
        if not isinstance(row.example, Conversation):
            return
        messages = row.example.messages
        answers = [message for message in messages if message.role == "assistant"]
        self.most_tokens += _TEMPLATE_TOKENS * len(messages)
        self.most_answers = max(self.most_answers, len(answers))
        self.has_system = self.has_system or any(message.role == "system" for message in messages)
        self.has_empty_answers = self.has_empty_answers or any(message.is_empty for message in answers)
        self.opens_with_answer = self.opens_with_answer or messages[0].role == "assistant"
        assert row.record.value is not None
        self._add_turns(row.record.value)

    def _add_turns(self, value: Mapping[str, Any]) -> None:
        names = [self._turns] if self._turns is not None else []
        names += [self._columns["completion"]] if "completion" in self._columns else []
        for turns in (value.get(name) for name in names):
            for turn in turns if isinstance(turns, list) else ():
                role = next(name for name in self._role_names if name in turn)
                content = next((name for name in self._content_names if name in turn), self.turn_fields[1])
                self.turn_fields = (role, content)
                self.tags[turn[role].strip().lower()] = None
                self.has_parts = self.has_parts or isinstance(turn.get(content), list)


def _files(config: RunConfig, part: DatasetPart) -> tuple[FileKind, tuple[str, ...]]:
    source = config.dataset.source.strip()
    described = part.source.kind
    if described == "Hub dataset":
        return "hub", ()
    if source.startswith(SAMPLE_PREFIX):
        return "json_lines", (str(SAMPLES_FOLDER / f"{source.removeprefix(SAMPLE_PREFIX)}.jsonl"),)
    path = ANY_FILE.resolve(source)
    files = [path]
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        inside = [file for file in found if Path(file.name.lower().removesuffix(".gz")).suffix in DATA_ENDINGS]
        split = config.dataset.split.lower()
        files = [file for file in inside if split and file.name.lower().startswith(split)] or inside
    kinds = {_kind(open_file(file).kind) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise DatasetError(
            f"{part.source.name} holds {described}, which a short script cannot read.",
            "Write the rows into one JSONL file and train on that.",
        )
    kind = kinds.pop()
    assert kind is not None
    return kind, tuple(str(file) for file in files)


def _kind(described: str) -> FileKind | None:
    kinds: tuple[tuple[str, FileKind], ...] = (
        ("JSON Lines", "json_lines"),
        ("JSON array", "json_array"),
        ("CSV", "delimited"),
        ("plain text, a row for each paragraph", "paragraphs"),
        ("plain text", "lines"),
        ("Parquet", "parquet"),
    )
    return next((kind for start, kind in kinds if described.startswith(start)), None)


def look_at_model(config: RunConfig, home: LoratoryHome, run: RunFolder | None) -> ModelFacts:
    """Find out where the model is and in which precision it computes, as the run did or as this machine would.

    Raises:
        ModelError: If a model that is named by a path is not there.
    """
    compute, on_cpu = _compute(config, run)
    text = config.model.id.strip()
    entry = find_in_catalog(text)
    folder: Path | None = None
    revision = config.model.revision
    if entry is None and (Path(text).expanduser().exists() or text.lower().endswith(".gguf")):
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
        template=_other_template(folder, run),
        warm_start=_warm_start(config, run),
        grouped=_groups_rows(config, run, on_cpu=on_cpu),
    )


def _cached(config: RunConfig, home: LoratoryHome) -> Path | None:
    """The model's folder on this machine, if its tokenizer is here; nothing is fetched."""
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


def _compute(config: RunConfig, run: RunFolder | None) -> tuple[str, bool]:
    known = read_history(run.events).parameters if run is not None else None
    try:
        device = choose_device(config.run)
    except EngineError:
        device = describe_processor()
    if known is not None:
        return known.compute_dtype, known.device == describe_processor().name
    # Layers are spread over GPUs alone, wherever this is written.
    on_cpu = device.kind == "cpu" and config.run.spread_over == 1
    if config.model.compute_dtype != "auto":
        return config.model.compute_dtype, on_cpu
    fallback = "float16" if device.kind == "cuda" else "float32"
    return "bfloat16" if device.supports_bfloat16 else fallback, on_cpu


def _groups_rows(config: RunConfig, run: RunFolder | None, *, on_cpu: bool) -> bool:
    """Whether steps hold rows of like length: where rows are padded, as the run said or as it would be here."""
    if config.training.packing or config.training.train_sampling_strategy != "group_by_length":
        return False
    known = read_history(run.events).parameters if run is not None else None
    if known is not None and known.batching:
        return known.batching == "padded"
    asked = config.model.attn_implementation
    if config.adapter.method == "prefix_tuning" or asked == "eager":
        return True
    return not on_cpu and asked != "flash_attention_2" and (asked != "auto" or not has_flash_attention())


def _other_template(folder: Path | None, run: RunFolder | None) -> str | None:
    """The template of training, where the model's own differs from it: frozen with a run, or ours for a base model."""
    if folder is None:
        return None
    own = _template(folder)
    trained = _template(run.adapter) if run is not None else None
    if trained is None:
        return DEFAULT_TEMPLATE if own is None else None
    return None if trained == own else trained


def asks_for_the_date(config: RunConfig, home: LoratoryHome, facts: ModelFacts) -> bool:
    """Whether the script's template would say today's date, which a run's template does not."""
    named = Path(facts.location)
    folder = named if named.is_dir() else _cached(config, home)
    return facts.template is None and folder is not None and "strftime_now" in (_template(folder) or "")


def _template(folder: Path) -> str | None:
    try:
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except OSError:
        pass
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _warm_start(config: RunConfig, run: RunFolder | None) -> str | None:
    text = config.adapter.warm_start
    if text is None:
        return None
    named = run.path.parent / text if run is not None and RUN_ID.match(text) else Path(text).expanduser()
    return str(named / "adapter" if (named / "adapter").is_dir() else named)
