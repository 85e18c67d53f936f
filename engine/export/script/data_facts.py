"""Facts about the rows for an exported script, and a check that the script reads the same rows as the run."""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np

from engine.config.run import RunConfig
from engine.data.conversation import Comparison, Conversation
from engine.data.files import open_file
from engine.data.files.access import ANY_FILE
from engine.data.formats import FORMATS
from engine.data.formats.turns import ROLES, conversation_column, turn_list
from engine.data.passes.reader import DatasetPart, DatasetReader
from engine.data.records import Record
from engine.data.source import SAMPLE_PREFIX, SourceOptions, data_files
from engine.errors import DatasetError
from engine.export.script.facts import facts as example
from engine.export.script.row_facts import DataFacts, FileKind
from engine.export.script.specialize import assemble
from engine.paths import SAMPLES_FOLDER, LoratoryHome

# The modules of a script that read rows.
MODULES_OF_ROWS = (
    "engine.data.formats.preferences",
    *(f"engine.export.script.worker.{name}" for name in ("rows", "preferences")),
)

_MOST_LEFT_OUT = 1_000
_MOST_ARRAY_BYTES = 1 << 30
# With fewer tokens, all held-out rows are measured. A token is at least a byte, and a template adds some to each turn.
_ALL_MEASURED_TOKENS = 16_384
_TEMPLATE_TOKENS = 40
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
EXPORT_YAML = "Export the settings as YAML instead, and run them with `loratory train`."


def look_at_data(config: RunConfig, home: LoratoryHome) -> DataFacts:
    """Collect facts about the rows without a tokenizer, and check that the script's own code reads the same rows.

    Raises:
        DatasetError: If the source cannot be read, or the script would read any row differently.
    """
    reader = DatasetReader(config.dataset.model_copy(update={"mix": {}}), SourceOptions(home=home))
    part = reader.parts[0]
    form, (kind, files) = part.source.form, _files(config, part)
    role_field, content_field = FORMATS[part.detection.format].turn_fields
    facts = DataFacts(
        kind=kind,
        format=part.detection.format,
        columns=part.detection.columns,
        files=files,
        encoding="utf-8-sig" if form.encoding == "utf-8" else "utf-16",  # codecs that read the byte order mark
        delimiter=form.delimiter or ",",
        gzip=form.is_gzipped,
        has_media=kind == "hub" and bool(part.source.notes),
        role_field=role_field,
        content_field=content_field,
    )
    digests, groups, most_tokens = array("Q"), array("Q"), 0
    for row in reader.rows():
        if row.example is None:
            facts.left_out.add(row.record.row)
            continue
        digests.append(row.digest)
        groups.append(row.group)
        most_tokens += len(row.example.text().encode("utf-8", "replace"))
        if isinstance(row.example, Conversation):
            most_tokens += _TEMPLATE_TOKENS * len(row.example.messages)
            _look_at_conversation(facts, row.example, row.record, part.source.name)
    if len(facts.left_out) > _MOST_LEFT_OUT:
        raise DatasetError(
            f"More than {_MOST_LEFT_OUT:,} rows of {part.source.name} are left out, too many to list in a script.",
            "Correct the file; `loratory inspect` reports what is wrong with it.",
        )
    facts.fingerprint = hashlib.sha256(np.asarray(digests).astype("<u8").tobytes()).hexdigest()
    facts.can_hold_out = len(np.unique(groups)) > 1
    facts.held_out_draw = config.dataset.eval_fraction * most_tokens > _ALL_MEASURED_TOKENS
    # The run and the script read the Hub with the same library, so its rows are fetched once.
    rows = (record.value for record in reader.records() if record is not None) if kind == "hub" else None
    _require_same_rows(config, facts, digests, part, rows)
    return facts


def _look_at_conversation(facts: DataFacts, conversation: Conversation, record: Record, name: str) -> None:
    assert record.value is not None
    if isinstance(conversation, Comparison):
        cells = [turn_list(record.value.get(facts.columns[role])) for role in ("chosen", "rejected")]
        opening = [str(cell[0].get("role", cell[0].get("from"))).strip().lower() for cell in cells if cell]
        facts.holds_whole_conversations |= any(ROLES.get(tag) != "assistant" for tag in opening)
    for side in conversation.sides() if isinstance(conversation, Comparison) else (conversation,):
        _look_at_side(facts, side, record, name)
    facts.has_list_rows |= record.raw[:64].lstrip()[:1] in (b"[", "[")
    _look_at_turns(facts, record.value)
    facts.has_reasoning = facts.has_reasoning or any("<think>" in text for text in _texts(record.value))


