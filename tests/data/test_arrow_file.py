"""Arrow files and streams: read from any row, in every view of the data, and refused where they would grow."""

import contextlib
import random

import pyarrow as pa
import pyarrow.feather
import pytest

from loratory.engine.data.files import open_file
from loratory.engine.data.files.columnar import ArrowRows
from loratory.engine.errors import DatasetError
from tests.data.checks import check_file
from tests.data.measured_reading import MAX_UNPACK_SECONDS, MAX_UNPACKED_BYTES, read_measured

MIB = 1 << 20
ROWS = [
    {
        "messages": [{"role": "user", "content": f"Question {number}"}, {"role": "assistant", "content": "x" * number}],
        "label": ("even", "odd")[number % 2],
        "scores": [number, number + 1],
    }
    for number in range(1, 701)
]
SCHEMA = pa.schema(
    {
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "label": pa.dictionary(pa.int32(), pa.string()),
        "scores": pa.list_(pa.int64(), 2),
    }
)


def write(path, table, *, stream=False, compression=None, batch_rows=100):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return path


def feather(path, table):
    pyarrow.feather.write_feather(table, str(path), chunksize=100)
    return path


WRITERS = {
    "file": lambda folder, table: write(folder / "rows.arrow", table),
    "stream": lambda folder, table: write(folder / "rows.arrow", table, stream=True),
    "zstd": lambda folder, table: write(folder / "rows.arrow", table, compression="zstd"),
    "lz4 stream": lambda folder, table: write(folder / "rows.arrow", table, stream=True, compression="lz4"),
    "feather": lambda folder, table: feather(folder / "rows.feather", table),
    "no ending": lambda folder, table: write(folder / "rows", table),
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_are_what_was_written_from_any_row(tmp_path, name):
    source = open_file(WRITERS[name](tmp_path, pa.Table.from_pylist(ROWS, SCHEMA)))

    assert (source.kind, source.columns) == ("Arrow", ("messages", "label", "scores"))
    assert source.total_rows == (None if "stream" in name else 700)
    assert [record.value for record in source.records()] == ROWS
    assert source.total_rows == 700
    assert [record.row for record in source.records(695)] == list(range(695, 700))
    assert [record.value for record in source.pick([3, 650]) if record is not None] == [ROWS[3], ROWS[650]]
    assert list(source.records(700)) == []


def test_an_empty_table_and_a_cut_file_are_refused(tmp_path):
    empty = write(tmp_path / "empty.arrow", pa.Table.from_pylist([], SCHEMA))
    whole = write(tmp_path / "rows.arrow", pa.Table.from_pylist(ROWS, SCHEMA)).read_bytes()
    cut = tmp_path / "cut.arrow"

    with pytest.raises(DatasetError, match="names columns and holds no rows"):
        check_file(empty)
    for size in (7, 20, 300, len(whole) // 2):
        cut.write_bytes(whole[:size])
        with pytest.raises(DatasetError, match="cut off or damaged"):
            open_file(cut)


def nulls_in_a_list(count):
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.nulls(count))


def one_value_in_many_rows(value, rows):
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


# What makes a table, and the words of its error or the rows that are read.
BOMBS = {
    "a value of 600 MiB": (lambda: pa.table({"text": ["x" * 600 * MIB]}), "the row is 629 MB long"),
    "billions of nulls in a list": (
        lambda: pa.table({"a": nulls_in_a_list(2_000_000_000)}),
        "The rows of the Arrow file",
    ),
    "a billion rows of nothing": (lambda: pa.table({"a": pa.nulls(1_000_000_000)}), "The rows of the Arrow file"),
    "a value of 4 MiB in 150 rows": (lambda: pa.table({"text": one_value_in_many_rows("x" * 4 * MIB, 150)}), 150),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    files = {
        name: write(folder / f"{number}.arrow", make(), compression="zstd", batch_rows=None)
        for number, (name, (make, _)) in enumerate(BOMBS.items())
    }
    return read_measured(files)


@pytest.mark.e2e
@pytest.mark.parametrize("name", BOMBS)
def test_what_is_small_in_the_file_stays_bounded_in_memory(bombs, name):
    reading, outcome = bombs[name], BOMBS[name][1]

    assert reading.grown_bytes < MAX_UNPACKED_BYTES
    assert reading.seconds < MAX_UNPACK_SECONDS
    if isinstance(outcome, str):
        assert outcome in reading.what
        assert reading.fix
    else:
        assert reading.report.kept == outcome


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_damage_anywhere_ends_in_an_error_or_in_rows(tmp_path, compression):
    """Offsets and sizes of the file are never trusted: a wrong one would read other memory, or end the process."""
    whole = write(
        tmp_path / "rows.arrow", pa.Table.from_pylist(ROWS[:40], SCHEMA), stream=True, compression=compression
    )
    data = whole.read_bytes()
    draw = random.Random(7)
    damaged = tmp_path / "damaged.arrow"
    for _ in range(150):
        damaged_data = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            damaged_data[draw.randrange(4, len(damaged_data))] = draw.randrange(256)
        damaged.write_bytes(damaged_data)
        with contextlib.suppress(DatasetError):
            assert len(list(ArrowRows(damaged).records())) <= len(data)
