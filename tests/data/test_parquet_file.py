"""Parquet files: read in pieces that fit, whatever is small in the file and large in memory."""

import contextlib
import gzip
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.files.columnar import ParquetRows
from loratory.engine.data.source import SourceOptions, open_source
from loratory.engine.errors import DatasetError
from tests.data.measured_reading import MAX_UNPACK_SECONDS, MAX_UNPACKED_BYTES, read_measured

MIB = 1 << 20


def write(path, table, **options):
    pyarrow.parquet.write_table(table, path, compression="zstd", **options)
    return path


def repeat_values(values, picks):
    """Return text that is stored once for many rows."""
    return pa.DictionaryArray.from_arrays(pa.array(picks, pa.int32()), pa.array(values))


def lists(offsets, values):
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


# What makes a table, options of its writer, and the words of its error or the rows that are kept and dropped.
BOMBS = {
    "a value of 4 MiB in 150 rows": (lambda: {"text": repeat_values(["x" * 4 * MIB], [0] * 150)}, {}, (150, 0)),
    "a value of 20 MiB in every other row": (
        lambda: {"text": repeat_values(["x" * 20 * MIB, "ok"], [0, 1] * 500)},
        {"dictionary_pagesize_limit": 100 * MIB},
        (500, 500),
    ),
    "a list of 3,000 values of 1 MiB": (
        lambda: {"m": lists([0, 3000, 3001], repeat_values(["x" * MIB, "ok"], [0] * 3000 + [1])), "text": ["a", "b"]},
        {"dictionary_pagesize_limit": 100 * MIB},
        "The rows of the Parquet file",
    ),
    "a list of 60 million nothings": (
        lambda: {"m": lists([0, 60_000_000], pa.nulls(60_000_000, pa.bool_())), "text": ["a"]},
        {},
        "The rows of the Parquet file",
    ),
    "a page of 80 MiB": (lambda: {"text": ["x" * 80 * MIB]}, {"use_dictionary": False}, "the row is 84 MB long"),
    "a prefix of 1 MiB in 200 rows": (
        lambda: {"text": ["x" * MIB + str(number) for number in range(200)]},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        (200, 0),
    ),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    return read_measured(
        {
            name: write(folder / f"{number}.parquet", pa.table(columns()), **options)
            for number, (name, (columns, options, _)) in enumerate(BOMBS.items())
        }
    )


@pytest.mark.e2e
@pytest.mark.parametrize("name", BOMBS)
def test_what_is_small_in_the_file_stays_bounded_in_memory(bombs, name):
    reading, outcome = bombs[name], BOMBS[name][2]

    assert reading.grown_bytes < MAX_UNPACKED_BYTES
    assert reading.seconds < MAX_UNPACK_SECONDS
    if isinstance(outcome, str):
        assert outcome in reading.what
        assert reading.fix
    else:
        assert (reading.report.kept, reading.report.dropped) == outcome
        assert set(reading.report.problem_counts) <= {"too_long"}


def rows_of(path, first_row=0):
    return [record.value for record in ParquetRows(path).records(first_row)]


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}], ids=str)
def test_rows_are_what_was_written_from_any_row(tmp_path, options):
    rows: list[Any] = [
        {
            "text": f"row {number} " * (number % 50),
            "turns": [{"role": "user", "content": f"{number}"}, {"role": "assistant", "content": None}][: number % 3],
            "kind": "same",
            "pairs": [("a", number)] if number % 5 else None,
            "count": number if number % 7 else None,
        }
        for number in range(3000)
    ]
    schema = pa.schema(
        {
            "text": pa.string(),
            "turns": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
            "kind": pa.dictionary(pa.int32(), pa.string()),
            "pairs": pa.map_(pa.string(), pa.int64()),
            "count": pa.int64(),
        }
    )
    path = write(tmp_path / "rows.parquet", pa.Table.from_pylist(rows, schema), row_group_size=700, **options)
    for row in rows:  # a key without a value is one that Arrow may have filled in
        row["turns"] = [{key: text for key, text in turn.items() if text is not None} for turn in row["turns"]]

    assert rows_of(path) == rows
    assert rows_of(path, 1399) == rows[1399:]
    assert rows_of(path, 3000) == []


def test_shared_values_are_measured_and_read_as_if_each_row_had_its_own(tmp_path):
    """A list that shares 1 MiB with others, more often than fits: what fits is read, and is whole."""
    shared = repeat_values(["x" * MIB, "ok", "fine"], [0] * 60 + [1, 2, 0, 1])
    table = pa.table({"m": lists([0, 60, 62, 63, 64], shared)})
    path = write(tmp_path / "rows.parquet", table, dictionary_pagesize_limit=100 * MIB)

    records = list(ParquetRows(path).records())

    assert [record.kind for record in records] == ["too_long", None, None, None]
    assert [record.row for record in records] == [0, 1, 2, 3]
    assert records[1].value == {"m": ["ok", "fine"]}
    assert records[2].value == {"m": ["x" * MIB]}


@pytest.mark.parametrize("offset", range(4, 60, 3))
def test_a_damaged_page_is_a_damaged_file(tmp_path, offset):
    path = write(tmp_path / "rows.parquet", pa.table({"text": ["a", "b", "c"]}))
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)

    with contextlib.suppress(DatasetError):  # any other error, or a row too few, is the test's
        assert len(rows_of(path)) == 3


def test_parquet_inside_gzip_is_read_alone_and_in_a_folder(tmp_path, home):
    inside = write(tmp_path / "plain.parquet", pa.table({"text": ["a", "b", "c"]})).read_bytes()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "one.parquet.gz").write_bytes(gzip.compress(inside))
    (folder / "two.parquet").write_bytes(inside)

    for options in (SourceOptions(), SourceOptions(home=home)):
        single = open_source(DatasetConfig(source=str(folder / "one.parquet.gz")), options)
        both = open_source(DatasetConfig(source=str(folder)), options)

        assert single.kind == "Parquet, gzip"
        assert single.name == "one.parquet.gz"
        assert [record.value["text"] for record in single.records(1)] == ["b", "c"]
        assert [record.row for record in both.records()] == list(range(6))


def test_what_was_unpacked_goes_with_its_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / "rows.parquet.gz"
    path.write_bytes(gzip.compress(write(tmp_path / "x.parquet", pa.table({"text": ["a"]})).read_bytes()))

    source = open_source(DatasetConfig(source=str(path)), SourceOptions())
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del source

    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda whole: gzip.compress(whole)[:-20], "is damaged"),
        (lambda whole: gzip.compress(whole[:-10]), "cut off or damaged"),
        (lambda whole: gzip.compress(whole + b"\0" * (150 * MIB)), "200-fold"),
        (lambda whole: gzip.compress(b"no Parquet"), "not a Parquet file"),
    ],
    ids=["broken gzip", "broken inside", "bomb", "text"],
)
def test_gzip_that_holds_no_good_parquet_is_refused_and_leaves_nothing(tmp_path, monkeypatch, make, message):
    left = tmp_path / "temporary"
    left.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(left))
    path = tmp_path / "rows.parquet.gz"
    path.write_bytes(make(write(tmp_path / "x.parquet", pa.table({"text": ["a"] * 2000})).read_bytes()))

    with pytest.raises(DatasetError, match=message):
        open_source(DatasetConfig(source=str(path)), SourceOptions())

    assert list(left.iterdir()) == []
