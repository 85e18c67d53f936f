"""A decoder: what it computes before its first layer, then norms, attention or another mixer, feed-forward and sums.

State spaces, convolutions, latent and linear attention are not simulated operation by operation: there are dozens of them.
Known of each are its matrix products, which hold most of what training keeps. Everything between them is assumed to keep
one activation a product, and a recurrence the states that it is known to write out.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from loratory.engine.memory.autograd.tensors import Parameter, Value
from loratory.engine.memory.layers.attention_kernels import attention_kernel
from loratory.engine.memory.layers.feedforward import feed_forward
from loratory.engine.memory.layers.modules import normalize
from loratory.engine.memory.layers.step_context import StepContext, in_scope
from loratory.engine.memory.methods.registry import MEMORY_RULES, project, project_each
from loratory.engine.memory.structure import LayerStructure
from loratory.engine.memory.workload import Workload
from loratory.engine.models.shape import ModuleShape

_STATE = "A_log"  # the recurrence of a state space has a parameter of this name: (channels, states) or (heads,)
_CHUNK_TOKENS = 256  # where states are kept by heads, each token meets those of its chunk


class Passing(NamedTuple):
    """Bytes that are alive with the first layer's input, but not on the tape."""

    inputs_embeds: int  # a variable of the model's forward pass, alive until its last layer has run
    arguments: int  # positions and mask, which every layer gets; checkpointed layers hold on to them


def embed(r: StepContext) -> tuple[Value, Passing]:
    """Look the tokens up; the angles of the rotary embedding stay through the step.

    Source: `LlamaModel.forward`, which holds `inputs_embeds` and `position_embeddings` while the layers run;
    `GPTBigCodeModel.forward` drops out of the embeddings.
    """
    tape, workload, shape = r.tape, r.workload, r.structure.shape
    width = workload.precision.embeddings
    virtual_inputs = workload.virtual_inputs if workload.holds_embeddings else 0
    x = tape.value((workload.tokens - workload.batch_size * virtual_inputs) * shape.hidden_size, width)
    if not workload.trains_adapter and workload.holds_embeddings:
        weight = r.weight(shape.vocab_size * shape.hidden_size, width)
        x.producer = tape.node((weight,))
    elif virtual_inputs:
        x = _after_virtual_inputs(r, x)
    elif input_is_leaf(workload):
        # A leaf keeps its own gradient.
        x.producer = Parameter(x.elements, width, trainable=True)
    if shape.rotary:
        angles = r.position_count * shape.head_dim
        tape.use(r.position_count * 8, angles * 4 * 4)
        tape.value(angles, width)
        tape.value(angles, width)
    if workload.adapter.traits.virtual_tokens == "keys_and_values":
        # The attention mask with a column for each learned position, and the part of it that is new.
        columns = workload.key_length + workload.adapter.num_virtual_tokens
        mask = tape.value(workload.batch_size * columns, 4)
        r.hold_until_forward_ends(mask)
        tape.drop(mask)
    # Learned positions are variables of the model's forward pass too.
    inputs_embeds = 0 if shape.rotary else r.position_count * shape.hidden_size * width
    if shape.embedding_dropout > 0:
        inputs_embeds += x.storage.size
        x = r.drop_out(x, shape.embedding_dropout)
    return x, Passing(inputs_embeds, _argument_bytes(r))


def _after_virtual_inputs(r: StepContext, embeddings: Value) -> Value:
    """Put learned embeddings before those of each row; where layers are checkpointed, the latter are a leaf."""
    # Source: `PeftModelForCausalLM.forward`, peft/peft_model.py, whose variables last as long as the forward pass.
    tape, workload = r.tape, r.workload
    is_leaf = workload.checkpointing
    if is_leaf:
        embeddings.producer = Parameter(embeddings.elements, embeddings.width, trainable=True)
    rule = MEMORY_RULES[workload.adapter.method]
    learned = tape.in_scope(lambda: rule.virtual_inputs(r))
    prompts = tape.operation((learned,), workload.batch_size * learned.elements, learned.width)
    tape.drop(learned)
    prompts = tape.assign(prompts, tape.cast(prompts, embeddings.width))
    x = tape.concatenate(prompts, embeddings, saved=(embeddings,) if is_leaf else ())
    r.hold_until_forward_ends(prompts)
    tape.drop(prompts, embeddings)
    return x


