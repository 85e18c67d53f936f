"""Which architectures the installed transformers knows, read from its source text without importing it."""

import ast
import contextlib
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path


def is_known_model_type(model_type: str) -> bool:
    """Return whether transformers has this `model_type` built in; True also where that cannot be found out.

    This is a courtesy that refuses early; the process that loads a model has the last word.
    """
    types = _table("CONFIG_MAPPING_NAMES")
    return not types or model_type in types


def is_causal_lm(model_type: str) -> bool:
    """Return whether transformers can build a causal language model of this `model_type`; True where that cannot be found out."""
    types = _table("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")
    return not types or model_type in types


@functools.cache
def _table(name: str) -> frozenset[str]:
    # Importing transformers pulls in torch, which the light rooms must not; finding it does not import it.
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "models" / "auto"
    keys: set[str] = set()
    for file in ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py"):
        with contextlib.suppress(FileNotFoundError):
            source = (folder / file).read_text(encoding="utf-8")
            lines = source.splitlines()
            for statement in ast.parse(source).body:
                # The table is assigned, or its update method is called.
                if re.match(rf"{name}\b", lines[statement.lineno - 1]):
                    keys.update(_keys_in(statement))
    return frozenset(keys)


def _keys_in(statement: ast.stmt) -> Iterator[str]:
    """Yield the string keys of `OrderedDict([("key", …), …])` and of `{"key": …}`, in whatever nesting."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
            yield str(node.elts[0].value)
        elif isinstance(node, ast.Dict):
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))
