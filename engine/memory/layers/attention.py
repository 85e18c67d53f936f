"""The attention block around its kernel: projections, norms over heads, rotation, a learned prefix."""

from engine.memory.autograd.operations import (
    add,
    assign,
    concatenate,
    dropout,
    multiply,
    narrow,
    scale,
    split_heads,
)
from engine.memory.autograd.tensors import Value
from engine.memory.layers.attention_kernels import attention_kernel
from engine.memory.layers.norms import normalize
from engine.memory.layers.step_context import StepContext
from engine.memory.methods.registry import project
from engine.memory.structure import LayerStructure


def attend(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Project, rotate, attend, project back."""
    tape, shape = r.tape, r.structure.shape
    with tape.scope() as scope:
        query, key, value = _queries_keys_values(r, x, layer)
        by_heads = r.kernel_answers_by_heads
        turned = by_heads or shape.rotary
        query = assign(tape, query, split_heads(tape, query, copies_gradient=turned))
        key = assign(tape, key, split_heads(tape, key, copies_gradient=turned))
        value = assign(tape, value, split_heads(tape, value, copies_gradient=by_heads))
        if layer.head_norms:
            query = assign(tape, query, normalize(r, query, layer.head_norms[0]))
            key = assign(tape, key, normalize(r, key, layer.head_norms[-1]))
        if shape.rotary:
            rotated_query, rotated_key = rotate(r, query), rotate(r, key)
            tape.drop(query, key)
            query, key = rotated_query, rotated_key
        if r.workload.adapter.traits.virtual_tokens == "keys_and_values":
            key, value = assign(tape, key, _after_prefix(r, key)), assign(tape, value, _after_prefix(r, value))
        answer = attention_kernel(r, query, key, value)
        assert layer.attention_output is not None
        result = project(r, answer, layer.attention_output)
        if shape.hidden_dropout > 0:
            result = assign(tape, result, dropout(tape, result, on_cuda=r.on_cuda))
        return scope.returns(result)


def _queries_keys_values(r: StepContext, x: Value, layer: LayerStructure) -> tuple[Value, Value, Value]:
    """Three projections, or one that is cut in three."""
    tape, shape = r.tape, r.structure.shape
    projected = [project(r, x, module) for module in layer.attention_inputs]
    queries = r.tokens * shape.num_attention_heads * shape.head_dim
    keys = r.tokens * shape.num_key_value_heads * shape.head_dim
    if len(projected) == 3:
        query, key, value = projected
        return query, key, value
    together = projected[0]
    query, key, value = (narrow(tape, together, count) for count in (queries, keys, keys))
    tape.drop(together)
    return query, key, value


def rotate(r: StepContext, x: Value) -> Value:
    """Rotary position embedding: `x * cos + rotate_half(x) * sin`. A fused kernel needs one new tensor.

    Source: `apply_rotary_pos_emb`, transformers/models/llama/modeling_llama.py.
    """
    tape = r.tape
    if r.workload.fused_norms:
        return scale(tape, x)
    angles = r.small(r.position_count * r.structure.shape.head_dim, x.width)
    with tape.scope() as scope:
        straight = multiply(tape, x, angles)
        half = x.elements // 2
        first, second = narrow(tape, x, half), narrow(tape, x, half)
        negated = scale(tape, second)
        turned = concatenate(tape, negated, first)
        tape.drop(negated, first, second)
        crosswise = multiply(tape, turned, angles)
        tape.drop(turned)
        result = add(tape, straight, crosswise)
        return scope.returns(result)


def _after_prefix(r: StepContext, own: Value) -> Value:
    """Keys or values with the learned ones before them: a new tensor in the cache.

    Source: `DynamicLayer.update`, transformers/cache_utils.py, which PEFT fills before the forward pass.
    """
    prefix = r.prefixes.pop()
    result = concatenate(r.tape, prefix, own)
    r.tape.drop(prefix)
    r.hold_until_forward_ends(result)
    return result
