"""Rows of an Arrow batch as Python values, never more of them at a time than some megabytes."""

from collections.abc import Iterator
from typing import Any

import numpy

from engine.data.records import MAX_ROW_BYTES, Record, too_long

_ELEMENT_BYTES = 8  # the least that an element of a list takes, also an empty one


def batch_records(batch: Any, first_row: int) -> Iterator[Record]:
    """Rows of a record batch; what is larger than a row may be is named and left out.

    Text that many rows share is held once in a batch. Its rows are measured as they will be, before they are written out.
    """
    sizes = sum((row_sizes(column) for column in batch.columns), numpy.zeros(batch.num_rows, numpy.int64)).tolist()
    start, held = 0, 0
    for row, size in enumerate(sizes):
        if held + size > MAX_ROW_BYTES:
            yield from _written_out(batch, start, row, first_row)
            start, held = row, 0
        if size > MAX_ROW_BYTES:
            yield Record(first_row + row, None, None, kind="too_long", problem=too_long(size))
            start = row + 1
        else:
            held += size
    yield from _written_out(batch, start, batch.num_rows, first_row)


def row_sizes(array: Any) -> Any:
    """Return the bytes that each row of an Arrow array takes once written out, as int64."""
    from pyarrow import BaseExtensionType, compute, types

    kind = array.type
    if types.is_dictionary(kind):
        values = row_sizes(array.dictionary)
        indices = compute.fill_null(array.indices, -1).to_numpy(zero_copy_only=False)
        return numpy.append(values, 0)[indices]  # the last one is for null
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return compute.fill_null(compute.binary_length(array), 0).to_numpy(zero_copy_only=False).astype(numpy.int64)
    if types.is_struct(kind):
        fields = (row_sizes(array.field(number)) for number in range(kind.num_fields))
        return sum(fields, numpy.zeros(len(array), numpy.int64))
    if types.is_map(kind):
        return _listed_sizes(array, row_sizes(array.keys) + row_sizes(array.items))
    if types.is_list(kind) or types.is_large_list(kind):
        return _listed_sizes(array, row_sizes(array.values))
    if isinstance(kind, BaseExtensionType):
        return row_sizes(array.storage)
    # Numbers, and kinds that share nothing among their rows.
    return numpy.full(len(array), -(-array.nbytes // max(1, len(array))), numpy.int64)


def value_count(array: Any) -> int:
    """How many values an Arrow array holds, those in lists counted one by one."""
    from pyarrow import types

    if types.is_struct(array.type):
        return value_count(array.field(0)) if array.type.num_fields else len(array)
    if types.is_map(array.type) or types.is_list(array.type) or types.is_large_list(array.type):
        return value_count(array.flatten())
    return len(array)


def _listed_sizes(array: Any, elements: Any) -> Any:
    ends = numpy.concatenate(([0], numpy.cumsum(elements + _ELEMENT_BYTES)))
    offsets = array.offsets.to_numpy(zero_copy_only=False)
    return numpy.diff(ends[offsets])


def _written_out(batch: Any, start: int, end: int, first_row: int) -> Iterator[Record]:
    if start >= end:
        return
    import pyarrow

    piece = batch.slice(start, end - start)
    columns = [
        column.cast(plain) if (plain := plain_type(column.type)) != column.type else column for column in piece.columns
    ]
    rows = pyarrow.RecordBatch.from_arrays(columns, names=piece.schema.names).to_pylist()
    with_structs = [field.name for field in piece.schema if holds_struct(field.type)]
    for row, value in enumerate(rows, start=first_row + start):
        for name in with_structs:
            value[name] = without_gaps(value[name])
        yield Record(row, None, value)


def without_gaps(value: Any) -> Any:
    """A value of Arrow's without the keys that hold nothing, at any depth.

    All structs of a column have the same fields. What an object did not have is null there, and would give tools the
    parameters, and calls the arguments, of other rows. An intended null cannot be distinguished from that.
    """
    if isinstance(value, dict):
        return {key: without_gaps(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):  # tuples are the entries of a map
        return type(value)(map(without_gaps, value))
    return value


def holds_struct(kind: Any) -> bool:
    """Whether an Arrow type has structs at any depth."""
    from pyarrow import types

    if types.is_struct(kind):
        return True
    return any(holds_struct(kind.field(number).type) for number in range(kind.num_fields))


def plain_type(kind: Any) -> Any:
    """The same type with every value written out in its own row."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        return kind.value_type
    if types.is_struct(kind):
        return pyarrow.struct([kind.field(n).with_type(plain_type(kind.field(n).type)) for n in range(kind.num_fields)])
    if types.is_map(kind):
        return pyarrow.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(plain_type(kind.value_type)))
    if types.is_large_list(kind):
        return pyarrow.large_list(kind.value_field.with_type(plain_type(kind.value_type)))
    return kind
