"""Lists of turns, as objects or JSON text: detecting and reading them."""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from loratory.engine.config.run import TurnRole
from loratory.engine.data.conversation import IMAGE_MARK, ImageRef, Message, Role, ToolCall
from loratory.engine.data.formats.images import Load, image_of_part, is_image_part
from loratory.engine.data.media.row_images import require_few
from loratory.engine.data.records import RowProblemError, describe_kind, one_line

_TAGS: dict[Role, str] = {
    "user": "human user prompter",
    "assistant": "gpt assistant chatgpt bing bard model function_call",
    "system": "system developer",
    "tool": "observation tool function ipython",
}
ROLES: Mapping[str, TurnRole] = {tag: role for role, tags in _TAGS.items() for tag in tags.split()}

# Roles by which rows that are single turns are recognized.
_SPEAKERS = frozenset({"user", "assistant", "system", "human", "gpt", "tool"})

# Of one row. The longest conversations in use have some hundred; each turn takes time of its own.
MAX_TURNS = 5000
MAX_CALLS = 1000  # of one turn

# A turn has a role and content, which other objects do not.
_FIELDS = (("role", ("content", "tool_calls", "function_call")), ("from", ("value",)))
_BEGINS_LIKE_TURNS = re.compile(r"\s*\[\s*\{")
_SPEAKER = re.compile(r"""['"](?:role|from)['"]\s*:""")
_SCANNED_CHARACTERS = 2000


