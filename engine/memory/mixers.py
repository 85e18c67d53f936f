"""Layers that mix tokens otherwise than by plain attention: state spaces, convolutions, latent or linear attention.

They are not played operation by operation, for there are dozens of them. What is known of each are its products, which hold
most of what training keeps; what stands between these is taken to keep one activation a product, and a recurrence the states
that it is known to write out.
"""

import math

from engine.memory.adapters import project
from engine.memory.operations import add, cast, pointwise
from engine.memory.rehearsal import Rehearsal
from engine.memory.structure import LayerStructure
from engine.memory.tensors import Gradients, Storage, Value

_STATE = "A_log"  # the recurrence of a state space has a parameter of this name: (channels, states) or (heads,)
_CHUNK_TOKENS = 256  # where states are kept by heads, each token meets those of its chunk


def mix(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
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


def _resized(r: Rehearsal, x: Value, elements: int) -> Value:
    """What reaches the next product: cut, gated or put together from what was there."""
    if x.elements == elements:
        return r.tape.alias(x)
    tape, size = r.tape, x.elements * x.width

    def backward(_: Storage) -> Gradients:
        return (tape.allocate(size),)

    return tape.operation((x,), elements=elements, width=x.width, backward=backward, saved=(x,))


def _recur(r: Rehearsal, x: Value, layer: LayerStructure) -> Value:
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
