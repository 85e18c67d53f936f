"""The form of a dataset's rows, for a short script: what `load_dataset` gets, and where a row has its turns."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import RowForm
from loratory.engine.data.conversation import Conversation, PreferencePair
from loratory.engine.data.files import open_file
from loratory.engine.data.files.access import ANY_FILE
from loratory.engine.data.formats import FORMATS
from loratory.engine.data.formats.preferences import HH_DIALOGUES
from loratory.engine.data.formats.turns import ROLES, turn_list
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow
from loratory.engine.data.source import SourceOptions, data_files, path_of
from loratory.engine.errors import DatasetError

_ROWS = 1_000
_BUILDERS = {"json_lines": "json", "json_array": "json", "delimited": "csv", "parquet": "parquet", "lines": "text",
             "paragraphs": "text"}  # fmt: skip
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


@dataclass
class _Findings:
    """What the rows so far show, as the fields of `RowForm` have it."""

    role_field: str
    content_field: str
    roles: dict[str, str] = field(default_factory=dict)
    most_answers: int = 0
    has_turn_lists: bool = False
    has_json: bool = False
    has_reasoning: bool = False
    holds_whole_conversations: bool = False


def read_row_form(config: DatasetConfig, options: SourceOptions) -> RowForm:
    """Find the form of a dataset from its first rows.

    Raises:
        DatasetError: If the source cannot be read, or the usual readers would read rows otherwise; has the reason.
    """
    reader = DatasetReader(config.model_copy(update={"mix": {}}), options)
    detection = reader.parts[0].detection
    role_field, content_field = FORMATS[detection.format].turn_fields
    form = RowForm(
        format=detection.format,
        columns=dict(detection.columns),
        loader=_loader(config, reader),
        role_field=role_field,
        content_field=content_field,
        has_system="system" in detection.columns,
        is_rated=FORMATS[detection.format].rows == "ratings",
        has_dialogues=detection.format == HH_DIALOGUES.name,
        turn_column=detection.columns.get(FORMATS[detection.format].turn_column, ""),
        text_column=None if FORMATS[detection.format].has_turns else detection.columns["text"],
    )
    findings = _Findings(role_field, content_field)
    for row in itertools.islice(reader.rows(), _ROWS):
        for why in _note_row(findings, form, row):
            raise DatasetError(
                f"Row {row.record.row + 1:,} of {reader.parts[0].source.name} {why}, which a short script does "
                "not read as a run does.",
                "Write an exact script instead, with --exact.",
            )
    return form.model_copy(update=vars(findings))


def _loader(config: DatasetConfig, reader: DatasetReader) -> dict[str, Any]:
    form, source = reader.parts[0].source.form, config.source.strip()
    if form.kind == "hub":
        arguments = {"path": source, "name": config.subset, "split": config.split, "revision": config.revision}
        return {name: value for name, value in arguments.items() if value}
    files = []
    if form.kind != "set":
        path = path_of(source, ANY_FILE)  # the reader has checked that it may be read
        files = data_files(path, config.split) if path.is_dir() else [path]
    kinds = {open_file(file).form.kind for file in files}
    if len(kinds) > 1 or form.kind not in _BUILDERS:
        raise DatasetError(
            f"{reader.parts[0].source.name} holds {reader.parts[0].source.kind}, which `load_dataset` does not read.",
            "Write an exact script instead, with --exact.",
        )
    options: dict[str, Any] = {"data_files": [str(file) for file in files], "split": "train"}
    if form.encoding != "utf-8":
        options["encoding"] = "utf-16"  # which reads the byte order mark
    if form.kind == "delimited" and form.delimiter not in (None, ","):
        options["sep"] = form.delimiter
    if form.kind == "paragraphs":
        options["sample_by"] = "paragraph"
    return {"path": _BUILDERS[form.kind], **options}


def _note_row(findings: _Findings, form: RowForm, row: DatasetRow) -> Iterator[str]:
    """Note what a row shows; yield why a short script would read it otherwise than a run."""
    if row.example is None:
        yield f"is left out in training ({row.problem})"
        return
    if not isinstance(row.example, Conversation):
        return
    messages = row.example.messages
    if row.example.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        yield "has tools"
    if not all(message.is_trained for message in messages):
        yield "has turns of weight 0"
    if row.record.raw[:64].lstrip()[:1] in (b"[", "["):
        yield "is a bare list of turns"
    findings.most_answers = max(findings.most_answers, sum(message.role == "assistant" for message in messages))
    findings.has_reasoning |= any(message.reasoning for message in messages)
    value = row.record.value or {}
    if isinstance(row.example, PreferencePair):
        cells = [turn_list(value.get(form.columns[side])) for side in ("chosen", "rejected")]
        opening = [str(cell[0].get("role", cell[0].get("from"))).strip().lower() for cell in cells if cell]
        findings.holds_whole_conversations |= any(ROLES.get(tag) != "assistant" for tag in opening)
        if form.columns.keys() == {"chosen", "rejected"} and not (opening or form.has_dialogues):
            yield "has its prompt in both answers"
    yield from _note_turns(findings, form, value)


def _note_turns(findings: _Findings, form: RowForm, value: Mapping[str, Any]) -> Iterator[str]:
    role_names = (form.columns.get("from", "from"), form.columns.get("role", "role"))
    content_names = (form.columns.get("value", "value"), form.columns.get("content", "content"))
    roles = ("conversations", "messages", "prompt", "completion", *FORMATS[form.format].may_hold_turns)
    for cell in (value.get(form.columns[role]) for role in dict.fromkeys(roles) if role in form.columns):
        turns = turn_list([cell] if isinstance(cell, dict) else cell)
        if turns is None:
            continue
        findings.has_turn_lists = True
        findings.has_json |= isinstance(cell, str)
        for turn in turns:
            findings.role_field = next(name for name in role_names if name in turn)
            findings.content_field = next((name for name in content_names if name in turn), findings.content_field)
            tag = turn[findings.role_field]
            if tag != tag.strip().lower():
                yield f"names a role {json.dumps(tag)}"
            findings.roles[tag.strip().lower()] = ROLES[tag.strip().lower()]
            if not isinstance(turn.get(findings.content_field), str):
                yield "has turns that are more than a text"
            findings.has_reasoning |= any(isinstance(turn.get(name), str) for name in _REASONING_FIELDS)
