"""Lines of a JSONL file, and rows of plain text."""

import json

import pytest

from loratory.engine.data.files import text_stream
from loratory.engine.data.files.base import PlainTextReader
from loratory.engine.data.files.json_files import JsonLinesReader
from loratory.engine.data.files.text_stream import TextStream
from loratory.engine.data.records import Position

START = Position(0, 1, 0)


@pytest.mark.parametrize("chunk_bytes", [1, 3, 1 << 20])
def test_rows_lines_and_offsets_in_pieces_of_any_size(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "rows.jsonl"
    data = '{"a": "é"}\n\n  \r\n{"a": 2}\r\n{"a": "\u2028"}'.encode()
    path.write_bytes(data)
    reader = JsonLinesReader(TextStream(path))

    records = list(reader.read(START))

    assert [record.value for record in records] == [{"a": "é"}, {"a": 2}, {"a": "\u2028"}]
    assert [record.line for record in records] == [1, 4, 5]
    assert [data[record.offset : record.offset + 1] for record in records] == [b"{"] * 3
    positions = [Position(record.row, record.line, record.offset) for record in reader.read(START, ())]
    assert positions == [Position(record.row, record.line, record.offset) for record in records]
    assert list(reader.read(Position(1, 4, records[1].offset))) == records[1:]


@pytest.mark.parametrize("chunk_bytes", [16, 1 << 20])
def test_a_line_beyond_the_bound_is_not_held(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr("loratory.engine.data.files.json_files.MAX_ROW_BYTES", 100)
    monkeypatch.setattr("loratory.engine.data.files.text_stream.MAX_ROW_BYTES", 100)
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"a": "x" * 500}) + '\n{"a": 1}\n' + json.dumps({"a": "y" * 500}))

    records = list(JsonLinesReader(TextStream(path)).read(START))

    assert [record.kind for record in records] == ["too_long", None, "too_long"]
    assert [record.line for record in records] == [1, 2, 3]


def read_text(path, data, start=START):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(PlainTextReader(TextStream(path)).read(start))


def test_paragraphs_are_rows_where_blank_lines_part_them(tmp_path):
    records = read_text(tmp_path / "a.txt", "\nOne\r\ntwo.\r\n\r\n \nThree.")

    assert [record.value["text"] for record in records] == ["One\ntwo.", "Three."]
    assert [record.line for record in records] == [2, 6]
    third = records[1]
    assert read_text(tmp_path / "a.txt", "\nOne\r\ntwo.\r\n\r\n \nThree.", Position(1, 6, third.offset)) == [third]


def test_lines_are_rows_where_nothing_parts_them(tmp_path):
    records = read_text(tmp_path / "a.txt", "One\ntwo.\n")

    assert [record.value["text"] for record in records] == ["One", "two."]


def test_bytes_that_are_not_text_cost_their_row(tmp_path):
    records = read_text(tmp_path / "a.txt", b"caf\xe9\n\nfine\n")

    assert [record.kind for record in records] == ["not_utf8", None]


@pytest.mark.parametrize("lines", [1, 50])
def test_a_paragraph_beyond_the_bound_is_left_out_without_being_held(tmp_path, monkeypatch, lines):
    monkeypatch.setattr("loratory.engine.data.files.base.MAX_ROW_BYTES", 100)
    monkeypatch.setattr("loratory.engine.data.files.text_stream.MAX_ROW_BYTES", 100)

    records = read_text(tmp_path / "a.txt", "first\n\n" + f"{'x' * 120}\n" * lines + "\nlast\n")

    assert [record.kind for record in records] == [None, "too_long", None]
    assert len(records[1].raw) <= 1000
