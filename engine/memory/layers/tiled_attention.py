"""Loratory's attention on the CPU, row by row in tiles of queries.

Source: `joined_attention` and `_TiledAttention`, engine/training/ops/attention.py; each step below mirrors one there.
"""

from typing import NamedTuple

from engine.config.rules import QUERY_TILE
from engine.memory.autograd.operations import clone, concatenate
from engine.memory.autograd.tensors import Gradients, Storage, Value, needs_gradient
from engine.memory.layers.step_context import StepContext


class _Row(NamedTuple):
    """What one row's attention is about: heads, key-value heads, tokens, head size, and bytes per element."""

    heads: int
    shared: int
    length: int
    size: int
    width: int
    stands_alone: bool  # its queries are one stretch of memory

    @property
    def query_bytes(self) -> int:
        return self.heads * self.length * self.size * self.width

    @property
    def key_elements(self) -> int:
        return self.shared * self.length * self.size


class _Tile(NamedTuple):
    queries: int
    keys: int  # up to its last query


def attend_row_by_row(r: StepContext, query: Value, key: Value, value: Value) -> Value:
    """Attend within each of the joined rows; outputs of several rows are joined and laid out by tokens."""
    tape, shape = r.tape, r.structure.shape
    lengths = r.workload.row_lengths
    with tape.scope() as scope:
        queries, keys, values = (_split(r, part, len(lengths)) for part in (query, key, value))
        outputs = []
        for length in lengths:
            row = _Row(
                heads=shape.num_attention_heads,
                shared=shape.num_key_value_heads,
                length=length,
                size=shape.head_dim,
                width=query.width,
                stands_alone=len(lengths) == 1,
            )
            parts = (
                tape.alias(queries, elements=row.heads * length * row.size),
                tape.alias(keys, elements=row.key_elements),
                tape.alias(values, elements=row.key_elements),
            )
            outputs.append(_attend(r, row, *parts))
        joined = outputs[0] if len(outputs) == 1 else concatenate(tape, *outputs)
        # Variables of the function: rows' outputs live until it returns.
        return scope.returns(clone(tape, joined))


def _split(r: StepContext, x: Value, rows: int) -> Value:
    """`x[0].split(lengths)`: views; the gradients of the rows are joined, and that again for the batch dimension."""
    tape, size = r.tape, x.elements * x.width
    result = tape.alias(x)
    if needs_gradient(x) and tape.records_gradients:
        result.producer = tape.node((result,), lambda _: (tape.allocate(size),))
        result.producer = tape.gathering_node((result,), lambda _: (tape.allocate(size),), parts=rows)
    return result


def _tiles(length: int) -> list[_Tile]:
    """The last three tiles of a row. Each earlier one holds less at once, and nothing of it is left, so no peak is missed."""
    starts = range(0, length, QUERY_TILE)[-3:]
    return [_Tile(min(start + QUERY_TILE, length) - start, min(start + QUERY_TILE, length)) for start in starts]


def _attend(r: StepContext, row: _Row, query: Value, key: Value, value: Value) -> Value:
    tape = r.tape
    one_tile = row.length <= QUERY_TILE
    needs = [needs_gradient(part) for part in (query, key, value)]
    with tape.scope() as scope:
        keys32 = tape.value(row.key_elements if row.width < 4 else 0, 4)
        output = tape.value(row.heads * row.length * row.size, row.width)
        probabilities = tape.value(0, 1)
        for tile in _tiles(row.length):
            new = _probabilities(r, row, tile)
            tape.drop(probabilities)
            probabilities = new
            tape.use(row.heads * tile.queries * row.size * row.width)

        def backward(_: Storage) -> Gradients:
            gradients = _backward(r, row)
            for storage, needed in zip(gradients, needs, strict=True):
                if not needed:
                    tape.release(storage)
            return [storage if needed else None for storage, needed in zip(gradients, needs, strict=True)]

        saved = [query, key, value, *([probabilities] if one_tile else [])]
        tape.drop(keys32)
        return scope.returns(tape.operation_in_place(output, (query, key, value), backward=backward, saved=saved))


def _probabilities(r: StepContext, row: _Row, tile: _Tile) -> Value:
    """Queries at 32 bits, scores, their softmax, and that at the row's own precision."""
    tape = r.tape
    elements = row.heads * tile.queries * row.size
    whole = row.stands_alone and tile.queries == row.length
    copied = tape.value(0 if whole else elements, row.width)
    queries = copied if row.width == 4 else tape.value(elements, 4)
    if row.width < 4:
        tape.drop(copied)
    scores = tape.value(row.heads * tile.queries * tile.keys, 4)
    softmax = tape.value(scores.elements, 4)
    if row.width == 4:
        tape.drop(queries, scores)
        return softmax
    result = tape.value(scores.elements, row.width)
    tape.drop(softmax, queries, scores)
    return result


def _backward(r: StepContext, row: _Row) -> tuple[Storage, Storage, Storage]:
    tape, width = r.tape, row.width
    one_tile = row.length <= QUERY_TILE
    of_query = tape.allocate(row.query_bytes)
    outer = tape.enter_scope()
    if not one_tile:
        tape.value(row.key_elements if width < 4 else 0, 4)  # keys at 32 bits
        tape.value(row.key_elements, 4)  # sums of the tiles' gradients
        tape.value(row.key_elements, 4)
    previous: list[Value] = []
    for tile in _tiles(row.length):
        elements = row.heads * tile.queries * row.size
        scores = row.heads * tile.queries * tile.keys
        whole = row.stands_alone and tile.queries == row.length
        current: list[Value] = []

        def assign(elements: int, width: int, current: list[Value] = current, previous: list[Value] = previous) -> None:
            # The variable of the tile before is released once the new value is there.
            current.append(tape.value(elements, width))
            if len(previous) >= len(current):
                tape.drop(previous[len(current) - 1])

        if one_tile:
            current.append(tape.value(0, 1))
        else:
            current.append(_probabilities(r, row, tile))
            if previous:
                tape.drop(previous[0])
        assign(0 if whole else elements, width)  # queries
        assign(0 if whole else elements, width)  # gradients of their outputs
        assign(scores, width)  # of the probabilities
        assign(scores, width)  # of the scores
        tape.use(elements * width)
        assign(row.shared * tile.keys * row.size, width)  # of the keys
        assign(row.shared * tile.keys * row.size, width)  # of the values
        previous = current
    if one_tile:
        of_key, of_value = (_kept(part) for part in previous[-2:])
    else:
        of_key, of_value = tape.allocate(row.key_elements * width), tape.allocate(row.key_elements * width)
    tape.leave_scope(outer)
    return of_query, of_key, of_value


def _kept(value: Value) -> Storage:
    value.storage.references += 1
    return value.storage
