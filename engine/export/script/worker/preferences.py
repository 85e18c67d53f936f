"""The part of a script that reads preferences and turns them into token ids, as `engine.data` does."""

import json
import re
from typing import Any

from engine.data.formats.preferences import shared_words
from engine.export.script.facts import facts
from engine.export.script.worker.encoding import RefusedRowError, encode_row
from engine.export.script.worker.rows import (
    Message,
    answer,
    content_fields,
    digest_of,
    text_of_turns,
    turns_of,
    with_system,
)


def turns_in(value: Any, role: str) -> list[Message]:
    """Return a cell as chat messages: a text becomes one turn of that role."""
    if facts.data.has_json_columns and isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if not facts.data.turn_columns or isinstance(value, str):
        return [answer(value) if role == "assistant" else {"role": role, "content": value}]
    return turns_of(value if isinstance(value, list) else [value])


def dialogue(text: str) -> list[Message]:
    """Return a text with Human: and Assistant: before its turns as chat messages."""
    pieces = re.split(r"\n\n(Human|Assistant):", text)
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    return [
        answer(words.strip()) if name == "Assistant" else {"role": "user", "content": words.strip()}
        for name, words in turns
    ]


def preference(row: Any) -> dict[str, Any]:
    """Return a row as a prompt with the answers to it, as chat messages."""
    prompt: list[Message] = []
    if facts.data.is_rated:
        if "prompt" in facts.data.columns:  # noqa: SIM102 - settled where the script is written
            if row[facts.data.columns["prompt"]] is not None:
                prompt = turns_in(row[facts.data.columns["prompt"]], "user")
        completion = turns_in(row[facts.data.columns["completion"]], "assistant")
        messages = with_system([*prompt, *completion], row)
        last_question = max(place for place, message in enumerate(messages) if message["role"] == "user")
        start = max(last_question + 1, len(messages) - len(completion))
        label = str(row[facts.data.columns["label"]]).strip().lower() in ("true", "1")
        return {"prompt": messages[:start], "answers": [messages[start:]], "desirable": label}
    chosen, rejected = row[facts.data.columns["chosen"]], row[facts.data.columns["rejected"]]
    if "conversations" in facts.data.columns:
        prompt = turns_in(row[facts.data.columns["conversations"]], "user")
    elif "instruction" in facts.data.columns and "input" in facts.data.columns:
        parts = (row[facts.data.columns["instruction"]], row.get(facts.data.columns["input"]) or "")
        prompt = [{"role": "user", "content": "\n\n".join(part for part in parts if part.strip())}]
    elif "instruction" in facts.data.columns:
        prompt = [{"role": "user", "content": row[facts.data.columns["instruction"]]}]
    elif "prompt" in facts.data.columns and not facts.data.holds_whole_conversations:
        if row[facts.data.columns["prompt"]] is not None:
            prompt = turns_in(row[facts.data.columns["prompt"]], "user")
    elif not facts.data.turn_columns and not facts.data.has_dialogues:
        length = shared_words(chosen, rejected)
        prompt = [{"role": "user", "content": chosen[:length].strip()}]
        chosen, rejected = chosen[length:].strip(), rejected[length:].strip()
    if facts.data.has_dialogues:
        sides = [dialogue(chosen), dialogue(rejected)]
    else:
        sides = [turns_in(chosen, "assistant"), turns_in(rejected, "assistant")]
    if facts.data.turn_columns or facts.data.has_dialogues:
        if prompt and all(side[: len(prompt)] == prompt for side in sides):
            prompt = []  # both answers repeat it
        while sides[0] and sides[1] and sides[0][0] == sides[1][0]:  # shared first turns belong to the prompt
            prompt.append(sides[0].pop(0))
            sides[1].pop(0)
    return {"prompt": with_system(prompt, row), "answers": sides}


def preference_digest(row: dict[str, Any]) -> int:
    """Return 64 bits that are equal for rows of equal content."""
    whole = {
        "messages": content_fields([*row["prompt"], *row["answers"][0]]),
        "tools": [],
        "completion_start": len(row["prompt"]),
    }
    if facts.data.is_rated:
        whole["desirable"] = row["desirable"]
    else:
        whole["rejected"] = content_fields(row["answers"][1])
    return digest_of(json.dumps(whole, ensure_ascii=False, sort_keys=True))


def prompt_digest(row: dict[str, Any]) -> int:
    """Return the same of the prompt alone; rows that share a prompt are all held out, or none of them."""
    prompt = row["prompt"]
    if facts.data.has_reasoning and any(message.get("reasoning") for message in prompt):
        whole = {"messages": content_fields(prompt), "tools": [], "completion_start": None}
        return digest_of(json.dumps(whole, ensure_ascii=False, sort_keys=True))
    return digest_of(text_of_turns(prompt))


def encode_preference(row: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    """Return the token ids of the answers after their prompt, and labels that are -100 for masked tokens."""
    answers = []
    for turns in row["answers"]:
        messages = [*row["prompt"], *({**turn, "completion": True} for turn in turns)]
        sequences = encode_row(messages, tokenizer)
        answers.append([one for one in sequences if any(label != -100 for label in one["labels"])])
    if facts.data.is_rated:
        return [{**one, "desirable": row["desirable"]} for one in answers[0]]
    if any(len(sequences) > 1 for sequences in answers):
        raise RefusedRowError("the template rewrites turns of an answer, which must be one sequence")
    if not all(answers):
        return []
    (chosen,), (rejected,) = answers
    if chosen["input_ids"] == rejected["input_ids"]:
        return []  # nothing to learn
    return [{**chosen, "rejected_ids": rejected["input_ids"], "rejected_labels": rejected["labels"]}]