class TurnFields(NamedTuple):
    """The names that the fields of a turn may have, and what is read as which role."""

    role: tuple[str, ...] = ("from", "role")
    content: tuple[str, ...] = ("value", "content")
    role_map: Mapping[str, TurnRole] = {}  # of a configuration
    load_image: Load | None = None

    def role_of(self, tag: Any) -> TurnRole | None:
        """Return the role that a turn's own name of it means; None for an unknown one."""
        name = tag.strip().lower() if isinstance(tag, str) else ""
        return self.role_map.get(name, ROLES.get(name))

    def read(self, turn: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return a turn's own name of its role, and its content; None for what is missing."""
        return tuple(next((turn[name] for name in names if name in turn), None) for names in self[:2])

    def unknown_roles(self, cells: Iterable[Any]) -> dict[str, str]:
        """Return the unknown roles in lists of turns, each with how its first turn begins."""
        samples: dict[str, str] = {}
        for turn in chain.from_iterable(turn_list(cell) or () for cell in cells):
            tag, content = self.read(turn) if isinstance(turn, Mapping) else (None, None)
            if isinstance(tag, str) and self.role_of(tag) is None and one_line(tag, 60) == tag.strip():
                samples.setdefault(tag.strip().lower(), one_line(str(content), 120))
        return samples


def begins_like_turns(value: Any) -> bool:
    """Return whether a value is text that begins as a list of objects does in JSON, and in what Python prints."""
    return isinstance(value, str) and _BEGINS_LIKE_TURNS.match(value) is not None


def is_turn_text(value: Any) -> bool:
    """Return whether such text also names who speaks, near its beginning."""
    return begins_like_turns(value) and _SPEAKER.search(value[:_SCANNED_CHARACTERS]) is not None


def turn_list(value: Any) -> list[Any] | None:
    """Return the list of objects that a value is, also as JSON text; None where it is neither."""
    if begins_like_turns(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) and value and isinstance(value[0], Mapping) else None


def is_turn(value: Any) -> bool:
    """Return whether a value has the usual fields of a turn."""
    return isinstance(value, Mapping) and any(
        isinstance(value.get(role), str) and any(name in value for name in contents) for role, contents in _FIELDS
    )


def conversation_column(turns: Any) -> str | None:
    """Return the name of the column for a row that is a bare list of turns; None where it is not one."""
    if not isinstance(turns, list) or not turns or not all(is_turn(turn) for turn in turns):
        return None
    return "messages" if "role" in turns[0] else "conversations"


def are_single_turns(names: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether each row is a single turn of a conversation."""
    speaker = names.get("role") or names.get("from")
    has_content = "content" in names or "value" in names
    roles = [row.get(speaker) for row in rows] if speaker is not None and has_content else []
    return bool(roles) and all(isinstance(role, str) and role.strip().lower() in _SPEAKERS for role in roles)


def list_of_turns(turns: Any, column: str, fields: TurnFields) -> list[Message]:
    """Return the turns that a cell holds, as a list or as JSON text.

    Raises:
        RowProblemError: If it does not hold a list of turns.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = _parse_json(turns, f"{column} is text, and not the JSON list of turns that it looks like")
    if not isinstance(turns, list):
        raise RowProblemError("not_text", f"{column} is {describe_kind(turns)}, not a list of turns")
    if not turns:
        raise RowProblemError("empty", f"{column} is an empty list")
    check_turn_count(turns, column)
    messages: list[Message] = []
    for number, turn in enumerate(turns, start=1):
        if (message := _turn(turn, number, fields)) is None:
            continue
        last = messages[-1] if messages else None
        is_call_alone = last is not None and message.tool_calls and last.role == "assistant" and not message.content
        if last is not None and is_call_alone and last.is_trained == message.is_trained:
            # Text and the call that follows it are one turn of the assistant.
            messages[-1] = replace(last, tool_calls=(*last.tool_calls, *message.tool_calls))
        else:
            messages.append(message)
    if not messages:
        raise RowProblemError("empty", f"all turns of {column} are left out")
    return messages


def _turn(turn: Any, number: int, fields: TurnFields) -> Message | None:
    """Return a turn; None where its role is left out."""
    if not isinstance(turn, Mapping):
        raise RowProblemError(
            "not_an_object", f"turn {number} is {describe_kind(turn)}, not an object with role and content"
        )
    tag, content = fields.read(turn)
    if tag is None:
        raise RowProblemError("unknown_role", f"turn {number} has no role")
    role = fields.role_of(tag)
    if role is None:
        raise RowProblemError("unknown_role", f"turn {number} has the unknown role {one_line(str(tag), 30)!r}")
    if not role:
        return None
    if tag.strip().lower() == "function_call" and role == "assistant":
        is_trained = _is_trained_turn(turn, number)
        return Message("assistant", tool_calls=_sharegpt_calls(content, number), is_trained=is_trained)
    calls = _openai_calls(turn, number) if role == "assistant" else ()
    if content is None and not (calls or turn.get("reasoning_content")):
        raise RowProblemError("not_text", f"turn {number} has no content")
    text, images = ("", ()) if content is None else _content(content, number, role, fields.load_image)
    if role == "assistant":
        return _assistant_turn(turn, number, text, calls, images)
    if role == "tool":
        name, call_id = (_optional_text(turn.get(field)) for field in ("name", "tool_call_id"))
        return Message(role, text, name=name, tool_call_id=call_id, images=images)
    return Message(role, text, images=images)


def _assistant_turn(
    turn: Mapping[str, Any], number: int, text: str, calls: tuple[ToolCall, ...], images: tuple[ImageRef, ...]
) -> Message:
    message = answer(text)
    fields = (turn.get(name) for name in ("reasoning_content", "thinking", "reasoning"))
    reasoning = message.reasoning or next((field for field in fields if isinstance(field, str)), None) or None
    # Not `replace`, which takes as long as all else of a turn.
    return Message(
        "assistant", message.content, reasoning, calls, is_trained=_is_trained_turn(turn, number), images=images,
        has_empty_block=message.has_empty_block,
    )  # fmt: skip


def check_turn_count(turns: Sequence[Any], column: str) -> None:
    if len(turns) > MAX_TURNS:
        raise RowProblemError("too_long", f"{column} has {len(turns):,} turns; {MAX_TURNS:,} is the most")


def is_turns(value: Any) -> bool:
    """Return whether a prompt or completion is a list of turns, or JSON text of one."""
    if isinstance(value, str):
        return is_turn_text(value) and conversation_column(turn_list(value)) is not None
    return isinstance(value, list)


def _is_trained_turn(turn: Mapping[str, Any], number: int) -> bool:
    """Return whether `weight` marks an assistant's turn as trained: 1 is trained, 0 is context only.

    Source: OpenAI's guide to fine-tuning, "Multi-turn chat examples"; Mistral's has the same.
    """
    weight = turn.get("weight")
    if not isinstance(weight, int | float) or math.isnan(weight):  # a column that most rows leave empty
        return True
    if weight not in (0, 1):
        raise RowProblemError("weight", f"turn {number} has the weight {weight:g}; 1 is trained, and 0 is context only")
    return bool(weight)


def answer(text: str) -> Message:
    """Return an assistant turn; a reasoning block that opens it becomes its reasoning."""
    stripped = text.lstrip()
    if stripped.startswith("<think>") and "</think>" in stripped:
        reasoning, _, rest = stripped.removeprefix("<think>").partition("</think>")
        reasoning = reasoning.strip()
        return Message("assistant", rest.lstrip("\n"), reasoning=reasoning or None, has_empty_block=not reasoning)
    return Message("assistant", text)


def _content(content: Any, number: int, role: Role, load_image: Load | None) -> tuple[str, tuple[ImageRef, ...]]:
    """Return the text of a turn, with a mark for each of its images."""
    if isinstance(content, str):
        return content, ()
    if isinstance(content, list):
        require_few(sum(map(is_image_part, content)))
        parts: list[str] = []
        images: list[ImageRef] = []
        for part in content:
            if is_image_part(part):
                parts.append(IMAGE_MARK)
                images.append(image_of_part(part, load_image))
            elif isinstance(part, str):
                parts.append(part.replace(IMAGE_MARK, ""))
            elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
                parts.append(part["text"].replace(IMAGE_MARK, ""))
            else:
                kind = part.get("type") if isinstance(part, Mapping) else describe_kind(part)
                raise RowProblemError(
                    "not_text", f"turn {number} holds a part of type {one_line(str(kind), 30)}, not text or an image"
                )
        return "".join(parts), tuple(images)
    if role == "tool" and isinstance(content, Mapping):
        return json.dumps(content, ensure_ascii=False), ()
    raise RowProblemError("not_text", f"the content of turn {number} is {describe_kind(content)}, not text")


def _sharegpt_calls(content: Any, number: int) -> tuple[ToolCall, ...]:
    """Return the calls of a function_call turn: an object or a list of them, usually as JSON text."""
    reason = f"the function call in turn {number} is not a JSON object with a name"
    parsed = _parse_json(content, reason) if isinstance(content, str) else content
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls:
        raise RowProblemError("tools", reason)
    return _calls(calls, number, reason)


def _openai_calls(turn: Mapping[str, Any], number: int) -> tuple[ToolCall, ...]:
    calls = turn.get("tool_calls")
    if calls is None and isinstance(turn.get("function_call"), Mapping):
        calls = [turn["function_call"]]
    if calls and not isinstance(calls, list):
        raise RowProblemError("tools", f"tool_calls of turn {number} is {describe_kind(calls)}, not a list")
    return _calls(calls or (), number, f"a tool call in turn {number} has no function name")


def _calls(calls: Sequence[Any], number: int, reason: str) -> tuple[ToolCall, ...]:
    if len(calls) > MAX_CALLS:
        raise RowProblemError("too_long", f"turn {number} makes {len(calls):,} calls; {MAX_CALLS:,} is the most")
    return tuple(_call(call, reason) for call in calls)


def _call(call: Any, reason: str) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RowProblemError("tools", reason)
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError, RecursionError):  # else kept as the text that it is
            arguments = json.loads(arguments)
    return ToolCall(name, {} if arguments is None else arguments, _optional_text(call.get("id")))


def tool_schemas(tools: Any, column: str) -> tuple[Any, ...]:
    if isinstance(tools, str):
        if not tools.strip():
            return ()
        tools = _parse_json(tools, f"{column} is not valid JSON")
    if tools is None:
        return ()
    tool_list = tools if isinstance(tools, list) else [tools]
    parsed = [_parse_json(tool, f"{column} is not valid JSON") if isinstance(tool, str) else tool for tool in tool_list]
    if not all(isinstance(tool, Mapping) for tool in parsed):
        raise RowProblemError("tools", f"{column} is not a list of objects")
    return tuple(parsed)


def _parse_json(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowProblemError("tools", f"{reason}: {one_line(text, 30)!r}") from error


def _optional_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
