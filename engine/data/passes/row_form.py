"""The form of a dataset's rows, for a short script: what `load_dataset` gets, and where a row has its turns."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import RowForm
from loratory.engine.data.conversation import Conversation, PreferencePair
from loratory.engine.data.files import open_file
from loratory.engine.data.files.access import ANY_FILE
from loratory.engine.data.formats import FORMATS
from loratory.engine.data.formats.base import IMAGES
from loratory.engine.data.formats.preferences import HH_DIALOGUES
from loratory.engine.data.formats.turns import TurnFields, turn_list
from loratory.engine.data.passes.reader import DatasetReader, DatasetRow
from loratory.engine.data.source import SourceOptions, data_files, path_of
from loratory.engine.errors import DatasetError

_ROWS = 1_000
_BUILDERS = {"json_lines": "json", "json_array": "json", "delimited": "csv", "parquet": "parquet", "lines": "text",
             "paragraphs": "text"}  # fmt: skip
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class _Findings(RowForm, frozen=False):
    """The form as the rows so far show it."""


def read_row_form(config: DatasetConfig, options: SourceOptions) -> RowForm:
    """Find the form of a dataset from its first rows.

    Raises:
        DatasetError: If the source cannot be read, or the usual readers would read rows otherwise; has the reason.
    """
    reader = DatasetReader(config.model_copy(update={"mix": {}}), options)
    detection = reader.parts[0].detection
    role_field, content_field = FORMATS[detection.format].turn_fields
    form = _Findings(
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
    for row in itertools.islice(reader.rows(), _ROWS):
        for why in _note_row(form, row, reader.parts[0].converter.fields):
            raise DatasetError(
                f"Row {row.record.row + 1:,} of {reader.parts[0].source.name} {why}, which a short script does "
                "not read as a run does.",
                _instead(reader),
            )
    return form


def _instead(reader: DatasetReader) -> str:
    if reader.images.count:  # rows of an exact script have tokens alone
        return "Write the configuration instead, with --yaml."
    return "Write an exact script instead, with --exact."


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
            _instead(reader),
        )
    options: dict[str, Any] = {"data_files": [str(file) for file in files], "split": "train"}
    if form.encoding != "utf-8":
        options["encoding"] = "utf-16"  # which reads the byte order mark
    if form.kind == "delimited" and form.delimiter not in (None, ","):
        options["sep"] = form.delimiter
    if form.kind == "paragraphs":
        options["sample_by"] = "paragraph"
    return {"path": _BUILDERS[form.kind], **options}


def _note_row(form: _Findings, row: DatasetRow, fields: TurnFields) -> Iterator[str]:
    """Note what a row shows; yield why a short script would read it otherwise than a run."""
    if row.example is None:
        yield f"is left out in training ({row.problem})"
        return
    if not isinstance(row.example, Conversation):
        return
    messages = row.example.messages
    if row.example.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        yield "has tools"
    if any(message.images for message in messages):
        form.image_column = form.columns.get(IMAGES.role, "")
        if not form.image_column:
            yield "has images among the parts of its turns"
    if not all(message.is_trained for message in messages):
        yield "has turns of weight 0"
    if row.record.raw[:64].lstrip()[:1] == b"[":
        yield "is a bare list of turns"
    form.most_answers = max(form.most_answers, sum(message.role == "assistant" for message in messages))
    form.has_reasoning |= any(message.reasoning for message in messages)
    value = row.record.value or {}
    if isinstance(row.example, PreferencePair):
        cells = [turn_list(value.get(form.columns[side])) for side in ("chosen", "rejected")]
        opening = [fields.role_of(fields.read(cell[0])[0]) for cell in cells if cell]
        form.holds_whole_conversations |= any(role != "assistant" for role in opening)
        if form.columns.keys() == {"chosen", "rejected"} and not (opening or form.has_dialogues):
            yield "has its prompt in both answers"
    yield from _note_turns(form, value, fields)


def _note_turns(form: _Findings, value: Mapping[str, Any], fields: TurnFields) -> Iterator[str]:
    roles = ("conversations", "messages", "prompt", "completion", *FORMATS[form.format].may_hold_turns)
    for cell in (value.get(form.columns[role]) for role in dict.fromkeys(roles) if role in form.columns):
        turns = turn_list([cell] if isinstance(cell, dict) else cell)
        if turns is None:
            continue
        form.has_turn_lists = True
        form.has_json |= isinstance(cell, str)
        for turn in turns:
            form.role_field = next(name for name in fields.role if name in turn)
            form.content_field = next((name for name in fields.content if name in turn), form.content_field)
            tag = turn[form.role_field]
            if tag != tag.strip().lower():
                yield f"names a role {json.dumps(tag)}"
            role = form.roles[tag.strip().lower()] = fields.role_of(tag) or ""
            if not role:
                yield f"has turns of {json.dumps(tag)}, which are left out"
            if not isinstance(turn.get(form.content_field), str):
                yield "has turns that are more than a text"
            form.has_reasoning |= any(isinstance(turn.get(name), str) for name in _REASONING_FIELDS)
