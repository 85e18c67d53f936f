"""Which architectures the installed transformers knows, read from its source text without importing it."""

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

_CONFIG_TABLE = "CONFIG_MAPPING_NAMES"
_CAUSAL_LM_TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def is_known_model_type(model_type: str) -> bool:
    """Return whether transformers has this `model_type` built in; True also where that cannot be found out.

    This is a courtesy that refuses early; the process that loads a model has the last word.
    """
    known = _table(_CONFIG_TABLE)
    return not known or model_type in known


def is_causal_lm(model_type: str) -> bool:
    """Return whether transformers can build a causal language model of this `model_type`; True where that cannot be found out."""
    known = _table(_CAUSAL_LM_TABLE)
    return not known or model_type in known


@functools.cache
def _table(name: str) -> frozenset[str]:
    """Keys of one of transformers' tables of architectures.

    Importing transformers pulls in torch, which the light rooms must not; finding it does not import it.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    folder = Path(spec.submodule_search_locations[0]) / "models" / "auto"
    keys: set[str] = set()
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py"):
            continue
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            keys.update(_keys_given_to(statement, name))
    return frozenset(keys)


def _keys_given_to(statement: ast.stmt, name: str) -> Iterator[str]:
    """Yield string keys of `name = OrderedDict([("key", …), …])`, of `name.update({...})`, in whatever nesting."""
    if isinstance(statement, ast.Assign):
        named = any(isinstance(target, ast.Name) and target.id == name for target in statement.targets)
        value: ast.expr = statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        named = isinstance(statement.target, ast.Name) and statement.target.id == name
        value = statement.value
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        named = (
            isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == name
        )
        value = statement.value
    else:
        return
    if not named:
        return
    for node in ast.walk(value):
        if isinstance(node, ast.Tuple) and len(node.elts) == 2 and isinstance(node.elts[0], ast.Constant):
            yield str(node.elts[0].value)
        elif isinstance(node, ast.Dict):
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))
