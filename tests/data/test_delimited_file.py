"""Rows of CSV and TSV files."""

import csv
import io
import random

import pytest

from loratory.engine.data.files import text_stream
from loratory.engine.data.files.delimited import DelimitedReader
from loratory.engine.data.files.text_stream import TextStream
from loratory.engine.data.records import Position
from loratory.engine.errors import DatasetError

START = Position(0, 1, 0)


def reader_of(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return DelimitedReader(TextStream(path))


@pytest.mark.parametrize(("delimiter", "ending"), [(",", "\n"), (";", "\r\n"), ("\t", "\n"), ("|", "\n")])
def test_what_python_writes_is_read_back_whatever_the_delimiter(tmp_path, monkeypatch, delimiter, ending):
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", 50)
    draw = random.Random(1)
    cells = [
        "plain",
        'has "quotes"',
        "has\nlines",
        "has, commas; and\ttabs|bars",
        "",
        " space ",
        "é語",
        "blank\n\nline",
        '"',
    ]
    rows = [{"question": draw.choice(cells), "answer": draw.choice(cells), "id": str(i)} for i in range(200)]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["question", "answer", "id"], delimiter=delimiter, lineterminator=ending)
    writer.writeheader()
    writer.writerows(rows)

    reader = reader_of(tmp_path / "rows.csv", out.getvalue())
    records = list(reader.read(START))

    assert reader.delimiter == delimiter
    assert [record.value for record in records] == rows
    middle = records[100]
    assert list(reader.read(Position(100, middle.line, middle.offset))) == records[100:]


def test_a_quote_that_is_never_closed_costs_its_own_row_only(tmp_path):
    reader = reader_of(tmp_path / "rows.csv", 'a,b\n1,"never closed\n2,fine\n3,"fine\ntoo"\n4,fine\n')

    records = list(reader.read(START))

    assert [record.kind for record in records] == ["csv", None, None, None]
    assert records[0].line == 2
    assert "never closed" in records[0].problem
    assert [record.value["b"] for record in records[1:]] == ["fine", "fine\ntoo", "fine"]


def test_a_quoted_cell_continues_after_a_quote_that_is_ordinary(tmp_path):
    reader = reader_of(tmp_path / "rows.csv", 'a,b\n5" pipe,"two\nlines, ""said"""\n"x\n5"" y",z\n')

    assert [record.value for record in reader.read(START)] == [
        {"a": '5" pipe', "b": 'two\nlines, "said"'},
        {"a": 'x\n5" y', "b": "z"},
    ]


def test_what_follows_a_closed_quote_is_not_part_of_its_row(tmp_path):
    """The second line closes the quote of the first, and an ordinary quotation mark stands on it."""
    records = list(reader_of(tmp_path / "rows.csv", 'a,b\n"x\ny",5" z\n6" p,q\n').read(START))

    assert [record.value for record in records] == [{"a": "x\ny", "b": '5" z'}, {"a": '6" p', "b": "q"}]
    assert [record.line for record in records] == [2, 4]


def test_a_carriage_return_is_text_in_a_quoted_cell_and_a_problem_outside(tmp_path):
    records = list(reader_of(tmp_path / "rows.csv", 'a,b\nA,first\rsecond\n"x\ry","5\r\n6"\r\nB,fine\n').read(START))

    assert [(record.line, record.kind) for record in records] == [(2, "csv"), (3, None), (5, None)]
    assert "new-line character" in records[0].problem
    assert records[1].value == {"a": "x\ry", "b": "5\r\n6"}


def test_names_of_columns_are_stripped_and_columns_without_a_name_are_numbered(tmp_path):
    reader = reader_of(tmp_path / "rows.csv", " prompt , completion ,,\nAsk, Answer,x,y\n")

    assert reader.columns == ("prompt", "completion", "column 3", "column 4")
    assert next(reader.read(START)).value == {
        "prompt": "Ask",
        "completion": " Answer",
        "column 3": "x",
        "column 4": "y",
    }


def test_blank_lines_between_rows_are_skipped_and_inside_a_cell_they_are_text(tmp_path):
    reader = reader_of(tmp_path / "rows.csv", 'a,b\n1,2\n  \n\t\n"3\n  \n",4\n \n')

    assert [(record.line, record.value) for record in reader.read(START)] == [
        (2, {"a": "1", "b": "2"}),
        (5, {"a": "3\n  \n", "b": "4"}),
    ]


def test_line_ends_do_not_hide_the_delimiter(tmp_path):
    reader = reader_of(tmp_path / "rows.csv", "a;b\n" + "x, y;\u2028w, v\n" * 5)

    assert reader.delimiter == ";"
    assert [record.value for record in reader.read(START)] == [{"a": "x, y", "b": "\u2028w, v"}] * 5


def test_too_many_cells_are_a_problem_and_missing_ones_are_missing_columns(tmp_path):
    records = list(reader_of(tmp_path / "rows.csv", "a,b\n1,2,3\n4\n").read(START))

    assert records[0].kind == "csv"
    assert "3 cells" in records[0].problem
    assert records[1].value == {"a": "4"}


def test_latin_1_bytes_are_named_with_their_row(tmp_path):
    records = list(reader_of(tmp_path / "rows.csv", b"a,b\n1,caf\xe9\n2,ok\n").read(START))

    assert [record.kind for record in records] == ["not_utf8", None]
    assert "0xE9" in records[0].problem


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,b,a\n1,2,3\n", "twice"),
        (" , \n1,2\n", "names no columns"),
        ('"a,b\n1,2\n', "no columns"),
        ('a,b\r1,2\r3,"x\ny"\r', "no columns"),
    ],
)
def test_a_header_that_cannot_be_used_is_refused(tmp_path, header, message):
    with pytest.raises(DatasetError, match=message):
        reader_of(tmp_path / "rows.csv", header)


def test_thousands_of_open_quotes_take_no_time_to_speak_of(tmp_path):
    rows = "".join(f'{i},"open\n' if i % 2 else f"{i},x\n" for i in range(20_000))
    records = list(reader_of(tmp_path / "rows.csv", "a,b\n" + rows).read(START))

    assert len(records) > 5_000
