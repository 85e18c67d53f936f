"""What a stand-alone script needs to know about the rows, and the proof that it reads them as the run does."""

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine.config.run import RunConfig
from engine.data.conversation import Conversation
from engine.data.files import open_file
from engine.data.files.access import ANY_FILE
from engine.data.formats import FORMATS
from engine.data.formats.turns import conversation_column, turn_list
from engine.data.passes.reader import DatasetPart, DatasetReader, DatasetRow
from engine.data.source import SAMPLE_PREFIX, SourceOptions, data_files
from engine.errors import DatasetError
from engine.export.script.facts import DataFacts, FileKind
from engine.export.script.facts import facts as example
from engine.export.script.specialize import assemble
from engine.paths import SAMPLES_FOLDER, LoratoryHome

# The longest cell that Python's csv module takes by default.
_LONGEST_CELL_BYTES = 131_072
_MOST_LEFT_OUT = 1_000
_MOST_ARRAY_BYTES = 1 << 30
# Held-out rows of fewer tokens are all measured; a token is at least a byte, and a template adds some to each turn.
_ALL_MEASURED_TOKENS = 16_384
_TEMPLATE_TOKENS = 40
_SCRIPT_KINDS: Mapping[str, FileKind] = {
    "json_lines": "json_lines",
    "list_lines": "json_lines",
    "json_array": "json_array",
    "delimited": "delimited",
    "paragraphs": "paragraphs",
    "lines": "lines",
    "parquet": "parquet",
}
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def look_at_data(config: RunConfig, home: LoratoryHome) -> DataFacts:
    """Read the rows without a tokenizer, and read them again by the very code of the script.

    Raises:
        DatasetError: If the source cannot be read, or the script's code would make anything else of any row.
    """
    reader = DatasetReader(config.dataset.model_copy(update={"mix": {}}), SourceOptions(home=home))
    part = reader.parts[0]
    kind, files = _files(config, part)
    look = _Look(part)
    for row in reader.rows():
        look.add(row)
    if len(look.left_out) > _MOST_LEFT_OUT:
        raise DatasetError(
            f"More than {_MOST_LEFT_OUT:,} rows of {part.source.name} are left out, too many for a script to name.",
            "Correct the file; `loratory inspect` says what is wrong with it.",
        )
    form = part.source.form
    repeated = len(look.digests) - len(np.unique(look.digests))
    facts = DataFacts(
        kind=kind,
        format=part.detection.format,
        columns=part.detection.columns,
        fingerprint=hashlib.sha256(np.asarray(look.digests).astype("<u8").tobytes()).hexdigest(),
        files=files,
        encoding="utf-8-sig" if form.encoding == "utf-8" else "utf-16",  # the codecs that look at the mark
        delimiter=form.delimiter or ",",
        gzip=form.is_gzipped,
        # Of a row that is left out, only the beginning is at hand.
        has_long_rows=look.longest_row_bytes > _LONGEST_CELL_BYTES or bool(look.left_out),
        has_media=kind == "hub" and bool(part.source.notes),
        tags=tuple(look.tags),
        role_field=look.turn_fields[0],
        content_field=look.turn_fields[1],
        turn_columns=tuple(look.turn_columns),
        left_out=set(look.left_out),
        json_columns=tuple(look.json_columns),
        has_list_rows=look.has_list_rows,
        has_system=look.has_system,
        has_later_system=look.has_later_system,
        has_repeated_roles=look.has_repeated_roles,
        has_parts=look.has_parts,
        has_reasoning=look.has_reasoning or look.has_reasoning_fields,
        has_reasoning_fields=look.has_reasoning_fields,
        has_empty_answers=look.has_empty_answers,
        opens_with_answer=look.opens_with_answer,
        most_answers=look.most_answers,
        can_hold_out=len(look.digests) - repeated > 1,
        held_out_draw=config.dataset.eval_fraction * look.most_tokens > _ALL_MEASURED_TOKENS,
    )
    # What is on the Hub is read by the same library in both, and is fetched once.
    rows = (record.value for record in reader.records() if record is not None) if kind == "hub" else None
    _require_same_rows(config, facts, look.digests, part, rows)
    return facts


