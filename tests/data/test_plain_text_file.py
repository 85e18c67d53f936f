"""Rows of plain text files."""

import pytest

from engine.data.files.base import PlainTextReader
from engine.data.files.text_stream import TextStream
from engine.data.records import Position

START = Position(0, 1, 0)


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
    monkeypatch.setattr("engine.data.files.base.MAX_ROW_BYTES", 100)
    monkeypatch.setattr("engine.data.files.text_stream.MAX_ROW_BYTES", 100)

    records = read_text(tmp_path / "a.txt", "first\n\n" + f"{'x' * 120}\n" * lines + "\nlast\n")

    assert [record.kind for record in records] == [None, "too_long", None]
    assert len(records[1].raw) <= 1000
