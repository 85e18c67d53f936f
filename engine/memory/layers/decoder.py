"""One decoder layer: norms, attention or another mixer, feed-forward and residual sums.

State spaces, convolutions, latent and linear attention are not simulated operation by operation: there are dozens of them.
What is known of each are its products, which hold most of what training keeps. What lies between these is taken to keep
one activation a product, and a recurrence the states that it is known to write out.
"""

import math
from collections.abc import Sequence

from engine.memory.autograd.operations import add, assign, cast, pointwise
from engine.memory.autograd.tensors import Gradients, Storage, Value
from engine.memory.layers.attention import attend
from engine.memory.layers.feedforward import feed_forward
from engine.memory.layers.norms import normalize
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.registry import project
from engine.memory.structure import LayerStructure
from engine.models.shape import ModuleShape

_STATE = "A_log"  # the recurrence of a state space has a parameter of this name: (channels, states) or (heads,)
_CHUNK_TOKENS = 256  # where states are kept by heads, each token meets those of its chunk


def decoder_layer(r: StepContext, x: Value, layer: LayerStructure) -> Value:
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


def _parallel(r: StepContext, x: Value, layer: LayerStructure) -> Value:
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


def _of_another_kind(r: StepContext, x: Value, layer: LayerStructure) -> Value:
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


def _normalized(r: StepContext, x: Value, norms: Sequence[ModuleShape]) -> Value:
    """Apply the norm at this place, where the layer has one."""
    return normalize(r, x, norms[0]) if norms else r.tape.alias(x)


def residual_width(r: StepContext) -> int:
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


def mix(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Every product in turn, each on the hidden states or on what the one before gave."""
    tape, hidden = r.tape, r.structure.shape.hidden_size
    with tape.scope() as scope:
        present = tape.alias(x)
        for module in layer.mixer:
            source = x if module.in_features == hidden else _resized(r, present, r.tokens * module.in_features)
            present = pointwise(tape, project(r, source, module))
        present = _recur(r, present, layer)
        result = _resized(r, present, x.elements)
        return scope.returns(cast(tape, result, x.width))


def _resized(r: StepContext, x: Value, elements: int) -> Value:
    """What reaches the next product: cut, gated or put together from what was there."""
    if x.elements == elements:
        return r.tape.alias(x)
    tape, size = r.tape, x.elements * x.width

    def backward(_: Storage) -> Gradients:
        return (tape.allocate(size),)

    return tape.operation((x,), elements=elements, width=x.width, backward=backward, saved=(x,))


def _recur(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """States of every token at 32 bits, as the PyTorch form of a selective scan writes them out: decays, inputs, sums.

    Source: `MambaMixer.slow_forward`, transformers/models/mamba/modeling_mamba.py; `segment_sum` in modeling_mamba2.py.
    """
    shapes = [module.bare_parameters[_STATE] for module in layer.others if _STATE in module.bare_parameters]
    if not shapes:
        return r.tape.alias(x)
    tape, state = r.tape, math.prod(shapes[0]) * (_CHUNK_TOKENS if len(shapes[0]) == 1 else 1)
    with tape.scope() as scope:
        decays = pointwise(tape, _resized(r, cast(tape, x, 4), r.tokens * state), saves_result=True)
        inputs = _resized(r, x, r.tokens * state)
        summed = add(tape, decays, cast(tape, inputs, 4))
        return scope.returns(cast(tape, _resized(r, pointwise(tape, summed), x.elements), x.width))
