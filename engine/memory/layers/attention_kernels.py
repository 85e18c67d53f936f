"""softmax(QKᵀ)V, operation by operation, for each kernel that may be taken."""

import functools
from typing import NamedTuple

from loratory.engine.config.rules import QUERY_TILE
from loratory.engine.memory.autograd.tape import Tape
from loratory.engine.memory.autograd.tensors import Storage, Value, needs_gradient, share
from loratory.engine.memory.layers.step_context import StepContext, in_scope

# Source: `eager_attention_forward` in transformers/models/gpt2/modeling_gpt2.py.
_SOFTMAX_AS_WIDE_AS_SCORES = frozenset({"gpt2"})


@in_scope
def attention_kernel(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Attend with the kernel of this step."""
    attention, target = r.workload.attention, r.workload.precision.autocast
    if attention == "eager":
        return _eager(r, query, key, value)
    if target is not None:
        query, key, value = (r.tape.cast(part, target) for part in (query, key, value))
    if attention == "math":
        return _math(r, query, key, value)
    if attention == "tiled":
        return _attend_row_by_row(r, query, key, value)
    return _fused(r, query, key, value)


def _repeat_heads(r: StepContext, x: Value) -> Value:
    """Copy each key-value head for the query heads that share it (`repeat_kv`); its gradient is summed back."""
    groups = r.structure.shape.num_attention_heads // r.structure.shape.num_key_value_heads
    return r.tape.alias(x) if groups == 1 else r.tape.operation((x,), x.elements * groups, x.width)


def _score_elements(r: StepContext) -> int:
    workload = r.workload
    return workload.batch_size * r.structure.shape.num_attention_heads * workload.length * workload.key_length


@in_scope
def _eager(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Attention written out: scores of every head, batch × heads × length × length, several times.

    Keeps the probabilities at 32 bits and again at compute precision.

    Source: `eager_attention_forward`, transformers/models/llama/modeling_llama.py; Gemma 2 caps the scores.
    """
    tape = r.tape
    key, value = _repeat_heads(r, key), _repeat_heads(r, value)
    scores = _matmul(r, query, key, _score_elements(r))
    scores = tape.assign(scores, tape.scale(scores))
    if r.structure.shape.attn_logit_softcapping is not None:
        scores = tape.assign(scores, tape.soft_cap(tape.alias(scores)))
    answer = _weigh(r, scores, value, query.elements)
    return tape.assign(answer, tape.clone(answer))


@in_scope
def _math(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """PyTorch's fallback where no fused kernel fits: the same written out, at 32 bits throughout."""
    # Source: `_scaled_dot_product_attention_math`, aten/src/ATen/native/transformers/attention.cpp.
    tape, width = r.tape, query.width
    query, key, value = (tape.cast(part, 4) for part in (query, key, value))
    query, key = tape.scale(query), tape.scale(key)
    key, value = _repeat_heads(r, key), _repeat_heads(r, value)
    answer = _weigh(r, _matmul(r, query, key, _score_elements(r)), value, query.elements)
    return tape.clone(tape.cast(answer, width))


def _weigh(r: StepContext, scores: Value, value: Value, elements: int) -> Value:
    """Mask the scores, which no other variable holds, and weigh values with their probabilities."""
    tape, workload = r.tape, r.workload
    masked = tape.assign(scores, tape.add(scores, r.small(workload.length * workload.key_length, scores.width)))
    probabilities = tape.assign(masked, _softmax(r, masked))
    if workload.attention == "eager":
        probabilities = r.drop_out(probabilities, r.structure.shape.attention_dropout)
    return _matmul(r, probabilities, value, elements)


@in_scope
def _matmul(r: StepContext, left: Value, right: Value, elements: int) -> Value:
    """Batched product: keeps both sides where the other needs a gradient."""
    tape, target = r.tape, r.workload.precision.autocast
    if target is not None and r.workload.attention == "eager":
        left, right = tape.cast(left, target), tape.cast(right, target)
    saved = [*([left] if needs_gradient(right) else []), *([right] if needs_gradient(left) else [])]
    return tape.operation((left, right), elements, left.width, saved=saved)


@in_scope
def _softmax(r: StepContext, scores: Value) -> Value:
    """Softmax at 32 bits, then back. CUDA does both in one kernel from float16 alone; else the scores are cast before."""
    # Source: `softmax` in aten/src/ATen/native/SoftMax.cpp; `grad * output` in cuda/SoftMax.cu.
    tape, width = r.tape, scores.width
    if r.structure.shape.model_type in _SOFTMAX_AS_WIDE_AS_SCORES:
        return tape.pointwise(scores, saves_result=True, scratch=1 if r.on_cuda else 0)
    fused_cast = r.on_cuda and r.workload.precision.is_float16 and width == 2
    wide = tape.alias(scores) if fused_cast else tape.cast(scores, 4)
    scratch = (wide.elements * 4 if r.on_cuda else 0,)
    probabilities = tape.operation((wide,), wide.elements, 4, scratch=scratch, saves_result=True)
    tape.drop(wide)
    return tape.cast(probabilities, width)


@in_scope
def _fused(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Attend with a kernel that never writes the scores out: keeps queries, keys, values, its output and a number a row.

    Flash attention accumulates the gradient of queries at 32 bits, and writes those of keys and values for every query
    head before it sums them. The memory-efficient kernel needs equal head counts, so keys and values are copied first;
    it takes a mask, which is written out as numbers for each layer.

    Source: Dao et al. 2022 (arXiv:2205.14135); aten/src/ATen/native/transformers/cuda/attention_backward.cu;
    csrc/flash_attn/flash_api.cpp of Dao-AILab/flash-attention.
    """
    tape, workload = r.tape, r.workload
    if workload.expands_key_values:
        key, value = _repeat_heads(r, key), _repeat_heads(r, value)
    width, rows = query.width, workload.tokens * r.structure.shape.num_attention_heads
    statistics = tape.value(rows, 4)
    # Written out as 0 and -inf, in each layer (`convert_boolean_attn_mask`).
    mask_elements = workload.batch_size * workload.length * workload.key_length
    mask = [tape.value(mask_elements, width)] if workload.masked else []
    scratch = rows * 4 if workload.attention in ("flash", "efficient") else 0
    if workload.attention == "flash":
        has_groups = query.elements * workload.key_length > key.elements * workload.length
        scratch += query.elements * 4 + (2 * query.size if has_groups else 0)
    parts = (query, key, value)
    saved = (*parts, statistics, *mask)
    return tape.operation(parts, query.elements, width, scratch=(scratch,), saved=saved, saves_result=True)


class _Tile(NamedTuple):
    queries: int
    keys: int  # up to its last query


class _Row(NamedTuple):
    """What one row's attention is about: heads, key-value heads, tokens, head size, and bytes per element."""

    heads: int
    shared: int
    length: int
    size: int
    width: int
    stands_alone: bool  # its queries are contiguous in memory

    @property
    def query_elements(self) -> int:
        return self.heads * self.length * self.size

    @property
    def key_elements(self) -> int:
        return self.shared * self.length * self.size

    @property
    def tiles(self) -> list[_Tile]:
        """The last three. Each earlier one holds less at once, and nothing of it is left, so no peak is missed."""
        ends = [min(start + QUERY_TILE, self.length) for start in range(0, self.length, QUERY_TILE)]
        return [_Tile((end - 1) % QUERY_TILE + 1, end) for end in ends[-3:]]

    @property
    def has_one_tile(self) -> bool:
        return self.length <= QUERY_TILE

    @property
    def copies_queries(self) -> bool:
        return not (self.stands_alone and self.has_one_tile)

    def queries_of(self, tile: _Tile) -> int:
        """Elements."""
        return self.heads * tile.queries * self.size


@in_scope
def _attend_row_by_row(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Loratory's attention on the CPU: within each of the joined rows, in tiles of queries.

    Outputs of several rows are joined and laid out by tokens. Each step below mirrors one of the source.

    Source: `joined_attention` and `_TiledAttention`, engine/training/ops/attention.py.
    """
    tape, shape = r.tape, r.structure.shape
    heads, shared, lengths = shape.num_attention_heads, shape.num_key_value_heads, r.workload.row_lengths
    queries, keys, values = (_split_rows(r, part, len(lengths)) for part in (query, key, value))
    outputs = []
    for length in lengths:
        row = _Row(heads, shared, length, shape.head_dim, query.width, stands_alone=len(lengths) == 1)
        own = tape.alias(queries, elements=row.query_elements)
        own_keys, own_values = (tape.alias(part, elements=row.key_elements) for part in (keys, values))
        outputs.append(_attend_in_tiles(r, row, own, own_keys, own_values))
    joined = outputs[0] if len(outputs) == 1 else tape.concatenate(*outputs)
    # Variables of the function: rows' outputs live until it returns.
    return tape.clone(joined)


def _split_rows(r: StepContext, x: Value, rows: int) -> Value:
    """`x[0].split(lengths)`: views; the gradients of the rows are joined, and that again for the batch dimension."""
    result = r.tape.view(x)
    if needs_gradient(x) and r.tape.records_gradients:
        result.producer = node = r.tape.node((result,))
        node.parts = [] if rows > 1 else None  # kept apart until all have come
    return result


@in_scope
def _attend_in_tiles(r: StepContext, row: _Row, query: Value, key: Value, value: Value) -> Value:
    tape = r.tape
    parts = (query, key, value)
    if not row.has_one_tile:
        forward, backward = _peaks_above(row)
        tape.use(forward)
        output = tape.value(row.query_elements, row.width)
        return tape.operation_in_place(output, parts, lambda _: _gradients_of_row(tape, row, backward), parts)
    output, probabilities = _answer_in_tiles(tape, row)
    saved = (*parts, probabilities)
    return tape.operation_in_place(output, parts, lambda _: _gradients_in_tiles(tape, row), saved)


@functools.lru_cache(maxsize=4096)
def _peaks_above(row: _Row) -> tuple[int, int]:
    """Return how high a row of several tiles reaches above what is there before, forward and backward, results included.

    Its tiles are gone through once for all rows like this one: nothing of them is left, and a batch may have thousands.
    """
    forward, backward = Tape(), Tape()
    _answer_in_tiles(forward, row)
    _gradients_in_tiles(backward, row)
    return forward.peak, backward.peak


def _gradients_of_row(tape: Tape, row: _Row, above: int) -> list[Storage]:
    tape.use(above)
    return [
        tape.allocate(elements * row.width) for elements in (row.query_elements, row.key_elements, row.key_elements)
    ]


def _answer_in_tiles(tape: Tape, row: _Row) -> tuple[Value, Value]:
    """Return the output, and the probabilities of the last tile."""
    keys32 = tape.value(row.key_elements if row.width < 4 else 0, 4)
    output = tape.value(row.query_elements, row.width)
    probabilities = tape.value(0, 1)
    for tile in row.tiles:
        probabilities = tape.assign(probabilities, _probabilities(tape, row, tile))
        tape.use(row.queries_of(tile) * row.width)
    tape.drop(keys32)
    return output, probabilities


def _probabilities(tape: Tape, row: _Row, tile: _Tile) -> Value:
    """Compute queries at 32 bits, scores, their softmax, and that at the row's own precision."""
    query_copy = tape.value(row.queries_of(tile) if row.copies_queries else 0, row.width)
    queries = query_copy if row.width == 4 else tape.assign(query_copy, tape.value(row.queries_of(tile), 4))
    scores = tape.value(row.heads * tile.queries * tile.keys, 4)
    softmax = tape.value(scores.elements, 4)
    result = softmax if row.width == 4 else tape.assign(softmax, tape.value(scores.elements, row.width))
    tape.drop(queries, scores)
    return result


def _gradients_in_tiles(tape: Tape, row: _Row) -> tuple[Storage, Storage, Storage]:
    width = row.width
    grad_query = tape.allocate(row.query_elements * width)
    outer = tape.enter_scope()
    if not row.has_one_tile:
        tape.value(row.key_elements if width < 4 else 0, 4)  # keys at 32 bits
        tape.value(row.key_elements, 4)  # sums of the tiles' gradients
        tape.value(row.key_elements, 4)
    previous = [tape.value(0, 1) for _ in range(7)]
    for tile in row.tiles:
        # The variables of the tile before are released one by one, once the new value is there.
        variables = iter(previous)
        scores, key_elements = row.heads * tile.queries * tile.keys, row.shared * tile.keys * row.size
        query_elements = row.queries_of(tile) if row.copies_queries else 0
        probabilities = tape.value(0, 1) if row.has_one_tile else _probabilities(tape, row, tile)
        previous = [tape.assign(next(variables), probabilities)]
        # Queries, and gradients of outputs, probabilities, scores.
        for elements in (query_elements, query_elements, scores, scores):
            previous.append(tape.assign(next(variables), tape.value(elements, width)))
        tape.use(row.queries_of(tile) * width)
        for _ in ("keys", "values"):
            previous.append(tape.assign(next(variables), tape.value(key_elements, width)))
    if row.has_one_tile:
        grad_key, grad_value = (share(part.storage) for part in previous[-2:])
    else:
        grad_key, grad_value = tape.allocate(row.key_elements * width), tape.allocate(row.key_elements * width)
    tape.leave_scope(outer)
    return grad_query, grad_key, grad_value
