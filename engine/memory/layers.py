"""One decoder layer: norms, attention, feed-forward and residual sums."""

from collections.abc import Sequence

from engine.memory.attention import attend
from engine.memory.feedforward import feed_forward
from engine.memory.mixers import mix
from engine.memory.norms import normalize
from engine.memory.operations import add, assign
from engine.memory.rehearsal import Rehearsal
from engine.memory.structure import LayerStructure
from engine.memory.tensors import Value
from engine.models.shape import ModuleShape


def decoder_layer(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
    """x + attention(norm(x)), then the same with the feed-forward block.

    Source: `LlamaDecoderLayer.forward`; four norms as in `Gemma2DecoderLayer`; one input for both as in `FalconDecoderLayer`.
    """
    if layer.mixer or layer.attention_output is None:
        return _of_another_kind(r, x, layer)
    if r.structure.parallel:
        return _parallel(r, x, layer)
    tape, norms = r.tape, layer.norms
    sandwich = len(norms) >= 4
    with tape.scope() as scope:
        normed = _normalized(r, x, norms[:1])
        attended = attend(r, normed, layer)
        tape.drop(normed)
        if sandwich:
            attended = assign(r.tape, attended, normalize(r, attended, norms[1]))
        middle = add(tape, x, attended)
        tape.drop(attended)
        normed = _normalized(r, middle, norms[2:3] if sandwich else norms[1:2])
        fed = feed_forward(r, normed, layer)
        tape.drop(normed)
        if sandwich:
            fed = assign(r.tape, fed, normalize(r, fed, norms[3]))
        return scope.returns(add(tape, middle, fed))


def _parallel(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
    tape, norms = r.tape, layer.norms
    with tape.scope() as scope:
        normed = _normalized(r, x, norms[:1])
        attended = attend(r, normed, layer)
        other = normalize(r, x, norms[1]) if len(norms) > 1 else tape.alias(normed)
        fed = feed_forward(r, other, layer)
        tape.drop(normed, other)
        both = add(tape, attended, fed)
        tape.drop(attended, fed)
        return scope.returns(add(tape, both, x))


def _of_another_kind(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
    """x + mixer(norm(x)), then the feed-forward block where the layer has one."""
    tape, norms = r.tape, layer.norms
    with tape.scope() as scope:
        middle = tape.alias(x)
        if layer.mixer:
            normed = _normalized(r, x, norms[:1])
            mixed = mix(r, normed, layer)
            tape.drop(normed)
            middle = assign(tape, middle, add(tape, x, mixed))
            tape.drop(mixed)
        if not layer.has_feed_forward:
            return scope.returns(middle)
        normed = _normalized(r, middle, norms[1:2])
        fed = feed_forward(r, normed, layer)
        tape.drop(normed)
        return scope.returns(add(tape, middle, fed))


def _normalized(r: Rehearsal, x: Value, norms: Sequence[ModuleShape]) -> Value:
    """Where a layer has a norm at this place; others leave x as it is."""
    return normalize(r, x, norms[0]) if norms else r.tape.alias(x)


def residual_width(r: Rehearsal) -> int:
    """Bytes per element of the hidden states between layers, found by playing layers forward on an empty tape.

    A sum is as wide as its widest part: norms, quantized layers and adapters may each widen what passes through them.
    """
    precision = r.workload.precision
    if r.workload.base == "dense" and precision.autocast is None:
        return max(precision.embeddings, precision.weights, precision.norms)
    width = precision.embeddings
    r.tape.records_gradients = False
    for _ in range(2):
        x = r.tape.value(r.tokens * r.structure.shape.hidden_size, width)
        r.put_prefixes(1)
        width = decoder_layer(r, x, r.structure.layers[0]).width
    return width