def _look_at_side(facts: DataFacts, conversation: Conversation, record: Record, name: str) -> None:
    messages = conversation.messages
    if conversation.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        raise DatasetError(
            f"Row {record.row + 1:,} of {name} has tools or tool calls, which a script cannot render.",
            EXPORT_YAML,
        )
    if not all(message.is_learned for message in messages):
        raise DatasetError(
            f"Row {record.row + 1:,} of {name} has turns of weight 0, which a script would train.",
            EXPORT_YAML,
        )
    answers = [message for message in messages if message.role == "assistant"]
    # Preferences train only the last answer.
    start = conversation.completion_start if FORMATS[facts.format].rows != "answers" else 0
    facts.most_answers = max(facts.most_answers, sum(message.role == "assistant" for message in messages[start:]))
    facts.has_system |= any(message.role == "system" for message in messages)
    facts.has_later_system |= any(message.role == "system" for message in messages[1:])
    facts.has_repeated_roles |= any(one.role == two.role != "system" for one, two in itertools.pairwise(messages))
    facts.has_empty_answers |= any(message.is_empty for message in answers)
    facts.opens_with_answer |= messages[0].role == "assistant"


def _look_at_turns(facts: DataFacts, value: Mapping[str, Any]) -> None:
    columns = facts.columns
    role_names = (columns.get("from", "from"), columns.get("role", "role"))
    content_names = (columns.get("value", "value"), columns.get("content", "content"))
    may_be_words = bool(FORMATS[facts.format].may_hold_turns)
    facts.has_json_columns |= isinstance(value.get(columns.get("history", "")), str)
    format_ = FORMATS[facts.format]
    roles = ("conversations", "messages", "prompt", "completion", *format_.may_hold_turns)
    for role in dict.fromkeys(role for role in roles if role in columns):
        name = columns[role]
        turns = value.get(name)
        turns = [turns] if isinstance(turns, dict) else turns
        if isinstance(turns, str) and not (may_be_words and conversation_column(turn_list(turns)) is None):
            facts.has_json_columns = True
            turns = json.loads(turns)
        for turn in turns if isinstance(turns, list) else ():
            facts.turn_columns.add(name)
            facts.role_field = next(field for field in role_names if field in turn)
            facts.content_field = next((field for field in content_names if field in turn), facts.content_field)
            tag = turn[facts.role_field].strip().lower()
            facts.roles[tag] = ROLES[tag]
            facts.has_parts |= isinstance(turn.get(facts.content_field), list)
            if any(isinstance(turn.get(field), str) for field in _REASONING_FIELDS):
                facts.has_reasoning_fields = facts.has_reasoning = True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _require_same_rows(
    config: RunConfig,
    facts: DataFacts,
    digests: Iterable[int],
    part: DatasetPart,
    rows: Iterable[Mapping[str, Any] | None] | None,
) -> None:
    """Run the script's reader, and compare each row with that of the run.

    `rows` replaces what the script would read, where it uses the same library as the run.
    """
    is_preference = FORMATS[facts.format].rows != "answers"
    function, digest = ("preference", "preference_digest") if is_preference else ("conversation", "digest")
    roots = ["read_rows", digest, *([function] if facts.has_turns else [])]
    code = assemble(MODULES_OF_ROWS, roots, replace(example, config=config, data=facts))
    names: dict[str, Any] = {}
    exec(compile(code, "script", "exec"), names)  # noqa: S102 - written by this program
    convert_row = names[function] if facts.has_turns else lambda row: row[facts.columns["text"]]
    values = names["read_rows"](list(facts.files)) if rows is None else rows
    expected = iter(digests)
    number = 0
    try:
        for number, row in enumerate(values):
            if number not in facts.left_out and names[digest](convert_row(row)) != next(expected, None):
                raise ValueError("another row")
        number += 1
        if next(expected, None) is not None:
            raise ValueError("fewer rows")
    except DatasetError:  # of the reader
        raise
    except Exception as error:  # the script's code may raise anything for rows that it does not support
        raise DatasetError(
            f"{part.source.name} holds {part.source.kind}, which a script cannot read as the run does: "
            f"row {number + 1:,} would differ.",
            "Write the rows into one JSONL file in UTF-8, each with the same columns and fields, and train on that.",
        ) from error


def _files(config: RunConfig, part: DatasetPart) -> tuple[FileKind, tuple[str, ...]]:
    source = config.dataset.source.strip()
    if part.source.form.kind == "hub":
        return "hub", ()
    if source.startswith(SAMPLE_PREFIX):
        return "json_lines", (str(SAMPLES_FOLDER / f"{source.removeprefix(SAMPLE_PREFIX)}.jsonl"),)
    path = ANY_FILE.resolve(source)
    files = data_files(path, config.dataset.split) if path.is_dir() else [path]
    kinds = {open_file(file).form.kind for file in files}
    # The script reads an array as a whole, and so does this check.
    is_too_large = "json_array" in kinds and (part.source.size_bytes or 0) > _MOST_ARRAY_BYTES
    kind = kinds.pop() if len(kinds) == 1 and not is_too_large else None
    if kind not in get_args(FileKind):
        raise DatasetError(
            f"{part.source.name} holds {part.source.kind}, which a script cannot read.",
            "Write the rows into one JSONL file and train on that.",
        )
    return cast(FileKind, kind), tuple(str(file) for file in files)
