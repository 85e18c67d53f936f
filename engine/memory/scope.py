"""Python functions on the tape: when they end, what their variables hold goes out of scope."""

from typing import TYPE_CHECKING

from engine.memory.tensors import Value

if TYPE_CHECKING:
    from engine.memory.tape import Tape


class Scope:
    """The local variables of one Python function."""

    __slots__ = ("_outer", "_results", "_tape")

    def __init__(self, tape: "Tape") -> None:
        self._tape = tape
        self._results: tuple[Value, ...] = ()

    def __enter__(self) -> "Scope":
        self._outer = self._tape.enter_scope()
        return self

    def returns(self, value: Value) -> Value:
        """Hand a value to the caller's scope."""
        self._results += (value,)
        return value

    def __exit__(self, *_: object) -> None:
        self._tape.leave_scope(self._outer, self._results)
