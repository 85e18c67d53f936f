"""Generate scripts from real functions: evaluate what depends only on the facts, and drop what is then unused.

The functions are read as source, without importing them, which would load torch into the page. `settle` evaluates them.
"""

import ast
import re
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from engine.export.script.facts import ScriptFacts
from engine.export.script.settle import dedent, settle

_FOR_TOOLS = re.compile(r"[ \t]*# (?:type: ignore|noqa|fmt:).*$", re.MULTILINE)
_ENGINE = Path(__file__).parents[2]


# By the name that it binds: the module, and what is taken from it or "".
_Imports = dict[str, tuple[str, str]]


def assemble(modules: Sequence[str], roots: Sequence[str], facts: ScriptFacts, *, plain: bool = False) -> str:
    """Return the source of some functions with everything that they need: imports, constants and other functions.

    Args:
        modules: Modules of the functions, in output order; of two functions with one name, the later one is used.
        roots: Functions to include.
        facts: Replaces the example that the functions use.
        plain: Write as tutorials do: the body of `main` at the top level, no annotations, and arguments side by side.
    """
    constants, functions, imports = _read(tuple(modules))
    definitions = constants | functions
    sources: dict[str, str] = {}
    names: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in sources or name not in definitions:
            continue
        sources[name] = settle(definitions[name], facts, plain=plain)
        used_names = _names_used(sources[name])
        names |= used_names
        waiting += used_names
    used_imports = {name: one for name, one in imports.items() if name in names}
    head = "".join(sources[name] for name in constants if name in sources)
    body = [sources[name] for name in functions if name in sources]
    if plain:
        body[-1] = _body_of(body[-1])
    return "\n\n".join([f"{_import_lines(used_imports)}\n{head}", *body])


@lru_cache(maxsize=512)
def _names_used(source: str) -> frozenset[str]:
    """Return the names that a definition uses from outside."""
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return frozenset(node.id for node in nodes if isinstance(node, ast.Name)) - own


@cache
def _read(modules: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str], _Imports]:
    """Return the sources of constants, and of functions and classes, by their names; and what the modules import."""
    constants: dict[str, str] = {}
    functions: dict[str, str] = {}
    imports: _Imports = {}
    for module in modules:
        source = (_ENGINE / f"{module.removeprefix('engine.').replace('.', '/')}.py").read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import):
                imports |= {
                    alias.asname or alias.name.partition(".")[0]: (ast.unparse(alias), "") for alias in node.names
                }
            elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("engine."):
                imports |= {alias.asname or alias.name: (str(node.module), ast.unparse(alias)) for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign):
                first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
                text = _FOR_TOOLS.sub("", "".join(lines[first - 1 : node.end_lineno]))
                if isinstance(node, ast.Assign):
                    constants[ast.unparse(node.targets[0])] = text
                    functions.pop(ast.unparse(node.targets[0]), None)
                else:
                    functions[node.name] = text
    return constants, functions, imports


def _import_lines(used_imports: _Imports) -> str:
    lines: dict[bool, list[str]] = {True: [], False: []}
    for module in sorted({module for module, name in used_imports.values() if not name}):
        lines[module.partition(".")[0] in sys.stdlib_module_names].append(f"import {module}\n")
    for module in sorted({module for module, name in used_imports.values() if name}):
        names = ", ".join(sorted({name for other, name in used_imports.values() if name and other == module}))
        lines[module.partition(".")[0] in sys.stdlib_module_names].append(f"from {module} import {names}\n")
    return "\n".join("".join(group) for group in (lines[True], lines[False]) if group)


def _body_of(function: str) -> str:
    """Return the statements of a function without parameters, dedented to the top level."""
    first = ast.parse(function).body[0]
    assert isinstance(first, ast.FunctionDef)
    lines = function.encode().splitlines(keepends=True)
    return dedent(lines[first.body[0].end_lineno or 0 :]).decode()  # the first statement is its docstring
