"""What autograd is made of, with every tensor reduced to its number of bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Union


class Group(IntEnum):
    """Which part of the stacked bar a tensor belongs to."""

    ACTIVATIONS = 0
    LOSS = 1
    GRADIENTS = 2
    WEIGHT_COPIES = 3  # weights that autocast has cast


@dataclass(eq=False, slots=True)
class Storage:
    """One allocation. `references` counts the variables and autograd nodes that hold it."""

    size: int
    group: Group
    references: int = 1


def share(storage: Storage) -> Storage:
    """One more reference to the same bytes."""
    storage.references += 1
    return storage


@dataclass(eq=False, slots=True)
class Parameter:
    """A weight outside the tape: it is always there, so only its gradient counts."""

    elements: int
    width: int  # bytes per element
    trainable: bool = field(default=False, kw_only=True)
    # A gradient of an earlier pass is there already, counted elsewhere; one that arrives is added into it.
    adds_up: bool = field(default=False, kw_only=True)
    gradient: Storage | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.elements * self.width


# A gradient for each input of a node, None where that input needs none. Each carries one reference of its own.
Gradients = Sequence[Storage | None]
Backward = Callable[[Storage], Gradients]


@dataclass(eq=False, slots=True)
class Checkpoint:
    """A checkpointed part of the forward pass: how to run it again, and what running it again has saved."""

    forward: Callable[[], "Value"]
    saves: int = 0
    recomputed: list[Storage | None] | None = None


@dataclass(eq=False, slots=True)
class Node:
    """An operation that the backward pass will visit."""

    inputs: Sequence["Producer"]
    backward: Backward
    checkpoint: Checkpoint | None
    saved: list[Storage] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # in a checkpoint: numbers of the recomputed tensors it will ask for
    gradient: Storage | None = None
    # Of the inputs, where one comes wider or unsummed and is brought into form.
    gradient_sizes: Sequence[int] | None = None
    parts: list[Storage] | None = None  # gradients of its several outputs, where it has any
    attributes: list[Storage] = field(default_factory=list)  # kept by a custom function, as long as the graph lives


Producer = Union[Node, Parameter, None]  # noqa: UP007 - names a forward reference


@dataclass(eq=False, slots=True)
class Value:
    """A tensor as a Python variable holds it: a storage, its elements and width, and who computed it."""

    storage: Storage
    elements: int
    width: int  # bytes per element
    producer: Producer = None
    is_held: bool = True

    @property
    def size(self) -> int:
        """Bytes of these elements; a view has fewer than its storage."""
        return self.elements * self.width


def needs_gradient(item: Value | Parameter) -> bool:
    """Return whether the backward pass will come to this input."""
    return item.trainable if isinstance(item, Parameter) else item.producer is not None
