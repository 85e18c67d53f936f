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

    `saved` holds what it keeps; inside a checkpoint `slots` has the numbers of the recomputed tensors that it will ask for.
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


class LiveBytes:
    """Bytes that are taken and given back.

    Attributes:
        live: Bytes alive now.
        groups: `live` split by group.
        peak: Most bytes alive at once since `start_phase`.
        peak_groups: `peak` split by group.
        group: Default for what is taken without a group.
        sees_scratch: Whether scratch that a kernel takes within one operation counts. A dispatch mode cannot see it.
    """

    def __init__(self, *, sees_scratch: bool = True) -> None:
        self.live = 0
        self.peak = 0
        self.groups = [0] * len(Group)
        self.peak_groups = [0] * len(Group)
        self.group = Group.ACTIVATIONS
        self.sees_scratch = sees_scratch

    def allocate(self, size: int, group: Group | None = None) -> Storage:
        """Take bytes; the caller owns one reference."""
        group = self.group if group is None else group
        self.live += size
        self.groups[group] += size
        if self.live > self.peak:
            self.peak = self.live
            self.peak_groups = self.groups.copy()
        return Storage(size, group)

    def release(self, storage: Storage) -> None:
        """Give back one reference; the last one frees the bytes."""
        storage.references -= 1
        if storage.references == 0:
            self.live -= storage.size
            self.groups[storage.group] -= storage.size

    def use(self, *sizes: int, group: Group | None = None) -> None:
        """Hold scratch of these sizes, all at once, within one operation."""
        self.release(self.allocate(sum(sizes), group))

    def use_scratch(self, *sizes: int, group: Group | None = None) -> None:
        """Hold what a kernel takes for itself within one operation."""
        if self.sees_scratch:
            self.use(*sizes, group=group)

    def allocate_scratch(self, size: int, group: Group | None = None) -> Storage:
        """The same for longer than one allocation."""
        return self.allocate(size if self.sees_scratch else 0, group)

    def start_phase(self) -> None:
        """Reset the peak to what is alive now."""
        self.peak = self.live
        self.peak_groups = self.groups.copy()
