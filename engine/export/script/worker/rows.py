"""The part of a script that reads the rows, turns them into chat messages and holds some of them out."""

import csv
import gzip
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from pyarrow.parquet import ParquetFile

from engine.data.passes.split import draw_held_out
from engine.export.script.facts import facts

Message = dict[str, Any]

DATA = facts.data_location
SEED = facts.config.training.seed
EVAL_FRACTION = facts.config.dataset.eval_fraction  # of the rows are held out
ROWS = facts.data.fingerprint  # sha256 of the content of all rows
LEFT_OUT = facts.data.left_out  # numbers of rows, from 0, that cannot be read or train nothing
ROLES = facts.data.roles
RUN_ROWS = facts.run_rows.fingerprint  # sha256 of the rows that the run used
RUN_SEQUENCES = facts.run_rows.sequences  # the run's, to train on and held out
RUN_TOKENS = facts.run_rows.tokens  # of the former, trained and masked


def read_rows(where: Any) -> Iterator[Any]:
    """Yield the rows in order."""
    if facts.data.kind == "hub":
        found = load_dataset(where, **facts.hub_arguments)
        if facts.data.has_media:
            found = found.select_columns(facts.data.read_columns)  # pictures and sound stay unread
        yield from found
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
        # A block of reasoning at its start is kept apart, for the chat template to place.
        opened = text.lstrip()
        if opened.startswith("<think>") and "</think>" in opened:
            reasoning, _, rest = opened.removeprefix("<think>").partition("</think>")
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
            for asked, answered in reversed(as_list(row.get(facts.data.columns["history"]))):
                messages = [{"role": "user", "content": asked}, answer(answered), *messages]
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
    if facts.data.has_system and "system" in facts.data.columns:
        system = row.get(facts.data.columns["system"]) or ""
        if system.strip() and messages[0]["role"] == "system":
            messages[0] = {"role": "system", "content": f"{system}\n\n{messages[0]['content']}"}
        elif system.strip():
            messages.insert(0, {"role": "system", "content": system})
    return messages


def digest(row: Any) -> int:
    """Return 64 bits that are equal for rows of equal content."""
    if not facts.data.has_turns:
        content = row
    else:
        content = "\x1e".join(f"{message['role']}\x1f{message['content']}" for message in row)
    if facts.data.has_reasoning and any(message.get("reasoning") for message in row):
        turns = [
            {
                "role": message["role"],
                "content": message["content"],
                "reasoning": message.get("reasoning") or None,
                "tool_calls": [],
                "name": None,
                "tool_call_id": None,
            }
            for message in row
        ]
        start = None
        if facts.data.marks_completion:
            start = sum("completion" not in message for message in row)
        elif "prompt" in facts.data.columns:
            start = len(row) - 1
        whole = {"messages": turns, "tools": [], "completion_start": start}
        content = json.dumps(whole, ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big")


def fingerprint(rows: Iterable[Any]) -> str:
    """Return the sha256 of the content of all rows, in order."""
    return hashlib.sha256(b"".join(digest(row).to_bytes(8, "little") for row in rows)).hexdigest()


def load_rows(where: Any) -> list[Any]:
    """Return what the rows hold, in order; stop where DATA is not what this script was written for."""
    if facts.data.left_out and where != DATA:
        LEFT_OUT.clear()  # they number rows of DATA
    try:
        values = read_rows(where)
        if facts.data.left_out:
            values = (value for number, value in enumerate(values) if number not in LEFT_OUT)
        if not facts.data.has_turns:
            rows = [value[facts.data.columns["text"]] for value in values]
        else:
            rows = [conversation(value) for value in values]
        found = fingerprint(rows)
    except Exception as error:  # a column is missing, a line is cut off …
        raise SystemExit(
            f"The rows of {where} cannot be read ({type(error).__name__}: {error}). "
            "They must have the form of those that this script was written for."
        ) from error
    if found != ROWS and where == DATA:
        raise SystemExit(
            f"The {len(rows):,} rows of {where} are not those that this script was written for. "
            "Put them back as they were, or name other rows with --data."
        )
    if found != ROWS:
        print(f"The {len(rows):,} rows of {where} differ from those that this script was written for.")
    return rows


def held_out(rows: list[Any]) -> Any:
    """Return for each row whether it is held out."""
    found = draw_held_out(np.array([digest(row) for row in rows], dtype=np.uint64), EVAL_FRACTION, SEED)
    if not found.any():
        raise SystemExit(
            "All remaining rows have the same content, so none can be held out. "
            "Write this script again with other rows or with eval_fraction 0."
        )
    return found


def require_rows_of_run(kept: list[Any], train: list[Any], evaluation: list[Any]) -> None:
    """Stop unless the rows became what they became in the run."""
    trained = sum(label != -100 for row in train for label in row["labels"])
    tokens = (trained, sum(len(row["labels"]) for row in train) - trained)
    sequences = (len(train), len(evaluation))
    if (sequences, tokens) != (RUN_SEQUENCES, RUN_TOKENS) or (
        facts.run_rows.fingerprint is not None and fingerprint(row for row, _ in kept) != RUN_ROWS
    ):
        raise SystemExit(
            f"The rows became {sequences} sequences of {tokens} tokens; in the run they were {RUN_SEQUENCES} of {RUN_TOKENS}. "
            "Use the data of the run and the versions that are named at the head of this file."
        )
