"""Rows out of JSON arrays and objects over several lines, whatever the size of the pieces they are read in."""

import json
import random

import pytest

from loratory.engine.data.files import text_stream
from loratory.engine.data.files.json_files import JsonValuesReader
from loratory.engine.data.files.text_stream import TextStream
from loratory.engine.data.records import Position

START = Position(0, 1, 0)


def read_values(path, *, array=True, start=START):
    reader = JsonValuesReader(TextStream(path), array=array)
    return list(reader.read(start)), reader.notes


def random_rows(seed):
    letters = ['"', "\\", "{", "}", "[", "]", ",", ":", "\n", "\t", " ", "é", "語", "\u2028", "a", "}{", '\\"', "\\\\"]
    draw = random.Random(seed)

    def text():
        return "".join(draw.choices(letters, k=draw.randrange(0, 30)))

    return [{"a": text(), text(): [text(), {"n": draw.randrange(10), "t": text()}], "z": None} for _ in range(20)]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_cut_as_json_reads_it_in_pieces_of_any_size(tmp_path, monkeypatch, chunk_bytes, indent):
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "rows.json"
    for seed in range(3):
        rows = random_rows(seed)
        for ensure_ascii in (True, False):
            path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ensure_ascii), encoding="utf-8")

            records, notes = read_values(path)

            assert [record.value for record in records] == rows
            assert [record.row for record in records] == list(range(len(rows)))
            assert notes == []


@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_rows_have_their_lines_and_offsets_and_reading_can_begin_at_any_of_them(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", chunk_bytes)
    text = '\n[\n  {"a": 1},\n\n  {"a":\n 2}, {"a": 3}\n,{"a": 4}]'
    path = tmp_path / "rows.json"
    path.write_text(text)

    records, _ = read_values(path)

    assert [record.line for record in records] == [3, 5, 6, 7]
    for record in records:
        assert text[record.offset] == "{"
        rest, _ = read_values(path, start=Position(record.row, record.line, record.offset))
        assert rest == records[record.row :]


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_objects_over_several_lines_follow_each_other(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "rows.json"
    path.write_text('{\n "a": "}{"\n}\n{"a":\n {"b": [2]}}\n,\n{"a": 3}')

    records, _ = read_values(path, array=False)

    assert [record.value for record in records] == [{"a": "}{"}, {"a": {"b": [2]}}, {"a": 3}]
    assert [record.line for record in records] == [1, 4, 7]


def test_a_row_that_is_wrong_leaves_the_others_alone(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(
        '[{"a": 1},\n {"a": tru},\n {"a": 1, "a": 2},\n 5,\n "x",\n null,\n {"a": [1}, {"a": 2]},\n {"a": 3}]'
    )

    records, notes = read_values(path)

    assert [record.kind for record in records] == [
        None,
        "not_json",
        "duplicate_key",
        "not_an_object",
        "not_an_object",
        "not_an_object",
        "not_json",
        "not_json",
        None,
    ]
    assert [record.line for record in records] == [1, 2, 3, 4, 5, 6, 7, 7, 8]
    assert notes == []


@pytest.mark.parametrize("indent", [None, 1])
def test_a_malformed_row_ends_where_the_next_one_begins(tmp_path, indent):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = json.dumps([{"id": number, "turns": turns} for number in range(3)], indent=indent)
    path = tmp_path / "rows.json"
    path.write_text(text.replace('"id": 1', '"id": tru'))

    records, notes = read_values(path)

    assert records[0].value["id"] == 0
    assert [record.kind for record in records if record.value is None] == ["not_json"]
    assert records[-1].value["id"] == 2
    assert notes == []


def test_a_string_that_is_never_closed_costs_its_row_and_no_other(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n{\n"a": "one,\n"b": 2\n},\n{\n"a": "two"\n}\n]')

    records, notes = read_values(path)

    assert [record.kind for record in records] == ["not_json", None]
    assert records[0].line == 2
    assert "control character" in records[0].problem
    assert records[1].value == {"a": "two"}
    assert notes == []


@pytest.mark.parametrize(
    ("text", "count", "note"),
    [
        ('[{"a": 1}, {"a": "cut of', 1, "cut off"),
        ('[{"a": 1}, {"a": 2}', 2, "cut off"),
        ('[{"a": 1},', 1, "cut off"),
        ('[{"a": 1}] {"a": 2}', 1, "more after the end"),
        ('[{"a": 1}]\n[{"a": 2}]', 1, "more after the end"),
    ],
)
def test_what_is_odd_about_the_end_is_noted(tmp_path, text, count, note):
    path = tmp_path / "rows.json"
    path.write_text(text)

    records, notes = read_values(path)

    assert sum(record.kind is None for record in records) == count
    assert note in notes[0]


def test_trailing_commas_and_an_empty_array_make_no_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, ]')
    assert len(read_values(path)[0]) == 1

    path.write_text("[ ]")
    assert read_values(path) == ([], [])


def test_a_row_beyond_the_bound_is_passed_over_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr("loratory.engine.data.files.json_files.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(text_stream, "CHUNK_BYTES", 256)
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "' + "x" * 5000 + '"},\n{"a": "' + 'x\\n\\"' * 500 + '"},\n{"a": 1}]')

    records, _ = read_values(path)

    assert [record.kind for record in records] == ["too_long", "too_long", None]
    assert [record.line for record in records] == [1, 2, 3]
    assert all(len(record.raw) <= 1000 for record in records)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "inside", ["[" * 400_000 + "}" * 400_000, "{" * 400_000 + "]" * 400_000, "[{" * 200_000 + "]" * 400_000]
)
def test_brackets_that_never_match_take_no_time_to_speak_of(tmp_path, inside):
    path = tmp_path / "rows.json"
    path.write_text(f'[{{"a": 1}}, {inside}')

    records, _ = read_values(path)

    assert records[0].value == {"a": 1}
    assert all(record.kind for record in records[1:])
