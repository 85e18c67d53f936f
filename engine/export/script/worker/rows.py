"""The part of a script that reads the rows and turns them into chat messages."""

import csv
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from datasets import load_dataset
from pyarrow.parquet import ParquetFile

from engine.export.script.facts import facts

Message = dict[str, Any]

LEFT_OUT = facts.data.left_out  # numbers of rows, from 0, that cannot be read or train nothing
ROLES = facts.data.roles


def read_rows(where: Any) -> Iterator[Any]:
    """Yield the rows in order."""
    if facts.data.kind == "hub":
        dataset = load_dataset(where, **facts.hub_arguments)
        if facts.data.has_media:
            dataset = dataset.select_columns(facts.data.read_columns)  # pictures and sound stay unread
        yield from dataset
    else:
        if facts.data.kind == "delimited":
            csv.field_size_limit(8 << 20)  # bytes of a cell; the module's own limit is 128 KiB
        if facts.data.kind == "json_lines" and facts.data.left_out:
            number = -1
        for path in where:
            if facts.data.kind == "parquet":
                for batch in ParquetFile(path).iter_batches():
                    yield from batch.to_pylist()
            else:
                with (
                    gzip.open(path, "rt", **facts.data.open_arguments)
                    if facts.data.gzip
                    else Path(path).open(**facts.data.open_arguments)
                ) as file:
                    if facts.data.kind == "json_array":
                        yield from json.load(file)
                    elif facts.data.kind == "lines":
                        yield from ({"text": line.rstrip("\r\n")} for line in file if line.strip())
                    elif facts.data.kind == "paragraphs":
                        for has_words, lines in itertools.groupby(file, key=lambda line: bool(line.strip())):
                            if has_words:
                                text = "".join(lines).removesuffix("\n").replace("\r\n", "\n").rstrip("\r")
                                yield {"text": text}
                    elif facts.data.kind == "delimited":
                        cells = csv.reader(file, delimiter=facts.data.delimiter)
                        rows = (row for row in cells if facts.data.delimiter.join(row).strip())
                        names = [name.strip() for name in next(rows)]
                        yield from (dict(zip(names, row, strict=False)) for row in rows)
                    elif facts.data.left_out:
                        for line in filter(str.strip, file):
                            number += 1
                            yield None if number in LEFT_OUT else json.loads(line)
                    else:
                        yield from (json.loads(line) for line in file if line.strip())


def as_list(value: Any) -> list[Any]:
    """Return a list that may be written as JSON in a text."""
    if facts.data.has_json_columns:
        value = json.loads(value) if isinstance(value, str) and value else value
    return value or []


def text_of(content: Any) -> str:
    """Return the text of a turn that may be a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part["text"] for part in content)


def answer(text: str) -> Message:
    """Return an assistant's turn."""
    if facts.data.has_reasoning:
        # A block of reasoning at its start is separated, for the chat template to place.
        stripped = text.lstrip()
        if stripped.startswith("<think>") and "</think>" in stripped:
            reasoning, _, rest = stripped.removeprefix("<think>").partition("</think>")
            return {"role": "assistant", "content": rest.lstrip("\n"), "reasoning": reasoning.strip()}
    return {"role": "assistant", "content": text}


def turns_of(turns: Iterable[Any]) -> list[Message]:
    """Return the turns of a row as chat messages."""
    messages = []
    for turn in turns:
        role = ROLES[turn[facts.data.role_field].strip().lower()]
        if facts.data.has_reasoning_fields:
            content = turn.get(facts.data.content_field) or ""
        else:
            content = turn[facts.data.content_field]
        if facts.data.has_parts:
            content = text_of(content)
        messages.append(answer(content) if role == "assistant" else {"role": role, "content": content})
        if facts.data.has_reasoning_fields:
            fields = (turn.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
            reasoning = next((field for field in fields if isinstance(field, str)), "")
            if role == "assistant" and reasoning and not messages[-1].get("reasoning"):
                messages[-1]["reasoning"] = reasoning
    return messages


def conversation(row: Any) -> list[Message]:
    """Return a row as chat messages."""
    if "instruction" in facts.data.columns:
        if "input" in facts.data.columns:
            parts = (row[facts.data.columns["instruction"]], row.get(facts.data.columns["input"]) or "")
            question = "\n\n".join(part for part in parts if part.strip())
        else:
            question = row[facts.data.columns["instruction"]]
        messages = [{"role": "user", "content": question}, answer(row[facts.data.columns["output"]])]
        if "history" in facts.data.columns:
            for earlier, reply in reversed(as_list(row.get(facts.data.columns["history"]))):
                messages = [{"role": "user", "content": earlier}, answer(reply), *messages]
    elif "prompt" in facts.data.columns:
        if facts.data.columns["prompt"] in facts.data.turn_columns:
            messages = turns_of(as_list(row[facts.data.columns["prompt"]]))
        else:
            messages = [{"role": "user", "content": row[facts.data.columns["prompt"]]}]
        if facts.data.columns["completion"] in facts.data.turn_columns:
            completion = turns_of(as_list(row[facts.data.columns["completion"]]))
        else:
            completion = [answer(row[facts.data.columns["completion"]])]
        if facts.data.marks_completion:
            completion = [{**message, "completion": True} for message in completion]
        messages += completion
    elif facts.data.has_list_rows:
        messages = turns_of(row if isinstance(row, list) else as_list(row[facts.data.conversation_column]))
    else:
        messages = turns_of(as_list(row[facts.data.conversation_column]))
    return with_system(messages, row)


def with_system(messages: list[Message], row: Any) -> list[Message]:
    """Return the messages with the row's system prompt first, if it is in a column of its own."""
    if facts.data.has_system and "system" in facts.data.columns:
        system = row.get(facts.data.columns["system"]) or ""
        if system.strip() and messages and messages[0]["role"] == "system":
            return [{"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}, *messages[1:]]
        if system.strip():
            return [{"role": "system", "content": system}, *messages]
    return messages


def text_of_turns(messages: list[Message]) -> str:
    """Return roles and contents of messages as one text."""
    return "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in messages)


def content_fields(messages: list[Message]) -> list[dict[str, Any]]:
    """Return messages with all fields that the run hashes as their content."""
    return [
        {
            "role": message["role"],
            "content": message["content"],
            "reasoning": message.get("reasoning") or None,
            "tool_calls": [],
            "name": None,
            "tool_call_id": None,
        }
        for message in messages
    ]


def digest_of(content: str) -> int:
    """Return 64 bits that are equal for equal texts."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def digest(row: Any) -> int:
    """Return 64 bits that are equal for rows of equal content."""
    content = text_of_turns(row) if facts.data.has_turns else row
    if facts.data.has_reasoning and any(message.get("reasoning") for message in row):
        start = None
        if facts.data.marks_completion:
            start = sum("completion" not in message for message in row)
        elif "prompt" in facts.data.columns:
            start = len(row) - 1
        whole = {"messages": content_fields(row), "tools": [], "completion_start": start}
        content = json.dumps(whole, ensure_ascii=False, sort_keys=True)
    return digest_of(content)