def input_is_leaf(workload: Workload) -> bool:
    """Return whether the first layer's input takes part in the backward pass although nothing before it is trained.

    Checkpointed layers need that (`enable_input_require_grads`), and the Trainer sees to it. What arrives from another
    device has trained layers before it.
    """
    if not workload.holds_embeddings:
        return True
    return workload.checkpointing and workload.trains_adapter and not workload.virtual_inputs


def _argument_bytes(r: StepContext) -> int:
    workload = r.workload
    # Joined rows bring their positions along.
    positions = 0 if workload.joined else r.position_count * 8
    mask = workload.batch_size * workload.length * workload.key_length
    # Layers that see a window have a mask of their own.
    mask *= max(1, len(set(r.structure.shape.layer_types)))
    if workload.attention == "eager":
        return positions + mask * workload.precision.embeddings
    return positions + (mask if workload.masked else 0)


@in_scope
def decoder_layer(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """x + attention(norm(x)), or another mixer, then the same with the feed-forward block where the layer has one.

    Source: `LlamaDecoderLayer.forward`; four norms as in `Gemma2DecoderLayer`; one input for both as in `FalconDecoderLayer`.
    """
    tape, norms, attends = r.tape, layer.norms, layer.attention_output is not None
    if attends and r.structure.parallel:
        return _parallel(r, x, layer)
    sandwich = attends and len(norms) >= 4
    if attends or layer.mixer:
        normed = _normalized(r, x, norms[:1])
        mixed = tape.assign(normed, _attend(r, normed, layer) if attends else _mix(r, normed, layer))
        if sandwich:
            mixed = tape.assign(mixed, normalize(r, mixed, norms[1]))
        middle = tape.assign(mixed, tape.add(x, mixed))
    else:
        middle = tape.alias(x)
    if not layer.has_feed_forward:
        return middle
    normed = _normalized(r, middle, norms[2:3] if sandwich else norms[1:2])
    fed = tape.assign(normed, feed_forward(r, normed, layer))
    if sandwich:
        fed = tape.assign(fed, normalize(r, fed, norms[3]))
    return tape.add(middle, fed)


def _parallel(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    tape, norms = r.tape, layer.norms
    normed = _normalized(r, x, norms[:1])
    attended = _attend(r, normed, layer)
    other = normalize(r, x, norms[1]) if len(norms) > 1 else tape.alias(normed)
    fed = feed_forward(r, other, layer)
    tape.drop(normed, other)
    both = tape.add(attended, fed)
    tape.drop(attended, fed)
    return tape.add(both, x)


def _normalized(r: StepContext, x: Value, norms: Sequence[ModuleShape]) -> Value:
    """Apply the first of these norms, where the layer has one."""
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


@in_scope
def _attend(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    tape, shape = r.tape, r.structure.shape
    query, key, value = _queries_keys_values(r, x, layer)
    by_heads = r.kernel_answers_by_heads
    is_transposed = by_heads or shape.rotary
    # `view(batch, length, heads, -1).transpose(1, 2)`: a gradient laid out by heads is copied back into rows.
    query = tape.assign(query, tape.view(query, copies_gradient=is_transposed))
    key = tape.assign(key, tape.view(key, copies_gradient=is_transposed))
    value = tape.assign(value, tape.view(value, copies_gradient=by_heads))
    if layer.head_norms:
        query = tape.assign(query, normalize(r, query, layer.head_norms[0]))
        key = tape.assign(key, normalize(r, key, layer.head_norms[-1]))
    if shape.rotary:
        rotated_query, rotated_key = _rotate(r, query), _rotate(r, key)
        tape.drop(query, key)
        query, key = rotated_query, rotated_key
    if r.workload.adapter.traits.virtual_tokens == "keys_and_values":
        key, value = tape.assign(key, _after_prefix(r, key)), tape.assign(value, _after_prefix(r, value))
    answer = attention_kernel(r, query, key, value)
    assert layer.attention_output is not None
    result = project(r, answer, layer.attention_output)
    return r.drop_out(result, shape.hidden_dropout)


def _queries_keys_values(r: StepContext, x: Value, layer: LayerStructure) -> tuple[Value, Value, Value]:
    """Three projections, or one that is cut in three."""
    shape = r.structure.shape
    projected = list(project_each(r, x, layer.attention_inputs))
    if len(projected) == 3:
        query, key, value = projected
    else:
        queries = r.tokens * shape.num_attention_heads * shape.head_dim
        keys = r.tokens * shape.num_key_value_heads * shape.head_dim
        query, key, value = (r.tape.view(projected[0], count) for count in (queries, keys, keys))
        r.tape.drop(projected[0])
    return query, key, value


@in_scope
def _rotate(r: StepContext, x: Value) -> Value:
    """Rotary position embedding: `x * cos + rotate_half(x) * sin`. A fused kernel needs one new tensor."""
    # Source: `apply_rotary_pos_emb`, transformers/models/llama/modeling_llama.py.
    tape = r.tape
    if r.workload.layer_kernels == "liger":
        return tape.scale(x)
    angles = r.small(r.position_count * r.structure.shape.head_dim, x.width)
    straight = tape.multiply(x, angles)
    first, second = tape.view(x, x.elements // 2), tape.view(x, x.elements // 2)
    minus_second = tape.scale(second)
    half_rotation = tape.concatenate(minus_second, first)
    tape.drop(minus_second, first, second)
    crosswise = tape.assign(half_rotation, tape.multiply(half_rotation, angles))
    return tape.add(straight, crosswise)


def _after_prefix(r: StepContext, own: Value) -> Value:
    """Return the keys or values with the learned ones before them: a new tensor in the cache."""
    # Source: `DynamicLayer.update`, transformers/cache_utils.py, which PEFT fills before the forward pass.
    prefix = r.prefixes.pop()
    result = r.tape.assign(prefix, r.tape.concatenate(prefix, own))
    r.hold_until_forward_ends(result)
    return result


@in_scope
def _mix(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """Run every product in turn, each on the hidden states or on what the one before gave."""
    tape, hidden = r.tape, r.structure.shape.hidden_size
    present = tape.alias(x)
    for module in layer.mixer:
        source = x if module.in_features == hidden else _resized(r, present, r.tokens * module.in_features)
        present = tape.pointwise(project(r, source, module))
    present = _recur(r, present, layer)
    return tape.cast(_resized(r, present, x.elements), x.width)


def _resized(r: StepContext, x: Value, elements: int) -> Value:
    """Return the input of the next product: cut, gated or concatenated from x."""
    return r.tape.alias(x) if x.elements == elements else r.tape.operation((x,), elements, x.width, saved=(x,))


@in_scope
def _recur(r: StepContext, x: Value, layer: LayerStructure) -> Value:
    """States of every token at 32 bits, as the PyTorch form of a selective scan writes them out: decays, inputs, sums."""
    # Source: `MambaMixer.slow_forward`, transformers/models/mamba/modeling_mamba.py; `segment_sum` in modeling_mamba2.py.
    shapes = [module.bare_parameters[_STATE] for module in layer.others if _STATE in module.bare_parameters]
    if not shapes:
        return r.tape.alias(x)
    tape = r.tape
    elements = r.tokens * math.prod(shapes[0]) * (_CHUNK_TOKENS if len(shapes[0]) == 1 else 1)
    decays = tape.pointwise(_resized(r, tape.cast(x, 4), elements), saves_result=True)
    states = tape.add(decays, tape.cast(_resized(r, x, elements), 4))
    return tape.cast(_resized(r, tape.pointwise(states), x.elements), x.width)