class _Look:
    """What rows have in them."""

    def __init__(self, part: DatasetPart) -> None:
        columns = part.detection.columns
        self._name = part.source.name
        self._columns = columns
        roles = ("conversations", "messages", "prompt", "completion")
        self._turn_columns = [columns[role] for role in roles if role in columns]
        self._may_be_words = bool(FORMATS[part.detection.format].may_hold_turns)
        self._role_names = (columns.get("from", "from"), columns.get("role", "role"))
        self._content_names = (columns.get("value", "value"), columns.get("content", "content"))
        self.digests = array("Q")
        self.tags: dict[str, None] = {}
        self.turn_fields = FORMATS[part.detection.format].turn_fields
        self.turn_columns: dict[str, None] = {}
        self.json_columns: dict[str, None] = {}
        self.left_out: list[int] = []
        self.has_system = self.has_later_system = self.has_repeated_roles = False
        self.has_parts = self.has_reasoning = self.has_reasoning_fields = self.has_list_rows = False
        self.has_empty_answers = self.opens_with_answer = False
        self.most_answers = self.most_tokens = self.longest_row_bytes = 0

    def add(self, row: DatasetRow) -> None:
        self.longest_row_bytes = max(self.longest_row_bytes, row.record.size_bytes)
        if row.example is None:
            self.left_out.append(row.record.row)
            return
        self.digests.append(row.digest)
        self.most_tokens += len(row.example.text().encode("utf-8", "replace"))
        if not isinstance(row.example, Conversation):
            return
        messages = row.example.messages
        if row.example.tools or any(message.tool_calls or message.role == "tool" for message in messages):
            raise DatasetError(
                f"Row {row.record.row:,} of {self._name} holds tools or calls of them, which a short script cannot render.",
                "Take the settings as YAML, with which `loratory train` does the same.",
            )
        if not all(message.is_learned for message in messages):
            raise DatasetError(
                f"Row {row.record.row:,} of {self._name} holds turns of weight 0, which a short script would learn all the same.",
                "Take the settings as YAML, with which `loratory train` does the same.",
            )
        answers = [message for message in messages if message.role == "assistant"]
        self.most_tokens += _TEMPLATE_TOKENS * len(messages)
        self.most_answers = max(self.most_answers, len(answers))
        self.has_system = self.has_system or any(message.role == "system" for message in messages)
        self.has_later_system = self.has_later_system or any(message.role == "system" for message in messages[1:])
        self.has_repeated_roles = self.has_repeated_roles or any(
            one.role == two.role != "system" for one, two in itertools.pairwise(messages)
        )
        self.has_empty_answers = self.has_empty_answers or any(message.is_empty for message in answers)
        self.opens_with_answer = self.opens_with_answer or messages[0].role == "assistant"
        assert row.record.value is not None
        self.has_list_rows = self.has_list_rows or row.record.raw[:64].lstrip()[:1] in (b"[", "[")
        self._add_turns(row.record.value)
        self.has_reasoning = self.has_reasoning or any("<think>" in text for text in _texts(row.record.value))

    def _add_turns(self, value: Mapping[str, Any]) -> None:
        history = self._columns.get("history", "")
        if isinstance(value.get(history), str):
            self.json_columns[history] = None
        for name in self._turn_columns:
            turns = value.get(name)
            if isinstance(turns, str) and not (self._may_be_words and conversation_column(turn_list(turns)) is None):
                self.json_columns[name] = None
                turns = json.loads(turns)
            for turn in turns if isinstance(turns, list) else ():
                self.turn_columns[name] = None
                role = next(field for field in self._role_names if field in turn)
                content = next((field for field in self._content_names if field in turn), self.turn_fields[1])
                self.turn_fields = (role, content)
                self.tags[turn[role].strip().lower()] = None
                self.has_parts = self.has_parts or isinstance(turn.get(content), list)
                if any(isinstance(turn.get(field), str) for field in _REASONING_FIELDS):
                    self.has_reasoning_fields = True


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
    """Run the script's own reading, and compare what it makes of each row with what the run makes of it.

    Args:
        config: Of the run.
        facts: What the code is written from.
        digests: Of the rows that are not left out, in order.
        part: Where they come from.
        rows: Taken for those that the script reads, where it asks the very library that the run asks.
    """
    roots = ["read_rows", "digest", *(["conversation"] if facts.has_turns else [])]
    code = assemble(["engine.export.script.worker.rows"], roots, replace(example, config=config, data=facts))
    names: dict[str, Any] = {}
    exec(compile(code, "script", "exec"), names)  # noqa: S102 - written by this program
    says = names["conversation"] if facts.has_turns else lambda row: row[facts.columns["text"]]
    found = names["read_rows"](list(facts.files)) if rows is None else rows
    expected = iter(digests)
    number = 0
    try:
        for number, row in enumerate(found):
            if number not in facts.left_out and names["digest"](says(row)) != next(expected, None):
                raise _unreadable(part, number)
    except DatasetError:
        raise
    except Exception as error:  # whatever such rows make of code that was not written for them
        raise _unreadable(part, number) from error
    if next(expected, None) is not None:
        raise _unreadable(part, number + 1)


def _unreadable(part: DatasetPart, row: int) -> DatasetError:
    return DatasetError(
        f"{part.source.name} holds {part.source.kind}, which a short script cannot read as the run does: "
        f"at row {row:,} it would go astray.",
        "Write the rows into one JSONL file in UTF-8, each with the same columns and fields, and train on that.",
    )


def _files(config: RunConfig, part: DatasetPart) -> tuple[FileKind, tuple[str, ...]]:
    source = config.dataset.source.strip()
    if part.source.form.kind == "hub":
        return "hub", ()
    if source.startswith(SAMPLE_PREFIX):
        return "json_lines", (str(SAMPLES_FOLDER / f"{source.removeprefix(SAMPLE_PREFIX)}.jsonl"),)
    path = ANY_FILE.resolve(source)
    files = [path]
    if path.is_dir():
        files = data_files(path, config.dataset.split)
    kinds = {_SCRIPT_KINDS.get(open_file(file).form.kind) for file in files}
    # An array is read as a whole by the script, and here to prove that.
    is_too_large = "json_array" in kinds and (part.source.size_bytes or 0) > _MOST_ARRAY_BYTES
    if len(kinds) != 1 or None in kinds or is_too_large:
        raise DatasetError(
            f"{part.source.name} holds {part.source.kind}, which a short script cannot read.",
            "Write the rows into one JSONL file and train on that.",
        )
    kind = kinds.pop()
    assert kind is not None
    return kind, tuple(str(file) for file in files)
