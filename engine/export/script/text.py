"""What stands in a script that people read: values, and the imports of what is used."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.config.methods.base import Source
from engine.config.methods.registry import METHODS

_PLAIN_IMPORTS = (
    "argparse",
    "bisect",
    "contextlib",
    "csv",
    "datetime",
    "functools",
    "gzip",
    "hashlib",
    "itertools",
    "json",
    "math",
    "random",
    "re",
)
_PEFT_CLASSES = sorted(method.peft_class for method in METHODS.values() if method.peft_class)
# Module, names; a line is written for those that the script uses.
_NAMED_IMPORTS = (("pathlib", ("Path",)),)
_THIRD_IMPORTS = (
    ("datasets", ("Dataset", "load_dataset")),
    ("peft", (*_PEFT_CLASSES, "get_peft_model", "set_peft_model_state_dict")),
    ("pyarrow.parquet", ("ParquetFile",)),
    ("safetensors.torch", ("load_file",)),
    ("torch.nn.functional", ("cross_entropy",)),
    ("torch.utils.data", ("DataLoader", "IterableDataset")),
    (
        "transformers",
        ("AutoModelForCausalLM", "AutoTokenizer", "BitsAndBytesConfig", "EarlyStoppingCallback", "TrainerCallback"),
    ),
    ("trl", ("SFTConfig", "SFTTrainer")),
)


def literal(value: str | Sequence[str] | Mapping[str, str]) -> str:
    """A text, or a list or dictionary of texts, as Python source in double quotes."""
    if isinstance(value, str):
        # JSON's escapes are Python's as well, but for half characters, which no UTF-8 file can hold.
        text = json.dumps(value, ensure_ascii=False)
        return text if text.isprintable() else json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(literal(one) for one in value) + "]"


def argument(value: Any) -> str:
    """Return a setting as Python source."""
    if isinstance(value, Source):
        return value
    return literal(value) if isinstance(value, str | tuple) else repr(value)


def imports_of(body: str) -> str:
    """The import lines of all modules that a piece of a script uses."""
    plain = [f"import {name}" for name in _PLAIN_IMPORTS if _uses_module(body, name)]
    third = [f"import {name}" for name in ("numpy as np", "torch") if _uses_module(body, name.split()[-1])]
    parts = [[*plain, *_named(body, _NAMED_IMPORTS)], [*third, *_named(body, _THIRD_IMPORTS)]]
    return "\n".join("".join(f"{line}\n" for line in part) for part in parts if part)


def _uses_module(body: str, name: str) -> bool:
    return re.search(rf"(?<![\w./\\\"]){name}\.", body) is not None


def _named(body: str, imports: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = []
    for module, names in imports:
        needed = [name for name in names if re.search(rf"(?<![\w.\"]){name}\b", body)]
        if needed:
            lines.append(f"from {module} import {', '.join(needed)}")
    return lines
