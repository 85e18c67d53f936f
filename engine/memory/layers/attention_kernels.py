"""softmax(QKᵀ)V, operation by operation, for each kernel that may be taken."""

from engine.memory.autograd.operations import (
    add,
    assign,
    cast,
    clone,
    dropout,
    pointwise,
    scale,
)
from engine.memory.autograd.tensors import Gradients, Storage, Value, needs_gradient
from engine.memory.layers.step_context import StepContext
from engine.memory.layers.tiled_attention import attend_row_by_row

_EFFICIENT_ROW_MULTIPLE = 32  # the memory-efficient kernel keeps its row statistics in blocks
_MASK_COLUMN_MULTIPLE = 16  # and wants masks aligned
# Source: `eager_attention_forward` in transformers/models/gpt2/modeling_gpt2.py.
_SOFTMAX_AS_WIDE_AS_SCORES = frozenset({"gpt2"})


def attention_kernel(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Attend with the kernel of this step."""
    tape, workload = r.tape, r.workload
    target = workload.precision.autocast
    with tape.scope() as scope:
        if workload.attention == "eager":
            return scope.returns(_eager(r, query, key, value))
        if target is not None:
            query, key, value = (cast(tape, part, target) for part in (query, key, value))
        if workload.attention == "math":
            return scope.returns(_math(r, query, key, value))
        if workload.attention == "tiled":
            return scope.returns(attend_row_by_row(r, query, key, value))
        return scope.returns(_fused(r, query, key, value))


def _repeat_heads(r: StepContext, x: Value) -> Value:
    """Copy each key-value head for the query heads that share it (`repeat_kv`); its gradient is summed back."""
    shape, tape = r.structure.shape, r.tape
    groups = shape.num_attention_heads // shape.num_key_value_heads
    if groups == 1:
        return tape.alias(x)
    back = x.elements * x.width
    return tape.operation((x,), elements=x.elements * groups, width=x.width, backward=lambda _: (tape.allocate(back),))


def _score_elements(r: StepContext) -> int:
    workload = r.workload
    return workload.batch_size * r.structure.shape.num_attention_heads * workload.length * workload.key_length


def _eager(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Attention written out: scores of every head, batch × heads × length × length, several times.

    Keeps the probabilities at 32 bits and again at compute precision.

    Source: `eager_attention_forward`, transformers/models/llama/modeling_llama.py.
    """
    tape, shape, workload = r.tape, r.structure.shape, r.workload
    with tape.scope() as scope:
        key, value = _repeat_heads(r, key), _repeat_heads(r, value)
        raw = _matmul(r, query, key, _score_elements(r))
        scores = scale(tape, raw)
        tape.drop(raw)
        if shape.attn_logit_softcapping is not None:
            scores = assign(tape, scores, _soft_capped(r, scores))
        mask = r.small(workload.length * workload.key_length, scores.width)
        masked = add(tape, scores, mask)
        tape.drop(scores)
        probabilities = _softmax(r, masked)
        tape.drop(masked)
        if shape.attention_dropout > 0:
            probabilities = assign(tape, probabilities, dropout(tape, probabilities, on_cuda=r.on_cuda))
        answer = _matmul(r, probabilities, value, query.elements)
        return scope.returns(assign(tape, answer, clone(tape, answer)))


def _math(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """PyTorch's fallback where no fused kernel fits: the same written out, at 32 bits throughout.

    Source: `_scaled_dot_product_attention_math`, aten/src/ATen/native/transformers/attention.cpp.
    """
    tape, width = r.tape, query.width
    with tape.scope() as scope:
        query, key, value = (cast(tape, part, 4) for part in (query, key, value))
        query, key = scale(tape, query), scale(tape, key)
        key, value = _repeat_heads(r, key), _repeat_heads(r, value)
        raw = _matmul(r, query, key, _score_elements(r))
        masked = add(tape, raw, r.small(r.workload.length * r.workload.key_length, 4))
        tape.drop(raw)
        probabilities = _softmax(r, masked)
        tape.drop(masked)
        answer = _matmul(r, probabilities, value, query.elements)
        narrow_answer = cast(tape, answer, width)
        return scope.returns(clone(tape, narrow_answer))


def _matmul(r: StepContext, left: Value, right: Value, elements: int) -> Value:
    """Batched product: keeps both sides where the other needs a gradient."""
    tape, target = r.tape, r.workload.precision.autocast
    with tape.scope() as scope:
        if target is not None and r.workload.attention == "eager":
            left, right = cast(tape, left, target), cast(tape, right, target)
        left_needs, right_needs = needs_gradient(left), needs_gradient(right)
        left_size, right_size = left.elements * left.width, right.elements * right.width

        def backward(_: Storage) -> Gradients:
            of_left = tape.allocate(left_size) if left_needs else None
            of_right = tape.allocate(right_size) if right_needs else None
            return (of_left, of_right)

        saved = [part for part, needed in ((left, right_needs), (right, left_needs)) if needed]
        result = tape.operation((left, right), elements=elements, width=left.width, backward=backward, saved=saved)
        return scope.returns(result)


def _soft_capped(r: StepContext, scores: Value) -> Value:
    """Gemma 2: divide, tanh, multiply."""
    tape = r.tape
    with tape.scope() as scope:
        divided = scale(tape, scores)
        bounded = pointwise(tape, divided, saves_result=True)
        tape.drop(divided)
        return scope.returns(scale(tape, bounded))


def _softmax(r: StepContext, scores: Value) -> Value:
    """Softmax at 32 bits, then back. CUDA does both in one kernel from float16 alone; else the scores are cast before.

    Source: `softmax` in aten/src/ATen/native/SoftMax.cpp; `grad * output` in cuda/SoftMax.cu.
    """
    tape, width = r.tape, scores.width
    if r.structure.shape.model_type in _SOFTMAX_AS_WIDE_AS_SCORES:
        return pointwise(tape, scores, saves_result=True, scratch=1 if r.on_cuda else 0)
    fused_cast = r.on_cuda and r.workload.precision.is_float16 and width == 2
    with tape.scope() as scope:
        wide = tape.alias(scores) if fused_cast else cast(tape, scores, 4)
        back = wide.elements * wide.width
        product = wide.elements * 4 if r.on_cuda else 0

        def backward(_: Storage) -> Gradients:
            held = tape.allocate(product)
            of_scores = tape.allocate(back)
            tape.release(held)
            return (of_scores,)

        probabilities = tape.operation((wide,), elements=wide.elements, width=4, backward=backward, saves_result=True)
        tape.drop(wide)
        return scope.returns(cast(tape, probabilities, width))


def _fused(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """A kernel that never writes the scores out: keeps queries, keys, values, its answer and one number a row.

    Flash attention accumulates the gradient of queries at 32 bits, and writes those of keys and values for every query
    head before it sums them. The memory-efficient kernel needs equal head counts, so keys and values are copied first;
    it takes a mask, which is written out as numbers for each layer.

    Source: Dao et al. 2022 (arXiv:2205.14135); aten/src/ATen/native/transformers/cuda/attention_backward.cu;
    csrc/flash_attn/flash_api.cpp of Dao-AILab/flash-attention.
    """
    tape, shape, workload = r.tape, r.structure.shape, r.workload
    kernel = workload.attention
    with tape.scope() as scope:
        if workload.expands_key_values:
            key, value = _repeat_heads(r, key), _repeat_heads(r, value)
        width = query.width
        length = workload.length
        if kernel == "efficient":
            length = -(-length // _EFFICIENT_ROW_MULTIPLE) * _EFFICIENT_ROW_MULTIPLE
        rows = workload.batch_size * shape.num_attention_heads * length
        sizes = [part.elements * width for part in (query, key, value)]
        statistics = tape.value(rows, 4)
        extra = [_written_out_mask(r, width)] if workload.masked else []
        has_groups = query.elements * workload.key_length > key.elements * workload.length

        def backward(_: Storage) -> Gradients:
            scratch = 0
            if kernel == "flash":
                scratch = query.elements * 4 + rows * 4 + (2 * sizes[0] if has_groups else 0)
            elif kernel == "efficient":
                scratch = rows * 4
            held = tape.allocate(scratch)
            gradients = [tape.allocate(size) for size in sizes]
            tape.release(held)
            return gradients

        answer = tape.operation(
            (query, key, value),
            elements=query.elements,
            width=width,
            backward=backward,
            saved=(query, key, value, statistics, *extra),
            saves_result=True,
        )
        return scope.returns(answer)


def _written_out_mask(r: StepContext, width: int) -> Value:
    """True and false as 0 and -inf, again in each layer (`convert_boolean_attn_mask`), columns aligned on CUDA."""
    workload = r.workload
    columns = workload.key_length
    if r.on_cuda:
        columns = -(-columns // _MASK_COLUMN_MULTIPLE) * _MASK_COLUMN_MULTIPLE
    return r.tape.value(workload.batch_size * workload.length * columns, width)
