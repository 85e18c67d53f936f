"""Answers JSON lines inside a sandbox. Runs on its own, with the standard library alone.

Tested code and its tests run in two sandboxes. Plain values cross between them, and other objects stay with the code behind a
number: so tested code cannot read its tests, replace what they compare with, or end them.
"""

import ast
import builtins
import functools
import itertools
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (list, tuple, set, frozenset, dict, bytes)}
_MOST_ITEMS = 100_000  # of an iterator
# What tests may do with an object. Comparisons and `in` are missing: an object that equals everything would pass each test.
_NAMES = "call getattr setattr len iter str repr getitem setitem delitem add sub mul truediv neg abs".split()
_OPERATIONS = {name: getattr(operator, name, None) or getattr(builtins, name) for name in _NAMES}


class Remote:
    """An object of the tested code, as its tests see it."""

    def __init__(self, request: Callable[..., Any], number: int) -> None:
        self.__dict__.update(request=request, number=number)

    def _operate(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["request"](name, (self, *args), kwargs)


for _name in _OPERATIONS:
    setattr(Remote, f"__{_name}__", functools.partialmethod(Remote._operate, _name))


def encode(value: Any, objects: list[Any] | None) -> Any:
    """Return a value as JSON; what is not plain goes to `objects`, and tests may not give it to tested code."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Remote):
        return {"object": vars(value)["number"]}
    value = list(itertools.islice(value, _MOST_ITEMS)) if isinstance(value, Iterator) else value
    for name, kind in _KINDS.items():
        if isinstance(value, kind):
            return {name: [encode(item, objects) for item in (value.items() if name == "dict" else value)]}
    if objects is None:
        raise TypeError(f"tests cannot pass a {type(value).__name__} to the code")
    objects.append(value)
    return {"object": len(objects) - 1}


def decode(value: Any, object_of: Callable[[int], Any]) -> Any:
    """Return what the other side encoded."""
    if not isinstance(value, dict):
        return value
    ((name, content),) = value.items()
    return object_of(content) if name == "object" else _KINDS[name](decode(item, object_of) for item in content)


def examine(names: dict[str, Any], tests: list[str], entry_point: str) -> list[Any]:
    """Run tests; return how many passed, how many there are and what failed.

    Assertions, functions called test_… and `check(candidate)` count.
    """
    namespace = {**names, "__name__": "tests"}
    nodes = [node for text in tests for node in ast.parse(text).body]
    functions = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    calls = [f"{name}()" for name in functions if name.startswith("test")]
    calls += [f"check({entry_point})"] if "check" in functions and entry_point.isidentifier() else []
    total, passed, reason = 0, 0, ""
    for node in [*nodes, *ast.parse("\n".join(calls)).body]:
        counts = isinstance(node, ast.Assert | ast.Expr | ast.For | ast.With | ast.Try)
        try:
            exec(compile(ast.Module([node], []), "tests", "exec"), namespace)  # noqa: S102
            passed, total = passed + counts, total + counts
        except BaseException as error:
            total += 1
            what = f"{ast.unparse(node).splitlines()[0][:100]} failed: {type(error).__name__}: {str(error)[:100]}"
            reason = reason or what.rstrip(": ") + "."
    return [passed, total, reason]


def main() -> None:
    """Answer messages until the channel ends."""
    channel, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.set_int_max_str_digits(0)
    namespace: dict[str, Any] = {"__name__": "answer"}
    objects: list[Any] = []

    def send(message: dict[str, Any]) -> None:
        out.write(json.dumps(message).encode() + b"\n")
        out.flush()

    def request(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        send({"operation": operation, "args": encode(args, None), "kwargs": encode(kwargs, None)})
        reply = json.loads(next(channel))
        if "raised" not in reply:
            return decode(reply["value"], object_of)
        name, text = reply["raised"]
        kind = getattr(builtins, name, None)
        raise kind(text) if isinstance(kind, type) and issubclass(kind, Exception) else Exception(f"{name}: {text}")

    object_of = functools.partial(Remote, request)

    def answer(message: dict[str, Any]) -> Any:
        if "source" in message:
            exec(compile(message["source"], "answer", "exec"), namespace)  # noqa: S102
            names = message.get("names") or [name for name in namespace if not name.startswith("__")]
            return {name: encode(namespace[name], objects) for name in names if name in namespace}
        if "prompt" in message:
            score = namespace["score"](message["prompt"], message["answer"], **message["columns"])
            return encode(score.item() if hasattr(score, "item") else score, objects)  # of NumPy
        args, kwargs = (decode(message[name], objects.__getitem__) for name in ("args", "kwargs"))
        return encode(_OPERATIONS[message["operation"]](*args, **kwargs), objects)

    for line in channel:
        message = json.loads(line)
        try:
            if "tests" in message:
                names = {name: decode(value, object_of) for name, value in message["names"].items()}
                reply = {"done": examine(names, message["tests"], message["entry_point"])}
            else:
                reply = {"value": answer(message)}
        except BaseException as error:
            reply = {"raised": [type(error).__name__, str(error)[:500]]}
        send(reply)


if __name__ == "__main__":
    main()
