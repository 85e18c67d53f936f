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


class LiveBytes:
    """Bytes that are taken and given back."""

    def __init__(self) -> None:
        self.live = self.peak = 0  # bytes alive now, and at most since `start_phase`
        self.groups, self.peak_groups = [0] * len(Group), [0] * len(Group)  # both, split by group
        self.group = Group.ACTIVATIONS  # of what is taken without a group

    def allocate(self, size: int, group: Group | None = None) -> Storage:
        """Take bytes; the caller owns one reference."""
        group = self.group if group is None else group
        self.live += size
        self.groups[group] += size
        if self.live > self.peak:
            self.start_phase()
        return Storage(size, group)

    def release(self, storage: Storage) -> None:
        """Give back one reference; the last one frees the bytes."""
        storage.references -= 1
        if storage.references == 0:
            self.live -= storage.size
            self.groups[storage.group] -= storage.size

    def use(self, *sizes: int) -> None:
        """Hold scratch of these sizes, all at once, within one operation."""
        self.release(self.allocate(sum(sizes)))

    def use_scratch(self, size: int) -> None:
        """Hold what a kernel takes for itself within one operation."""
        self.release(self.allocate_scratch(size))

    def allocate_scratch(self, size: int) -> Storage:
        """Allocate scratch that outlasts one operation. A dispatch mode cannot see it, so tests leave it out."""
        return self.allocate(size)

    def start_phase(self) -> None:
        """Reset the peak to what is alive now."""
        self.peak = self.live
        self.peak_groups = self.groups.copy()
