"""Values as they stand in a script that people read."""

import json
from collections.abc import Mapping, Sequence


def literal(value: str | Sequence[str] | Mapping[str, str]) -> str:
    """A text, or a list or dictionary of texts, as Python source in double quotes."""
    if isinstance(value, str):
        # JSON's escapes are Python's as well, but for half characters, which no UTF-8 file can hold.
        text = json.dumps(value, ensure_ascii=False)
        return text if text.isprintable() else json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(literal(one) for one in value) + "]"
