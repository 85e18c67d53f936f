"""The phases of a training step: `persistent + max(forward, loss backward, layer backward, optimizer step)`.

Each kind of layer is rehearsed once, alone; the step is put together from what a layer leaves behind and from how high
it reaches above that. Layers of one kind behave alike, so the highest point of a backward pass lies at its first layer
(all activations still there) or at its last (all gradients there).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from engine.memory.layers import decoder_layer
from engine.memory.losses import head_and_loss
from engine.memory.norms import normalize
from engine.memory.operations import dropout
from engine.memory.rehearsal import Rehearsal
from engine.memory.structure import LayerStructure, ModelStructure
from engine.memory.tape import Group, Parameter, Tape, Value
from engine.memory.targets import AdapterTargets
from engine.memory.workload import Workload

Phase = Literal["forward", "loss_backward", "layer_backward", "optimizer_step"]


class Held(NamedTuple):
    """Bytes by group, as they are alive together."""

    activations: int = 0
    loss: int = 0
    gradients: int = 0
    weight_copies: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    def plus(self, other: "Held") -> "Held":
        return Held(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: "Held") -> "Held":
        return Held(*(mine - its for mine, its in zip(self, other, strict=True)))

    def times(self, count: int) -> "Held":
        return Held(*(mine * count for mine in self))


NOTHING = Held()


@dataclass(frozen=True)
class Stretch:
    """What one stretch of the model does to memory, measured from what was alive when it began."""

    kept: Held  # after its forward pass, its output included
    output_bytes: int
    forward_peak: Held  # above the start of its forward pass
    backward_peak: Held  # above what is alive before its backward pass, the arriving gradient included
    left: Held  # after its backward pass: gradients of its weights, and what the caller still holds
    count: int = 1
    while_layers_run: Held = NOTHING  # beside `kept`, until the head begins


@dataclass(frozen=True)
class StepPeaks:
    """The highest point of each phase, above weights, optimizer state and whatever else is always there."""

    peaks: dict[Phase, Held]
    gradients_bytes: int  # of all trained weights, once the backward pass is through

    @property
    def phase(self) -> Phase:
        return max(self.peaks, key=lambda phase: self.peaks[phase].total)


def rehearse_step(
    structure: ModelStructure, workload: Workload, targets: AdapterTargets, *, adds_in_place: bool = True
) -> StepPeaks:
    """Play one forward and backward pass through on sizes alone."""
    names = targets.names

    def stage() -> Rehearsal:
        return Rehearsal(Tape(adds_in_place=adds_in_place), workload, structure, targets, names)

    embedding = _embedding_stretch(stage())
    layers = _layer_stretches(stage, structure, workload)
    head = _head_stretch(stage())
    return _put_together(embedding, layers, head, stage())


def _put_together(embedding: Stretch, layers: list[Stretch], head: Stretch, stage: Rehearsal) -> StepPeaks:
    workload, structure = stage.workload, stage.structure
    alive = embedding.kept.plus(embedding.while_layers_run)
    forward = embedding.forward_peak
    cache = Held(activations=_cache_bytes_per_layer(stage))
    for stretch in layers:
        # The last layer of a kind starts highest.
        top = alive.plus(stretch.kept.plus(cache).times(stretch.count - 1)).plus(stretch.forward_peak)
        forward = _higher(forward, top)
        alive = alive.plus(stretch.kept.plus(cache).times(stretch.count))
    alive = alive.minus(embedding.while_layers_run)
    forward = _higher(forward, alive.plus(head.forward_peak))
    # The model's output goes out of scope, and with it the cache.
    alive = alive.minus(cache.times(structure.num_layers))
    loss_backward = alive.plus(head.backward_peak)
    # From here on the head's gradients and what the caller holds of its results stay.
    alive = alive.plus(head.left)
    backward = Held()
    for stretch in reversed(layers):
        output = Held(activations=stretch.output_bytes)
        first = alive.minus(output).plus(stretch.backward_peak)
        step = stretch.left.minus(stretch.kept)
        alive = alive.plus(step.times(stretch.count - 1))
        last = alive.minus(output).plus(stretch.backward_peak)
        backward = _higher(backward, _higher(first, last))
        alive = alive.plus(step)
    backward = _higher(backward, alive.minus(Held(activations=embedding.output_bytes)).plus(embedding.backward_peak))
    gradients = sum(s.left.gradients * s.count for s in (embedding, *layers, head))
    gradients -= _tied_gradient(workload, structure)
    at_the_end = Held(loss=head.left.loss, gradients=gradients)
    if workload.loss.holds_logits and input_needs_gradient(workload):
        # The graph hangs on the logits, and on the graph its leaf: the first layer's input with its own gradient.
        at_the_end = at_the_end.plus(Held(activations=2 * embedding.output_bytes))
    return StepPeaks(
        peaks={
            "forward": forward,
            "loss_backward": loss_backward,
            "layer_backward": backward,
            "optimizer_step": at_the_end,
        },
        gradients_bytes=gradients,
    )


def _higher(one: Held, other: Held) -> Held:
    return one if one.total >= other.total else other


def _embedding_stretch(r: Rehearsal) -> Stretch:
    """Token embedding, positions and the angles of the rotary embedding; all of it stays through the step.

    Source: `LlamaModel.forward`, which holds `inputs_embeds` and `position_embeddings` while the layers run.
    """
    tape, workload, shape = r.tape, r.workload, r.structure.shape
    width = workload.precision.embeddings
    x = tape.value(workload.tokens * shape.hidden_size, width)
    if not workload.trains_adapter:
        weight = Parameter(shape.vocab_size * shape.hidden_size, width, trainable=True)
        x.producer = tape.node((weight,), lambda _: (tape.allocate(weight.elements * width),))
    elif input_needs_gradient(workload):
        # A leaf: its own gradient is kept beside it.
        x.producer = Parameter(x.elements, width, trainable=True)
    if shape.rotary:
        angles = workload.length * shape.head_dim
        tape.use(workload.length * 8, angles * 4 * 4)
        tape.value(2 * angles, width)
    passing = _positions_and_mask_bytes(workload)
    if shape.embedding_dropout > 0:
        before = x
        x = dropout(tape, before, on_cuda=r.on_cuda)
        tape.drop(before)
        passing += before.storage.size
    stretch = _measured(r, x, start=Held(), input_bytes=x.storage.size if input_needs_gradient(workload) else 0)
    if workload.checkpointing == "none":
        return replace(stretch, while_layers_run=Held(activations=passing))
    return replace(stretch, kept=stretch.kept.plus(Held(activations=passing)))


def _positions_and_mask_bytes(workload: Workload) -> int:
    """What every layer gets as an argument: checkpointed layers hold on to it, others let go when the last has run."""
    positions = workload.length * 8
    if workload.attention == "eager":
        return positions + _mask_elements(workload) * workload.precision.embeddings
    return positions + (_mask_elements(workload) if workload.masked else 0)


def _mask_elements(workload: Workload) -> int:
    return workload.batch_size * workload.length * workload.key_length


def input_needs_gradient(workload: Workload) -> bool:
    """Whether the first layer's input takes part in the backward pass although nothing before it is trained.

    Checkpointed layers need that (`enable_input_require_grads`), and the Trainer sees to it.
    """
    return workload.checkpointing != "none" and workload.trains_adapter


def _layer_stretches(stage: Callable[[], Rehearsal], structure: ModelStructure, workload: Workload) -> list[Stretch]:
    """One stretch for each kind of layer; the first layer apart where its input needs no gradient."""
    stretches = []
    needs_gradient = input_needs_gradient(workload) or not workload.trains_adapter
    for layer in structure.layers:
        count = layer.count
        if not needs_gradient:
            stretches.append(_layer_stretch(stage(), layer, needs_gradient=False))
            count -= 1
            needs_gradient = True
        if count:
            stretches.append(replace(_layer_stretch(stage(), layer, needs_gradient=True), count=count))
    return stretches


def _layer_stretch(r: Rehearsal, layer: LayerStructure, *, needs_gradient: bool) -> Stretch:
    tape, workload = r.tape, r.workload
    x = _input(r, needs_gradient=needs_gradient)
    start = Held(*tape.groups)

    def forward() -> Value:
        return decoder_layer(r, x, layer)

    if workload.checkpointing == "none":
        output = forward()
    else:
        output = tape.checkpointed(forward, x, reentrant=workload.checkpointing == "reentrant")
    input_bytes = x.storage.size if needs_gradient else 0
    tape.drop(x)
    return _measured(r, output, start=start, input_bytes=input_bytes)


def _input(r: Rehearsal, *, needs_gradient: bool) -> Value:
    """What the previous stretch has computed."""
    width = r.residual_width
    x = r.tape.value(r.tokens * r.structure.shape.hidden_size, width)
    x.producer = Parameter(x.elements, width, trainable=True) if needs_gradient else None
    return x


def _measured(r: Rehearsal, output: Value, *, start: Held, input_bytes: int) -> Stretch:
    """Measure the forward pass that is through, then the backward pass from a gradient of the output.

    The gradient of the input, `input_bytes`, is what arrives at the stretch before and counts there.
    """
    tape = r.tape
    forward_peak = Held(*tape.peak_groups).minus(start)
    kept = Held(*tape.groups).minus(start)
    output_bytes = output.storage.size
    tape.drop(output)
    before = Held(*tape.groups)
    tape.start_phase()
    gradient = tape.allocate(output_bytes)
    tape.backward(output, gradient)
    peak = Held(*tape.peak_groups).minus(before)
    left = Held(gradients=tape.groups[Group.GRADIENTS] - input_bytes)
    return Stretch(kept, output_bytes, forward_peak, peak, left)


def _head_stretch(r: Rehearsal) -> Stretch:
    """Final norm, output head and loss, forward and backward."""
    tape, structure = r.tape, r.structure
    hidden = _input(r, needs_gradient=True)
    hidden_bytes = hidden.storage.size
    start = Held(*tape.groups)
    with tape.scope() as scope:
        normed = hidden
        for norm in structure.final_norms[:1]:
            normed = normalize(r, hidden, norm)
        tape.drop(hidden)
        loss, logits = head_and_loss(r, normed)
        scope.returns(loss)
        if logits is not None:
            scope.returns(logits)
    forward_peak = Held(*tape.peak_groups).minus(start)
    if logits is not None and not r.workload.loss.holds_logits:
        tape.drop(logits)
    tape.start_phase()
    tape.backward(loss, tape.allocate(4))
    peak = Held(*tape.peak_groups).minus(start)
    return Stretch(
        kept=Held(),
        output_bytes=0,
        forward_peak=forward_peak,
        backward_peak=peak,
        left=Held(loss=tape.groups[Group.LOSS], gradients=tape.groups[Group.GRADIENTS] - hidden_bytes),
    )


def _cache_bytes_per_layer(r: Rehearsal) -> int:
    """Keys and values of one layer, where a cache keeps them: a view of the fused projection keeps all of it."""
    if not r.workload.keeps_cache:
        return 0
    precision = r.workload.precision
    width = r.norm_width if r.workload.base != "dense" else precision.autocast or precision.weights
    return r.tokens * sum(module.out_features for module in r.structure.layers[0].attention_inputs) * width


def _tied_gradient(workload: Workload, structure: ModelStructure) -> int:
    """Where head and embedding share a weight they share its gradient."""
    shape = structure.shape
    if workload.trains_adapter or not shape.tie_word_embeddings:
        return 0
    return shape.vocab_size * shape.hidden_size * workload.precision.embeddings
