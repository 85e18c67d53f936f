"""The phases of a training step: `persistent + max(forward, loss backward, layer backward, optimizer step)`.

Each kind of layer is simulated once, alone; the step is put together from what a layer leaves behind and from how high
it reaches above that. Layers of one kind behave the same, so the highest point of a backward pass lies at its first layer
(all activations still there) or at its last (all gradients there).
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from loratory.engine.config.rules import COPIED_WEIGHT_BYTES, answers_at_once
from loratory.engine.memory.autograd.tape import Tape
from loratory.engine.memory.autograd.tensors import Group, Parameter, Value, share
from loratory.engine.memory.layers import losses
from loratory.engine.memory.layers.decoder import decoder_layer, embed, input_is_leaf, residual_width
from loratory.engine.memory.layers.images import with_images
from loratory.engine.memory.layers.modules import normalize
from loratory.engine.memory.layers.step_context import StepContext
from loratory.engine.memory.persistent import weight_bytes
from loratory.engine.memory.structure import AdapterTargets, LayerStructure, ModelStructure
from loratory.engine.memory.workload import Workload

Phase = Literal["forward", "loss_backward", "layer_backward", "optimizer_step", "answers"]


class BytesByGroup(NamedTuple):
    """Bytes by group, as they are alive together."""

    activations: int = 0
    loss: int = 0
    gradients: int = 0
    weight_copies: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    def __add__(self, other: "BytesByGroup") -> "BytesByGroup":  # type: ignore[override]
        return BytesByGroup(*map(operator.add, self, other))

    def __sub__(self, other: "BytesByGroup") -> "BytesByGroup":
        return BytesByGroup(*map(operator.sub, self, other))

    def __mul__(self, count: int) -> "BytesByGroup":  # type: ignore[override]
        return BytesByGroup(*(size * count for size in self))


NOTHING = BytesByGroup()


@dataclass(frozen=True)
class Segment:
    """What one part of the model does to memory, measured from what was alive when it began."""

    saved: BytesByGroup  # after its forward pass, its output included
    output_bytes: int
    forward_peak: BytesByGroup  # above the start of its forward pass
    backward_peak: BytesByGroup  # above what is alive before its backward pass, the arriving gradient included
    left: BytesByGroup  # after its backward pass: gradients of its weights, and what the caller still holds
    count: int = 1
    opening_peak: BytesByGroup = (
        NOTHING  # above the start, of what runs before the variables of the layers are released
    )
    while_layers_run: BytesByGroup = NOTHING  # in addition to `saved`, until the head begins
    while_forward: BytesByGroup = NOTHING  # in addition to `saved`, until the forward pass ends
    freed_input_bytes: int = 0  # of the input, where nothing keeps it for the backward pass


class StepPeaks(NamedTuple):
    """The highest point of each phase, above weights, optimizer state and all else that is always there."""

    peaks: dict[Phase, BytesByGroup]
    layer_bytes: int  # how high one layer reaches, forward and backward, above what is alive around it


class StepRules(NamedTuple):
    """What a step is made of: Loratory's own, unless measurements of other trainers are simulated."""

    tape: Callable[[], Tape] = Tape
    layer: Callable[[StepContext, Value, LayerStructure], Value] = decoder_layer
    loss: Callable[[StepContext, Value], Value] = losses.loss_of_trained_positions


_OWN_RULES = StepRules()


def simulate_step(
    structure: ModelStructure, workload: Workload, targets: AdapterTargets, rules: StepRules = _OWN_RULES
) -> StepPeaks:
    """Simulate one forward and backward pass on sizes alone."""

    def stage() -> StepContext:
        return StepContext(rules.tape(), workload, structure, targets)

    width = residual_width(stage())
    embedding = _embedding_segment(stage())
    layers = _layer_segments(stage, rules, width)
    return _combine_segments(embedding, layers, _head_segments(stage, rules, width), stage())


def _combine_segments(embedding: Segment, layers: list[Segment], head: Segment, context: StepContext) -> StepPeaks:
    """Chain the segments: below the peaks of each is what those before it have left."""
    saved = embedding.saved
    for layer in layers:
        saved += layer.saved * layer.count
    gradients = sum(s.left.gradients * s.count for s in (embedding, *layers, head))
    tied = _tied_gradient(context.workload, context.structure)
    return StepPeaks(
        peaks={
            "forward": _forward_peak(embedding, layers, head),
            # The model's output has gone out of scope, and autocast is left.
            "loss_backward": saved + head.backward_peak,
            "layer_backward": _layer_backward_peak(saved, embedding, layers, head),
            "optimizer_step": BytesByGroup(loss=head.left.loss, gradients=gradients - tied),
            **({"answers": _answers_peak(context)} if context.workload.answers else {}),
        },
        layer_bytes=max(layer.forward_peak.total + layer.backward_peak.total for layer in layers),
    )


