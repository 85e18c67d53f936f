"""What runs inside a sandbox: `guest.py` answers JSON lines. Runs on its own, with the standard library alone.

Code that is to be tested, and the tests, run in sandboxes of their own. What one calls of the other crosses as plain values, and
other objects stay where they are: so tested code cannot read its tests, replace what they compare with, or end them.
"""

import ast
import builtins
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = {"tuple": tuple, "set": set, "frozenset": frozenset}
_MOST_ITEMS = 100_000
# Nothing that compares: an object that equals everything would pass each test.
_FORWARDED = """len getitem setitem delitem iter str repr enter exit add sub mul truediv floordiv mod pow neg abs radd rmul
    rsub""".split()
_COMPARED = "eq ne lt le gt ge".split()


class Remote:
    """An object of the other side."""

    def __init__(self, peer: "Peer", number: int) -> None:
        self.__dict__.update(_peer=peer, _number=number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._peer.request(self._number, "__call__", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._peer.request(self._number, "__getattribute__", (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.request(self._number, "__setattr__", (name, value))

    __hash__ = object.__hash__


def _forward(name: str, *, compares: bool) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        if compares and not isinstance(args[0], Remote):
            return NotImplemented
        return self._peer.request(self._number, name, args)

    return method


for _name in (*_FORWARDED, *_COMPARED):
    setattr(Remote, f"__{_name}__", _forward(f"__{_name}__", compares=_name in _COMPARED))


class Peer:
    """One side of a conversation in which each may call what the other gave it.

    Args:
        is_open: Whether the other side may do anything with an object that it was given, or only call it.
    """

    def __init__(self, channel: Iterator[bytes], out: Any, is_open: bool) -> None:
        self._channel, self._out, self._is_open = channel, out, is_open
        self._objects: list[Any] = []
        self._errors: dict[str, type[Exception]] = {}

    def send(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message).encode() + b"\n")
        self._out.flush()

    def request(self, number: int, name: str, args: Any, kwargs: Any = None) -> Any:
        self.send({"ref": number, "name": name, "args": self.encode(list(args)), "kwargs": self.encode(kwargs or {})})
        while "ref" in (message := json.loads(next(self._channel))):
            self.send(self.serve(message))
        if "raised" in message:
            name, text = message["raised"]
            raise self._error(name)(text)
        for mine, theirs in zip(args, self.decode(message["args"]), strict=True):
            if isinstance(mine, list):  # changed in place
                mine[:] = theirs
            elif isinstance(mine, dict | set):
                mine.clear()
                mine.update(theirs)
        return self.decode(message["value"])

    def serve(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            target, args, name = self._objects[message["ref"]], self.decode(message["args"]), message["name"]
            if name == "__call__":
                value = target(*args, **self.decode(message["kwargs"]))
            elif self._is_open:
                value = list(target) if name == "__iter__" else getattr(target, name)(*args)
            else:
                raise PermissionError(name)
            return {"value": self.encode(value), "args": self.encode(args)}
        except BaseException as error:
            return {"raised": [type(error).__name__, str(error)[:500]]}

    def encode(self, value: Any) -> Any:
        """Return a value as JSON; what is not plain stays here, under a number."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self.encode(item) for item in value]
        for name, kind in _PLAIN.items():
            if isinstance(value, kind):
                return {"$": name, "v": [self.encode(item) for item in value]}
        if isinstance(value, dict):
            return {"$": "dict", "v": [[self.encode(key), self.encode(item)] for key, item in value.items()]}
        if isinstance(value, bytes | bytearray):
            return {"$": "bytes", "v": value.decode("latin-1")}
        if isinstance(value, complex):
            return {"$": "complex", "v": [value.real, value.imag]}
        if isinstance(value, types.GeneratorType | map | filter | zip | range):
            return {"$": "iter", "v": [self.encode(item) for item, _ in zip(value, range(_MOST_ITEMS), strict=False)]}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"$": "error", "v": value.__name__}
        if isinstance(value, Remote):
            return {"$": "yours", "v": value._number}
        self._objects.append(value)
        return {"$": "mine", "v": len(self._objects) - 1}

    def decode(self, value: Any) -> Any:
        """Return what the other side encoded."""
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind, content = value["$"], value["v"]
        if kind in ("mine", "yours"):
            return Remote(self, content) if kind == "mine" else self._objects[content]
        if kind == "error":
            return self._error(content)
        if kind == "bytes":
            return content.encode("latin-1")
        if kind == "dict":
            return {self.decode(key): self.decode(item) for key, item in content}
        items = self.decode(content)
        return complex(*items) if kind == "complex" else iter(items) if kind == "iter" else _PLAIN[kind](items)

    def _error(self, name: str) -> type[Exception]:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return kind
        return self._errors.setdefault(name, type(name, (Exception,), {}))


def load(peer: Peer, source: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """Run source in a namespace; return what it defines, or the error."""
    try:
        exec(compile(source, "answer", "exec"), namespace)  # noqa: S102
        names = {name: value for name, value in namespace.items() if not name.startswith("__")}
        return {"value": peer.encode({k: v for k, v in names.items() if not isinstance(v, types.ModuleType)})}
    except BaseException as error:
        return {"raised": [type(error).__name__, str(error)[:500]]}


def rate(namespace: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    """Call the `score` of a file."""
    try:
        if "score" not in namespace:
            raise NameError("it has no function called score")
        score = namespace["score"](question["prompt"], question["answer"], **question["columns"])
        number = score.item() if hasattr(score, "item") else score  # of NumPy
        return {"value": number if number is None or isinstance(number, int | float) else repr(number)[:60]}
    except BaseException as error:
        return {"raised": [type(error).__name__, str(error)[:500]]}


def examine(peer: Peer, tests: list[str], names: Any, entry_point: str) -> dict[str, Any]:
    """Run tests against the names of the other side; count assertions, functions called test_… and `check(candidate)`."""
    namespace = {**peer.decode(names), "__name__": "tests"}
    try:
        nodes = [node for text in tests for node in ast.parse(text).body]
    except (SyntaxError, ValueError, RecursionError) as error:
        return {"done": [0, 0, f"The tests are not Python: {error}."]}
    own = [node.name for node in nodes if isinstance(node, ast.FunctionDef)]
    nodes += [ast.parse(f"{name}()").body[0] for name in own if name.startswith("test")]
    nodes += ast.parse(f"check({entry_point})").body if "check" in own and entry_point.isidentifier() else []
    total = passed = 0
    reason = ""
    for node in nodes:
        counts = isinstance(node, ast.Assert | ast.Expr | ast.For | ast.With | ast.Try)
        try:
            exec(compile(ast.Module([node], []), "tests", "exec"), namespace)  # noqa: S102
            passed += counts
            total += counts
        except BaseException as error:
            total += 1
            what = ast.unparse(node).splitlines()[0][:100]
            reason = reason or f"{what} failed: {type(error).__name__}: {str(error)[:100]}".rstrip(": ") + "."
    return {"done": [passed, total, reason]}


def main() -> None:
    """Answer messages until there are no more."""
    channel, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    sys.set_int_max_str_digits(0)
    namespace: dict[str, Any] = {"__name__": "answer"}
    peer = Peer(channel, out, is_open=True)
    for line in channel:
        message = json.loads(line)
        if "source" in message:
            peer.send(load(peer, message["source"], namespace))
        elif "prompt" in message:
            peer.send(rate(namespace, message))
        elif "tests" in message:
            peer = Peer(channel, out, is_open=False)
            peer.send(examine(peer, message["tests"], message["names"], message["entry_point"]))
        else:
            peer.send(peer.serve(message))


if __name__ == "__main__":
    main()
