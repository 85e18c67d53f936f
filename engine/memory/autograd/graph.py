"""A simulation of autograd in which every tensor is a number of bytes.

The memory of a training step is decided by which tensors are alive at the same time, and that is decided by three
simple rules of PyTorch: an operation keeps what its derivative needs (`derivatives.yaml`), the backward pass visits
operations in reverse order of creation and releases what each kept, and a gradient that arrives second is added into
the first. `Graph` follows these rules on sizes alone, in microseconds and without torch; `Tape` has what each operation
allocates, keeps and frees.
"""

import contextlib
from collections.abc import Callable, Sequence

from loratory.engine.memory.autograd.tensors import (
    Backward,
    Checkpoint,
    Gradients,
    Group,
    Node,
    Parameter,
    Producer,
    Storage,
    Value,
    needs_gradient,
    share,
)


class _SavedEverythingError(Exception):
    """Recomputation has reached the last tensor that the backward pass asks for."""


class Graph:
    """Live bytes over time."""

    # Autograd adds a second gradient into the first. It cannot while a dispatch mode is watching, which is how the
    # tests watch it (torch/csrc/autograd/input_buffer.cpp).
    adds_in_place = True

    def __init__(self) -> None:
        self.live = self.peak = 0  # bytes alive now, and at most since `start_phase`
        self.groups, self.peak_groups = [0] * len(Group), [0] * len(Group)  # both, split by group
        self.group = Group.ACTIVATIONS  # of what is allocated without a group
        self.records_gradients = True
        self.in_backward = False  # the backward pass is under way, recomputation included
        self._nodes: list[Node] = []
        self._locals: list[Value] = []
        self._checkpoint: Checkpoint | None = None  # whose first forward pass is under way
        self._recomputing: Checkpoint | None = None

    # Bytes

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

    # Variables

    def value(self, elements: int, width: int, producer: Producer = None, group: Group | None = None) -> Value:
        """Allocate a tensor, held by one variable."""
        value = Value(self.allocate(elements * width, group), elements, width, producer)
        self._locals.append(value)
        return value

    def alias(self, value: Value, *, elements: int | None = None) -> Value:
        """Return another variable for the same bytes: a view, or a second name."""
        count = value.elements if elements is None else elements
        other = Value(share(value.storage), count, value.width, value.producer)
        self._locals.append(other)
        return other

    def drop(self, *values: Value) -> None:
        """Release variables that go out of scope or are reassigned."""
        for value in values:
            if value.is_held:
                value.is_held = False
                self.release(value.storage)

    def in_scope(self, function: Callable[[], Value]) -> Value:
        """Call a function whose local variables go out of scope when it ends, except its result."""
        outer = self.enter_scope()
        results: tuple[Value, ...] = ()
        try:
            result = function()
            results = (result,)
            return result
        finally:
            self.leave_scope(outer, results)

    def enter_scope(self) -> list[Value]:
        """Begin a list of local variables; returns the outer one."""
        outer, self._locals = self._locals, []
        return outer

    def leave_scope(self, outer: list[Value], results: Sequence[Value] = ()) -> None:
        """Let the local variables go, except the results."""
        for value in self._locals:
            if value.is_held and value not in results:
                value.is_held = False
                self.release(value.storage)
        self._locals = outer
        outer.extend(results)

    # Recording

    def operation(
        self,
        inputs: Sequence[Value | Parameter],
        elements: int,
        width: int,
        *,
        backward: Backward | None = None,
        scratch: Sequence[int] = (),
        saved: Sequence[Value | Parameter] = (),
        saves_result: bool = False,
        gradient_sizes: Sequence[int] | None = None,
    ) -> Value:
        """Run an operation: keep `saved` where a gradient will be needed, then allocate the result.

        Saving comes first, as in PyTorch: that is where recomputation stops early.

        Args:
            backward: Where it does not simply make a gradient for each input that needs one.
            scratch: Bytes that are held meanwhile, where it does.
            gradient_sizes: Of the inputs, where a gradient comes wider or unsummed and is brought into form.
        """
        if not self.records_gradients or not any(needs_gradient(item) for item in inputs):
            return self.value(elements, width)
        node = self.node(inputs, backward, scratch, saved)
        node.gradient_sizes = gradient_sizes
        result = self.value(elements, width, node)
        if saves_result:
            self._save(node, result)
        return result

    def operation_in_place(
        self,
        target: Value,
        inputs: Sequence[Value | Parameter],
        backward: Backward | None = None,
        saved: Sequence[Value] = (),
    ) -> Value:
        """Run an operation that writes its result over `target`."""
        result = self.alias(target)
        if self.records_gradients and any(needs_gradient(item) for item in inputs):
            result.producer = self.node(inputs, backward, saved=saved)
        self.drop(target)
        return result

    def record(
        self,
        outputs: Sequence[Value],
        inputs: Sequence[Value | Parameter],
        backward: Backward,
        saved: Sequence[Value] = (),
    ) -> None:
        """Record an operation whose outputs are there already; `backward` gets one gradient while those of all are held."""
        if not self.records_gradients or not any(needs_gradient(item) for item in inputs):
            return
        node = self.node(inputs, backward, saved=saved)
        node.parts = [] if len(outputs) > 1 else None
        for output in outputs:
            output.producer = node

    def view(self, x: Value, elements: int | None = None, *, copies_gradient: bool = True) -> Value:
        """Return a slice or another layout of x, whose gradient is a tensor of x's full size, zero outside."""
        result = self.alias(x, elements=elements)
        if copies_gradient and needs_gradient(x) and self.records_gradients:
            result.producer = self.node((x,))
        return result

    def node(
        self,
        inputs: Sequence[Value | Parameter],
        backward: Backward | None = None,
        scratch: Sequence[int] = (),
        saved: Sequence[Value | Parameter] = (),
    ) -> Node:
        """Record an operation that allocates nothing forward; arguments as in `operation`."""
        producers = [item.producer if isinstance(item, Value) else item for item in inputs]
        node = Node(producers, backward or self._gradients_of(inputs, scratch), self._checkpoint)
        self._nodes.append(node)
        for item in saved:
            self._save(node, item)
        return node

    def _gradients_of(self, inputs: Sequence[Value | Parameter], scratch: Sequence[int]) -> Backward:
        sizes = [item.size if needs_gradient(item) else None for item in inputs]

        def backward(_: Storage) -> Gradients:
            scratch_storages = [self.allocate(size) for size in scratch]
            gradients = [None if size is None else self.allocate(size) for size in sizes]
            for storage in scratch_storages:
                self.release(storage)
            return gradients

        return backward

    @property
    def position(self) -> int:
        """How many operations are recorded."""
        return len(self._nodes)

    def forget(self, first: int, end: int) -> None:
        """Let go of what operations keep that no gradient will reach, as when a graph goes out of scope."""
        for node in self._nodes[first:end]:
            self._let_go(node)
            for storage in node.attributes:
                self.release(storage)
            node.attributes = []

    def keep_as_attribute(self, result: Value, attribute: Value) -> None:
        """Keep a tensor as a plain attribute of the node that made `result`: checkpointing never sees it."""
        if isinstance(result.producer, Node):
            result.producer.attributes.append(share(attribute.storage))

    def _save(self, node: Node, item: Value | Parameter) -> None:
        """Keep an input for the backward pass; a weight is there anyway."""
        if self._checkpoint is not None:
            node.slots.append(self._checkpoint.saves)
            self._checkpoint.saves += 1
            return
        storage = share(item.storage) if isinstance(item, Value) else None
        if self._recomputing is None:
            if storage is not None:
                node.saved.append(storage)
            return
        recomputed = self._recomputing.recomputed
        assert recomputed is not None
        recomputed.append(storage)
        if len(recomputed) == self._recomputing.saves:
            raise _SavedEverythingError

    # Backward

    def backward(self, value: Value, gradient: Storage) -> None:
        """Visit everything that `value` was computed from, in reverse order of creation; takes over the gradient."""
        self.in_backward = True
        self._accumulate(value.producer, gradient)
        self._visit(self._nodes)
        self.in_backward = False

    def _visit(self, nodes: list[Node]) -> None:
        while nodes:
            node = nodes.pop()
            output_gradient = node.gradient
            if output_gradient is None:
                self._let_go(node)
                continue
            node.gradient = None
            if node.slots:
                self._unpack(node)
            gradients = node.backward(output_gradient)
            if node.slots:  # nothing else holds recomputed tensors
                self._let_go(node)
            if node.gradient_sizes is not None:
                gradients = [
                    self._in_form(gradient, size) for gradient, size in zip(gradients, node.gradient_sizes, strict=True)
                ]
            self.release(output_gradient)
            for part in node.parts or ():
                self.release(part)
            self._let_go(node)
            for producer, input_gradient in zip(node.inputs, gradients, strict=True):
                if input_gradient is not None:
                    self._accumulate(producer, input_gradient)

    def _in_form(self, gradient: Storage | None, size: int) -> Storage | None:
        """Cast a gradient, or sum it over what was broadcast (`validate_outputs` in torch/csrc/autograd/engine.cpp)."""
        if gradient is None or gradient.size == size:
            return gradient
        converted_gradient = self.allocate(size)
        self.release(gradient)
        return converted_gradient

    def _let_go(self, node: Node) -> None:
        for storage in node.saved:
            self.release(storage)
        node.saved = []

    def _accumulate(self, producer: Producer, gradient: Storage) -> None:
        if producer is None or (isinstance(producer, Parameter) and (producer.adds_up or not producer.trainable)):
            self.release(gradient)
            return
        if producer.gradient is None:
            if isinstance(producer, Parameter):
                self.groups[gradient.group] -= gradient.size
                self.groups[Group.GRADIENTS] += gradient.size
                gradient.group = Group.GRADIENTS
            producer.gradient = gradient
            return
        if isinstance(producer, Node) and producer.parts is not None:
            producer.parts.append(gradient)
            return
        old = producer.gradient
        if not self.adds_in_place or old.references > 1:
            producer.gradient = self.allocate(old.size, old.group)
            self.release(old)
        self.release(gradient)

    # Checkpointing

    def checkpoint(self, forward: Callable[[], Value], x: Value) -> Value:
        """Run `forward`, keep only its input, and run it again in the backward pass.

        Nodes are recorded in full; what they would save becomes an index into a list.

        Source: `_checkpoint_without_reentrant_generator` in torch/utils/checkpoint.py.
        """
        checkpoint = Checkpoint(forward)
        first = len(self._nodes)
        outer, self._checkpoint = self._checkpoint, checkpoint
        result = forward()
        self._checkpoint = outer
        # The call's arguments live as long as one node may still ask for it to be repeated.
        last_to_ask = next((node for node in self._nodes[first:] if node.slots), None)
        if last_to_ask is not None:
            last_to_ask.saved.append(share(x.storage))
        return result

    def _unpack(self, node: Node) -> None:
        checkpoint = node.checkpoint
        assert checkpoint is not None
        if checkpoint.recomputed is None:
            checkpoint.recomputed = []
            self._recompute(checkpoint)
        recomputed = checkpoint.recomputed
        node.saved.extend(storage for slot in node.slots if (storage := recomputed[slot]) is not None)

    def _recompute(self, checkpoint: Checkpoint) -> None:
        """Run forward again until all is saved, then leave it as an exception does."""
        # Source: `_recomputation_hook`, with early stop, in torch/utils/checkpoint.py.
        nodes, self._nodes = self._nodes, []
        variables = self.enter_scope()
        before, self._recomputing = self._recomputing, checkpoint
        with contextlib.suppress(_SavedEverythingError):
            checkpoint.forward()
        self._recomputing = before
        self.leave_scope(variables)
        self.forget(0, len(self._nodes))
        self._nodes = nodes