def _answers_peak(context: StepContext) -> BytesByGroup:
    """Return what answers take that are written side by side: keys and values, logits, and copied weights.

    One layer's keys and values are there twice when rows leave the batch. Source: engine/generation/worker and
    engine/training/ops/answer_linear.py.
    """
    workload, shape = context.workload, context.structure.shape
    if workload.vllm_bytes:
        return BytesByGroup(activations=workload.vllm_bytes)
    layer = 2 * shape.num_key_value_heads * shape.head_dim
    most = answers_at_once(layer * shape.num_hidden_layers, workload.length, workload.device)
    answers, layer = min(workload.answers, most), layer * workload.length * workload.precision.compute
    logits = shape.vocab_size * (
        workload.precision.head + 3 * 4
    )  # as computed, at 32 bits, probabilities, blocks of them
    weights = sum(weight_bytes(shape.modules, workload))
    copies = workload.device == "cpu" and workload.precision.compute == 2 and weights <= COPIED_WEIGHT_BYTES
    return BytesByGroup(
        activations=answers * layer * (shape.num_hidden_layers + 1),
        loss=answers * logits,
        weight_copies=weights if copies else 0,
    )


def _forward_peak(embedding: Segment, layers: list[Segment], head: Segment) -> BytesByGroup:
    alive = embedding.saved + embedding.while_layers_run + embedding.while_forward
    peak = embedding.forward_peak
    # The first layer's input is held by a variable of the model until the last layer has run.
    held_input = BytesByGroup(activations=layers[0].freed_input_bytes) if len(layers) > 1 else NOTHING
    for number, layer in enumerate(layers):
        if number == 1:
            alive += held_input
        # The last layer of a kind starts highest.
        each = layer.saved + layer.while_forward
        peak = _max_by_total(peak, alive + each * (layer.count - 1) + layer.forward_peak)
        alive += each * layer.count
    # The last norm belongs to the model's forward pass, whose variables are all there still.
    after_layers = alive - embedding.while_layers_run - held_input
    return _max_by_total(peak, alive + head.opening_peak, after_layers + head.forward_peak)


def _layer_backward_peak(saved: BytesByGroup, embedding: Segment, layers: list[Segment], head: Segment) -> BytesByGroup:
    # The head's gradients, what the caller holds of its results, and the gradient of the loss stay.
    alive, peak = saved + head.left + BytesByGroup(loss=4), NOTHING
    for layer in reversed(layers):
        above = layer.backward_peak - BytesByGroup(activations=layer.output_bytes)
        change = layer.left - layer.saved
        peak = _max_by_total(peak, alive + above, alive + change * (layer.count - 1) + above)
        alive += change * layer.count
    return _max_by_total(peak, alive + embedding.backward_peak - BytesByGroup(activations=embedding.output_bytes))


def _max_by_total(*candidates: BytesByGroup) -> BytesByGroup:
    return max(candidates, key=lambda group_bytes: group_bytes.total)


def _embedding_segment(r: StepContext) -> Segment:
    """Compute what precedes the first layer. Positions and mask stay as long as a layer may be run again."""
    r.put_prefixes(r.structure.num_layers)
    x, passing = embed(r)
    tower = r.structure.tower
    if tower is not None and r.workload.pixels and r.workload.holds_embeddings:
        x = r.tape.assign(x, with_images(r, x, tower))
    arguments, layers_only = (
        BytesByGroup(activations=passing.arguments),
        BytesByGroup(activations=passing.inputs_embeds),
    )
    segment = _measure_segment(r, x, start=NOTHING, input_bytes=x.storage.size if input_is_leaf(r.workload) else 0)
    if r.workload.checkpointing:
        return replace(segment, saved=segment.saved + arguments, while_layers_run=layers_only)
    return replace(segment, while_layers_run=layers_only + arguments)


def _layer_segments(stage: Callable[[], StepContext], rules: StepRules, width: int) -> list[Segment]:
    """One segment for each kind of layer; the first layer apart where its input is of another kind."""
    segments, workload = [], stage().workload
    own_width = workload.precision.embeddings
    # Of the first layer's input, although the embeddings may be frozen.
    needs_gradient = input_is_leaf(workload) or workload.virtual_inputs > 0 or not workload.trains_adapter
    differs = own_width != width or not needs_gradient
    for layer in stage().structure.layers:
        count = layer.count
        if differs:
            segments.append(_layer_segment(stage(), rules, layer, own_width, needs_gradient=needs_gradient))
            count -= 1
            differs = False
        if count:
            segments.append(replace(_layer_segment(stage(), rules, layer, width, needs_gradient=True), count=count))
    return segments


