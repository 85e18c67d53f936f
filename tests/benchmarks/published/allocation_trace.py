"""A whole training step, layer after layer, as a stream of requests to an allocator.

`phases.py` simulates every kind of layer once, which is quick and reports how much is alive. What an allocator makes of it
depends on the order of all requests, so here they are all simulated.
"""

from typing import NamedTuple

from loratory.engine.memory.autograd.tensors import Group, Node, Storage, Value, share
from loratory.engine.memory.layers.decoder import embed
from loratory.engine.memory.layers.modules import normalize
from loratory.engine.memory.layers.step_context import StepContext
from loratory.engine.memory.structure import AdapterTargets, LayerStructure, ModelStructure
from tests.benchmarks.published.other_trainers import PlainTape, PlainWorkload, plain_layer, plain_loss


class Request(NamedTuple):
    """Take `size` bytes under this number, or give back what bears it (size 0)."""

    number: int
    size: int


class StepStream(NamedTuple):
    """Requests of one step, and after how many of them the forward and the backward pass are through."""

    requests: list[Request]
    after_forward: int
    after_backward: int


class RecordingTape(PlainTape):
    """A tape that writes down every request."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__(reentrant=reentrant)
        self.requests: list[Request] = []
        self._numbers: dict[int, int] = {}  # id of a live storage → its number
        self._alive: dict[int, Storage] = {}  # keeps ids from being used twice
        self._with_attributes: list[Node] = []

    def allocate(self, size: int, group: Group | None = None) -> Storage:
        """Take bytes, and note it."""
        storage = super().allocate(size, group)
        if size:
            number = len(self.requests)
            self._numbers[id(storage)] = number
            self._alive[id(storage)] = storage
            self.requests.append(Request(number, size))
        return storage

    def release(self, storage: Storage) -> None:
        """Give back one reference, and note it where it was the last."""
        super().release(storage)
        if storage.references == 0 and storage.size:
            self.requests.append(Request(self._numbers.pop(id(storage)), 0))
            del self._alive[id(storage)]

    def keep_as_attribute(self, result: Value, attribute: Value) -> None:
        """Keep it, and note the node."""
        super().keep_as_attribute(result, attribute)
        if isinstance(result.producer, Node):
            self._with_attributes.append(result.producer)

    def end_graph(self) -> None:
        """Drop the loss, and with it what the nodes of its graph still keep as attributes."""
        for node in self._with_attributes:
            for storage in node.attributes:
                self.release(storage)
            node.attributes = []


def trace_step(structure: ModelStructure, workload: PlainWorkload, targets: AdapterTargets) -> StepStream:
    """Simulate forward and backward pass of all layers, then release everything but the gradients."""
    tape = RecordingTape(reentrant=workload.reentrant)
    r = StepContext(tape, workload, structure, targets)
    r.put_prefixes(structure.num_layers)
    embeddings, passing = embed(r)
    inputs_embeds = tape.allocate(passing.inputs_embeds)
    arguments = tape.allocate(passing.arguments)
    x = embeddings
    for layer in structure.layers:
        for _ in range(layer.count):
            x = _next_layer(r, x, layer, embeddings)
    hidden = normalize(r, x, structure.final_norms[0]) if structure.final_norms else tape.alias(x)
    tape.drop(x, embeddings)
    tape.release(inputs_embeds)
    if not workload.checkpointing:
        tape.release(arguments)
    loss = plain_loss(r, hidden)
    tape.drop(hidden)
    r.end_forward()
    after_forward = len(tape.requests)
    gradient = tape.allocate(4)
    tape.backward(loss, share(gradient))
    tape.release(gradient)
    if workload.checkpointing:
        tape.release(arguments)
    tape.end_graph()
    after_backward = len(tape.requests)
    tape.drop(loss)
    return StepStream(tape.requests, after_forward, after_backward)


def _next_layer(r: StepContext, x: Value, layer: LayerStructure, embeddings: Value) -> Value:
    def forward() -> Value:
        return plain_layer(r, x, layer)

    output = r.tape.checkpoint(forward, x) if r.workload.checkpointing else forward()
    if x is not embeddings:
        r.tape.drop(x)
    return output
