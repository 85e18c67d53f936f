"""Lists of turns, whether a file holds them as JSON or as text that is JSON."""

import json
import re
from collections.abc import Mapping
from typing import Any

# A turn names its speaker and what is said; so it is told from other objects.
_FIELDS = (("role", ("content", "tool_calls", "function_call")), ("from", ("value",)))

_BEGINS_LIKE_TURNS = re.compile(r"\s*\[\s*\{")

_SPEAKER = re.compile(r"""['"](?:role|from)['"]\s*:""")

_LOOKED_AT_CHARACTERS = 2000


def begins_like_turns(value: Any) -> bool:
    """Whether a value is text that begins as a list of objects does in JSON, and in what Python prints."""
    return isinstance(value, str) and _BEGINS_LIKE_TURNS.match(value) is not None


def looks_like_turns(value: Any) -> bool:
    """Whether such text also names who speaks, near its beginning."""
    return begins_like_turns(value) and _SPEAKER.search(value[:_LOOKED_AT_CHARACTERS]) is not None


def turn_list(value: Any) -> list[Any] | None:
    """The list of objects that a value is, or that its text says as JSON; None where it is neither."""
    if begins_like_turns(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) and value and isinstance(value[0], Mapping) else None


def is_turn(value: Any) -> bool:
    """Whether a value has the usual fields of a turn."""
    return isinstance(value, Mapping) and any(
        isinstance(value.get(role), str) and any(name in value for name in said) for role, said in _FIELDS
    )


def conversation_column(turns: Any) -> str | None:
    """What to call the column of a row that is nothing but a list of turns; None where it is no such list."""
    if not isinstance(turns, list) or not turns or not all(is_turn(turn) for turn in turns):
        return None
    return "messages" if "role" in turns[0] else "conversations"
