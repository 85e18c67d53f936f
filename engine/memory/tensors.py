"""What autograd is made of, with every tensor reduced to its number of bytes."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Union


class Group(IntEnum):
    """Which part of the stacked bar a tensor belongs to."""

    ACTIVATIONS = 0
    LOSS = 1
    GRADIENTS = 2
    WEIGHT_COPIES = 3  # frozen weights in another form while they are used: dequantized or cast


class Storage:
    """One allocation. `references` counts the variables and autograd nodes that hold it."""

    __slots__ = ("group", "references", "size")

    def __init__(self, size: int, group: Group) -> None:
        self.size = size
        self.references = 1
        self.group = group


class Parameter:
    """A weight outside the tape: it is always there, so only its gradient counts.

    `adds_up`: a gradient of an earlier pass is there already, counted elsewhere; one that arrives is added into it.
    """

    __slots__ = ("adds_up", "elements", "gradient", "trainable", "width")

    def __init__(self, elements: int, width: int, *, trainable: bool = False, adds_up: bool = False) -> None:
        self.elements = elements
        self.width = width
        self.trainable = trainable
        self.adds_up = adds_up
        self.gradient: Storage | None = None


# A gradient for each input of a node, None where that input needs none. Each carries one reference of its own.
Gradients = Sequence[Storage | None]
Backward = Callable[[Storage], Gradients]


class Checkpoint:
    """A checkpointed stretch of the forward pass: how to run it again, and what running it again has saved."""

    __slots__ = ("forward", "recomputed", "saves")

    def __init__(self, forward: Callable[[], "Value"]) -> None:
        self.forward = forward
        self.saves = 0
        self.recomputed: list[Storage | None] | None = None


class Node:
    """An operation that the backward pass will visit.

    `saved` holds what it keeps; inside a checkpoint `slots` says which of the recomputed tensors it will ask for.
    `attributes` are tensors that a custom function keeps in plain attributes, which live as long as the graph.
    `parts` holds the gradients of its several outputs, where it has any.
    `gradient_sizes` are those of the inputs, where a gradient comes wider or unsummed and is brought into form.
    """

    __slots__ = (
        "attributes",
        "backward",
        "checkpoint",
        "gradient",
        "gradient_sizes",
        "inputs",
        "parts",
        "saved",
        "slots",
    )

    def __init__(self, inputs: Sequence["Producer"], backward: Backward, checkpoint: Checkpoint | None) -> None:
        self.inputs = inputs
        self.backward = backward
        self.checkpoint = checkpoint
        self.saved: list[Storage] = []
        self.slots: list[int] = []
        self.gradient: Storage | None = None
        self.gradient_sizes: Sequence[int] | None = None
        self.parts: list[Storage] | None = None
        self.attributes: list[Storage] = []


Producer = Union[Node, Parameter, None]  # noqa: UP007 - names a forward reference


class Value:
    """A tensor as a Python variable holds it: a storage, its elements and width, and who computed it."""

    __slots__ = ("elements", "held", "producer", "storage", "width")

    def __init__(self, storage: Storage, elements: int, width: int, producer: Producer = None) -> None:
        self.storage = storage
        self.elements = elements
        self.width = width  # bytes per element
        self.producer = producer
        self.held = True


def producer_of(item: Value | Parameter) -> Producer:
    return item.producer if isinstance(item, Value) else item


def needs_gradient(item: Value | Parameter) -> bool:
    """Whether the backward pass will come to this input."""
    if isinstance(item, Parameter):
        return item.trainable
    return item.producer is not None
