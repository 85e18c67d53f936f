"""Rows that are lists of turns and nothing else: on lines of their own, or in an array."""

import gzip
import json

import pytest

from engine.config.run import DatasetConfig
from engine.data.files import open_file
from engine.data.files.json_files import json_record
from engine.data.passes.reader import DatasetReader
from engine.data.records import Position
from engine.data.source import SourceOptions
from engine.errors import DatasetError
from tests.data.checks import check_file


def turns(number):
    return [{"role": "user", "content": f"Ask {number}"}, {"role": "assistant", "content": "[Answer]"}]


def talk(number):
    return [{"from": "human", "value": f"Ask {number}"}, {"from": "gpt", "value": "[Answer]"}]


def write(path, rows, end="\n"):
    data = "".join(json.dumps(row) + end for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read_list(path, first_row=0, **settings):
    reader = DatasetReader(DatasetConfig(source=str(path), **settings), SourceOptions())
    return [
        row.problem or [(message.role, message.content) for message in row.example.messages]  # type: ignore[attr-defined]
        for row in reader.rows(first_row)
    ]


def answer_text(number):
    return [("user", f"Ask {number}"), ("assistant", "[Answer]")]


@pytest.mark.parametrize("make", [turns, talk])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows", "rows.jsonl.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n\n"])
def test_each_line_that_is_a_list_of_turns_is_a_conversation(tmp_path, make, name, end):
    path = write(tmp_path / name, map(make, range(3)), end)

    assert open_file(path).kind.startswith("lists of turns, one on each line")
    assert read_list(path) == [answer_text(0), answer_text(1), answer_text(2)]
    assert read_list(path, 2) == [answer_text(2)]


def test_one_line_alone_is_one_conversation_too(tmp_path):
    assert read_list(write(tmp_path / "rows.jsonl", [turns(0)])) == [answer_text(0)]
    assert read_list(write(tmp_path / "rows.jsonl", [turns(0)], end="")) == [answer_text(0)]


@pytest.mark.parametrize("make", [turns, talk])
def test_lists_may_stand_in_one_array(tmp_path, make):
    assert read_list(write(tmp_path / "rows.json", [[make(0), make(1)]], end="")) == [answer_text(0), answer_text(1)]


def test_what_is_not_a_list_of_turns_is_a_problem_of_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [turns(0), [], [1], [{"a": 1}], [*turns(1), "words"], {"messages": turns(2)}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n[{"role": "user"\n')

    report = check_file(path)

    assert report.kept == 2
    assert [(problem.line, problem.kind) for problem in report.problems] == [
        (2, "not_an_object"),
        (3, "not_an_object"),
        (4, "not_an_object"),
        (5, "not_an_object"),
        (7, "not_json"),
    ]


def test_arrays_of_rows_stay_arrays(tmp_path):
    rows = [{"instruction": "[Ask]", "output": "[Answer]"}] * 3
    for number, text in enumerate(
        (json.dumps(rows), json.dumps(rows, indent=1), "[" + ",\n".join(map(json.dumps, rows)) + "\n]")
    ):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)

        assert open_file(path).kind == "JSON array"
        assert len(read_list(path)) == 3


def test_a_first_line_beyond_what_is_looked_at_is_found_out_all_the_same(tmp_path):
    long = [{"role": "user", "content": "x" * 200_000}, {"role": "assistant", "content": "y"}]
    assert len(read_list(write(tmp_path / "rows.jsonl", [long, turns(1)]))) == 2

    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"text": "x" * 1000}] * 10_000))
    assert open_file(array).kind == "JSON array"
    assert sum(1 for _ in open_file(array).records()) == 10_000


def test_an_array_of_turns_in_one_file_is_not_a_dataset_of_single_turns(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(turns(0), indent=2))

    with pytest.raises(DatasetError, match="a single turn"):
        read_list(path)


def test_a_call_without_words_is_a_turn_and_an_object_without_a_speaker_is_none():
    call = [{"role": "user", "content": "Ask"}, {"role": "assistant", "tool_calls": []}]

    assert json_record(Position(0, 1, 0), json.dumps(call).encode()).value == {"messages": call}
    assert json_record(Position(0, 1, 0), b'[{"content": "x"}]').value is None
