"""Evaluate what depends only on the facts in the source of a function.

Only these are rewritten:

- `if facts.x:` is replaced by the branch that is taken, and so is `a if facts.x else b`
- in `facts.x and y` and `facts.x or y` the facts are removed
- any other expression of facts alone is replaced by its value
- `**` of such a value, or of a dictionary that is written there, is replaced by keyword arguments
- `getattr(module, "name")` is replaced by `module.name`
- statements after a `return` are removed
"""

import ast
import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

from engine.config.methods.base import Source
from engine.export.script.facts import ScriptFacts

_PLAIN_WIDTH = 100
_ENDS_HEADER = re.compile(rb":\s*(#.*)?$")


class _Edit(NamedTuple):
    """A range of bytes of a source, and its replacement."""

    start: int
    end: int
    text: str


def settle(source: str, facts: ScriptFacts, *, plain: bool = False) -> str:
    """Return a definition with everything evaluated that depends only on the facts."""
    if "facts" not in source and not plain:
        return source
    while edits := _edits(source, facts, plain=plain):
        text = source.encode()
        for edit in reversed(edits):
            text = text[: edit.start] + edit.text.encode() + text[edit.end :]
        source = text.decode()
    return re.sub(r"\n{3,}", "\n\n", source)


def literal(value: Any) -> str:
    """Return a value as Python source, with texts in double quotes.

    Raises:
        TypeError: If it is neither a plain value nor a collection of such.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, str):
        # JSON's escapes are valid in Python, except for surrogates, which UTF-8 cannot encode.
        text = json.dumps(value, ensure_ascii=False)
        return text if text.isprintable() else json.dumps(value)
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, set):
        return "{" + ", ".join(map(literal, sorted(value))) + "}" if value else "set()"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, tuple) and len(value) > 1:
        return "(" + ", ".join(map(literal, value)) + ")"
    raise TypeError(f"{type(value).__name__} has no literal.")


def _edits(source: str, facts: ScriptFacts, *, plain: bool) -> list[_Edit]:
    """Return the next edits: outer statements before inner ones, and statements before expressions."""
    source_tree = _parse(source)
    look = _Look(source, source_tree, facts, plain=plain)
    for find, children in (
        (look.at_if, source_tree.statements),
        (look.after_return, source_tree.statements),
        (look.at_expression, source_tree.unsettled),
    ):
        if edits := sorted(look.outermost(source_tree.tree, find, children)):
            return edits
    return []


class _Depends(IntEnum):
    """What the value of a node depends on."""

    NOTHING = 0
    FACTS = 1
    MORE = 2


class _SourceTree(NamedTuple):
    """A syntax tree, with the children and the dependency of each node.

    Attributes:
        statements: Children that are not expressions.
        unsettled: Children that hold anything that `_Look.at_expression` may settle.
    """

    tree: ast.AST
    statements: dict[ast.AST, list[ast.AST]]
    unsettled: dict[ast.AST, list[ast.AST]]
    depends: dict[ast.AST, _Depends]


@lru_cache(maxsize=256)  # most scripts settle the same functions in the same steps
def _parse(source: str) -> _SourceTree:
    statements: dict[ast.AST, list[ast.AST]] = {}
    unsettled: dict[ast.AST, list[ast.AST]] = {}
    may_be_settled: set[ast.AST] = set()
    depends: dict[ast.AST, _Depends] = {}

    def visit(node: ast.AST) -> _Depends:
        depends_on = _Depends.NOTHING
        if isinstance(node, ast.Name):
            depends_on = _Depends.FACTS if node.id == "facts" else _Depends.MORE
        elif isinstance(node, ast.Call):
            depends_on = _Depends.MORE
        children = list(ast.iter_child_nodes(node))
        for child in children:
            depends_on = max(depends_on, visit(child))
        statements[node] = [child for child in children if not isinstance(child, ast.expr)]
        unsettled[node] = [child for child in children if child in may_be_settled]
        depends[node] = depends_on
        if unsettled[node] or _is_of_interest(node):
            may_be_settled.add(node)
        return depends_on

    tree = ast.parse(source)
    visit(tree)
    return _SourceTree(tree, statements, unsettled, depends)


def _is_of_interest(node: ast.AST) -> bool:
    """Return whether `_Look.at_expression` may settle a node, or one around it, because of the node itself."""
    if isinstance(node, ast.Name):
        return node.id == "facts"
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool)
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.keyword) and node.arg is None)


class _Look:
    """Finds the edits of a source."""

    def __init__(self, source: str, source_tree: _SourceTree, facts: ScriptFacts, *, plain: bool) -> None:
        self._depends = source_tree.depends
        self._text = source.encode()
        self._plain = plain
        self._facts = facts
        self._lines = self._text.splitlines(keepends=True)
        self._starts = list(itertools.accumulate(map(len, self._lines), initial=0))

    def outermost(
        self, tree: ast.AST, find: Callable[[ast.AST], _Edit | None], children: Mapping[ast.AST, Sequence[ast.AST]]
    ) -> Iterator[_Edit]:
        """Yield the outermost edits that are found in a tree."""
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            if (edit := find(node)) is not None:
                yield edit
            else:
                waiting += children[node]

    def at_if(self, node: ast.AST) -> _Edit | None:
        if not isinstance(node, ast.If) or not self._is_settled(node.test):
            return None
        assert node.end_lineno is not None
        is_elif = self._lines[node.lineno - 1].lstrip().startswith(b"elif")
        header = next(
            line
            for line in range(node.test.end_lineno or 0, len(self._lines))
            if _ENDS_HEADER.search(self._lines[line - 1])
        )
        end = node.body[-1].end_lineno or 0
        if self._value(node.test):
            body = self._lines[header:end]
            text = b" " * node.col_offset + b"else:\n" + b"".join(body) if is_elif else dedent(body)
        elif not node.orelse:
            text = b""
        else:
            rest = next(
                line
                for line in range(end + 1, len(self._lines) + 1)
                if self._lines[line - 1].lstrip().startswith((b"elif", b"else"))
            )
            lines = self._lines[rest - 1 : node.end_lineno]
            if is_elif:
                text = b"".join(lines)
            elif lines[0].lstrip().startswith(b"elif"):
                text = b"".join(lines).replace(b"elif", b"if", 1)
            else:
                text = dedent(lines[1:])
        return _Edit(self._starts[node.lineno - 1], self._starts[node.end_lineno], text.decode())

    def after_return(self, node: ast.AST) -> _Edit | None:
        body = getattr(node, "body", None)
        for one in body[:-1] if isinstance(body, list) else ():
            if isinstance(one, ast.Return | ast.Raise):
                return _Edit(self._starts[one.end_lineno or 0], self._starts[body[-1].end_lineno or 0], "")  # type: ignore[index]
        return None

    def at_expression(self, node: ast.AST) -> _Edit | None:
        """Settle an expression, or drop annotations of plain code."""
        if isinstance(node, ast.IfExp) and self._is_settled(node.test):
            branch = node.body if self._value(node.test) else node.orelse
            return self._replace(node, self._source(branch), bare=not isinstance(branch, ast.IfExp | ast.BoolOp))
        if isinstance(node, ast.BoolOp) and not self._is_settled(node):
            operands = self._open_operands(node)
            joint = " and " if isinstance(node.op, ast.And) else " or "
            is_shorter = len(operands) < len(node.values)
            return self._replace(node, joint.join(operands), bare=len(operands) == 1) if is_shorter else None
        if isinstance(node, ast.keyword) and node.arg is None and (items := self._items(node.value)) is not None:
            return self._spread(node, items)
        if isinstance(node, ast.Call) and (attribute := self._attribute(node)) is not None:
            return self._replace(node, attribute)
        if isinstance(node, ast.FunctionDef) and self._plain and node.returns is not None:
            names = ", ".join(argument.arg for argument in node.args.args)
            return _Edit(self._span(node)[0], self._span(node.returns)[1], f"def {node.name}({names})")
        if isinstance(node, ast.expr) and not isinstance(node, ast.Constant) and self._is_settled(node):
            with contextlib.suppress(TypeError):  # a part of it is meant
                return self._replace(node, literal(self._value(node)), bare=False)
        return None

    def _open_operands(self, node: ast.BoolOp) -> list[str]:
        """Return the operands that remain; facts that decide the whole end them."""
        decides = isinstance(node.op, ast.Or)
        operands = []
        for number, value in enumerate(node.values):
            is_last = number == len(node.values) - 1
            if not self._is_settled(value):
                operands.append(self._source(value))
            elif bool(self._value(value)) is decides:
                return [*operands, literal(self._value(value)) if decides else "False"]
            elif is_last and not operands:
                operands.append(literal(self._value(value)))
        return operands

    def _items(self, node: ast.expr) -> list[tuple[str, str]] | None:
        """Return the items of a dictionary of facts, or of one that is written out."""
        if isinstance(node, ast.Dict) and not self._is_settled(node):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            return [(str(key), self._source(value)) for key, value in zip(keys, node.values, strict=True)]
        if not self._is_settled(node) or not isinstance(self._value(node), Mapping):
            return None
        return [(key, literal(value)) for key, value in self._value(node).items()]

    def _spread(self, node: ast.keyword, items: list[tuple[str, str]]) -> _Edit:
        """Replace `**` by keyword arguments, one a line where it has a line of its own."""
        start, end = self._span(node)
        arguments = [f"{name}={value}" for name, value in items]
        line = self._starts[node.lineno - 1]
        after = self._text[end:].partition(b"\n")[0]
        if self._text[line:start].strip() == b"" and after.strip() == b",":
            indent = self._text[line:start].decode()
            lines = _wrap(arguments, _PLAIN_WIDTH - len(indent)) if self._plain else arguments
            return _Edit(line, end + len(after) + 1, "".join(f"{indent}{one},\n" for one in lines))
        if not arguments and self._text[:start].rstrip().endswith(b","):
            start = len(self._text[:start].rstrip()) - 1
        return _Edit(start, end, ", ".join(arguments))

    def _attribute(self, node: ast.Call) -> str | None:
        if not isinstance(node.func, ast.Name) or node.func.id != "getattr" or len(node.args) != 2:
            return None
        name = node.args[1]
        return f"{self._source(node.args[0])}.{self._value(name)}" if self._is_settled(name) else None

    def _replace(self, node: ast.expr, text: str, *, bare: bool = True) -> _Edit:
        """Replace an expression, with its parentheses if the new one is plain."""
        start, end = self._span(node)
        before, after = self._text[:start].rstrip(), self._text[end:].lstrip()
        encloses = before.endswith(b"(") and after.startswith(b")") and not re.search(rb"[\w\])]\($", before)
        if bare and encloses:
            start, end = len(before) - 1, len(self._text) - len(after) + 1
        return _Edit(start, end, text)

    def _is_settled(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Constant):
            return isinstance(node.value, bool)
        return self._depends[node] is _Depends.FACTS

    def _value(self, node: ast.expr) -> Any:
        code = compile(ast.Expression(node), "facts", "eval")
        return eval(code, {"__builtins__": {}, "facts": self._facts})  # noqa: S307 - written in this package

    def _span(self, node: ast.expr | ast.keyword | ast.stmt) -> tuple[int, int]:
        end = self._starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
        return self._starts[node.lineno - 1] + node.col_offset, end

    def _source(self, node: ast.expr) -> str:
        start, end = self._span(node)
        return self._text[start:end].decode()


def _wrap(pieces: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + len(piece) + 2 <= width:
            lines[-1] += f", {piece}"
        else:
            lines.append(piece)
    return lines


def dedent(lines: Sequence[bytes]) -> bytes:
    """Return lines one level further to the left."""
    return b"".join(line.removeprefix(b"    ") for line in lines)