def _layer_segment(
    r: StepContext, rules: StepRules, layer: LayerStructure, width: int, *, needs_gradient: bool
) -> Segment:
    tape = r.tape
    x = _input(r, width, needs_gradient=needs_gradient)
    r.put_prefixes(1)
    start = BytesByGroup(*tape.groups)
    forward = partial(rules.layer, r, x, layer)
    output = tape.checkpoint(forward, x) if r.workload.checkpointing else forward()
    input_bytes = x.storage.size
    tape.drop(x)
    lets_go = input_bytes if x.storage.references == 0 else 0
    segment = _measure_segment(r, output, start=start, input_bytes=input_bytes if needs_gradient else 0)
    return replace(segment, freed_input_bytes=lets_go)


def _input(r: StepContext, width: int, *, needs_gradient: bool) -> Value:
    """Return the output of the previous segment."""
    x = r.tape.value(r.tokens * r.structure.shape.hidden_size, width)
    x.producer = Parameter(x.elements, width, trainable=True) if needs_gradient else None
    return x


def _measure_segment(r: StepContext, output: Value, *, start: BytesByGroup, input_bytes: int) -> Segment:
    """Measure the forward pass that is through, then the backward pass from a gradient of the output.

    The gradient of the input, `input_bytes`, is what arrives at the segment before and counts there.
    """
    tape = r.tape
    forward_peak = BytesByGroup(*tape.peak_groups) - start
    with_everything = BytesByGroup(*tape.groups)
    r.end_forward()
    after_forward = BytesByGroup(*tape.groups)
    output_bytes = output.storage.size
    tape.drop(output)
    before = BytesByGroup(*tape.groups)
    tape.start_phase()
    gradient = tape.allocate(output_bytes)
    tape.backward(output, gradient)
    peak = BytesByGroup(*tape.peak_groups) - before
    left = BytesByGroup(*tape.groups) - BytesByGroup(gradients=input_bytes)
    return Segment(
        after_forward - start, output_bytes, forward_peak, peak, left, while_forward=with_everything - after_forward
    )


def _head_segments(stage: Callable[[], StepContext], rules: StepRules, width: int) -> Segment:
    """Simulate the step's head; for a run, its peaks are at least those of a shorter step with larger chunks."""
    own = stage()
    loss, vocabulary = own.workload.loss, own.structure.shape.vocab_size
    segment = _head_segment(own, rules, width)
    logit = losses.logit_width(own.workload, head_is_trained=own.head_is_trained)
    positions = losses.positions_of_larger_chunks(
        losses.trained_positions(own.workload), vocabulary, loss.chunk_bytes, logit
    )
    if not loss.covers_shorter or positions is None:
        return segment
    shorter = replace(own.workload, loss=replace(loss, chunks_of=positions))
    other = _head_segment(replace(stage(), workload=shorter), rules, width)
    forward_peak = _max_by_total(segment.forward_peak, other.forward_peak)
    return replace(
        segment, forward_peak=forward_peak, backward_peak=_max_by_total(segment.backward_peak, other.backward_peak)
    )


def _head_segment(r: StepContext, rules: StepRules, width: int) -> Segment:
    """Simulate final norm, output head and loss, forward and backward."""
    tape, structure = r.tape, r.structure
    hidden = _input(r, width, needs_gradient=True)
    hidden_bytes = hidden.storage.size
    if not r.workload.holds_head:  # what comes back from the next device is the gradient
        return Segment(NOTHING, 0, NOTHING, BytesByGroup(activations=hidden_bytes), NOTHING)
    start = BytesByGroup(*tape.groups)
    outer = tape.enter_scope()
    normed = normalize(r, hidden, structure.final_norms[0]) if structure.final_norms else hidden
    opening_peak = BytesByGroup(*tape.peak_groups) - start
    tape.drop(hidden)
    tape.group = Group.LOSS
    loss = rules.loss(r, normed)
    tape.group = Group.ACTIVATIONS
    tape.leave_scope(outer, [loss])
    forward_peak = BytesByGroup(*tape.peak_groups) - start
    r.end_forward()
    tape.start_phase()
    tape.backward(loss, share(tape.allocate(4)))  # which the caller holds
    peak = BytesByGroup(*tape.peak_groups) - start
    left = BytesByGroup(loss=tape.groups[Group.LOSS], gradients=tape.groups[Group.GRADIENTS] - hidden_bytes)
    return Segment(NOTHING, 0, forward_peak, peak, left, opening_peak=opening_peak)


def _tied_gradient(workload: Workload, structure: ModelStructure) -> int:
    """Where head and embedding share a weight they share its gradient."""
    shape = structure.shape
    trains_both = not workload.trains_adapter and workload.holds_embeddings and workload.holds_head
    if not trains_both or workload.accumulates or not shape.tie_word_embeddings:
        return 0
    return shape.vocab_size * shape.hidden_size * workload.precision.embeddings
