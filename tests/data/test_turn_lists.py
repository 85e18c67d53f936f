"""Conversations that a file holds as text, under other names, in pieces, or as bare lists of turns."""

import csv
import gzip
import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.files import open_file
from loratory.engine.data.files.json_files import json_record
from loratory.engine.data.formats import detect_format
from loratory.engine.data.formats.turns import turn_list
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.records import Position
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError
from tests.data.checks import check_file

TURNS = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Answer"}]
TALK = [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Answer"}]


def detect(*rows, **settings):
    return detect_format(DatasetConfig(source="x", **settings), rows)


def turns_of(source, first_row=0):
    reader = DatasetReader(DatasetConfig(source=str(source)), SourceOptions())
    return [
        row.problem or [(message.role, message.content) for message in row.example.messages]  # type: ignore[attr-defined]
        for row in reader.rows(first_row)
    ]


def write_csv(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("row", "format_", "columns", "sure"),
    [
        ({"messages": json.dumps(TURNS)}, "messages", {"messages": "messages"}, True),
        ({"conversations": f" \n{json.dumps(TALK, indent=1)}"}, "sharegpt", {"conversations": "conversations"}, True),
        ({"id": 1, "conversation": json.dumps(TURNS)}, "messages", {"messages": "conversation"}, True),
        ({"messages": json.dumps(TURNS), "tools": "[]"}, "messages", {"messages": "messages", "tools": "tools"}, True),
        ({"chat": json.dumps(TURNS)}, "messages", {"messages": "chat"}, False),
        ({"id": 1, "chat": TALK}, "sharegpt", {"conversations": "chat"}, False),
        ({"text": "words", "chat": TURNS}, "messages", {"messages": "chat"}, False),
    ],
)
def test_turns_are_recognised_as_text_and_under_other_names(row, format_, columns, sure):
    detection = detect(row)

    assert detection.format == format_
    assert dict(detection.columns) == columns
    assert detection.sure == sure


@pytest.mark.parametrize("turns", [TURNS, TALK])
def test_a_csv_file_with_nothing_but_turns_is_read_as_conversations(tmp_path, turns):
    path = write_csv(tmp_path / "rows.csv", *[{"messages": json.dumps(turns)}] * 2)

    assert turns_of(path) == [[("user", "Ask"), ("assistant", "Answer")]] * 2


def test_turns_in_cells_are_a_prompt_and_its_completion_and_other_json_is_text(tmp_path):
    cells = {"prompt": json.dumps(TURNS + TURNS[:1]), "completion": json.dumps(TURNS[1:])}
    path = write_csv(tmp_path / "rows.csv", cells, {"prompt": "Sort.", "completion": '[{"role": 1}, {"from": 2}]'})

    assert turns_of(path) == [
        [("user", "Ask"), ("assistant", "Answer"), ("user", "Ask"), ("assistant", "Answer")],
        [("user", "Sort."), ("assistant", '[{"role": 1}, {"from": 2}]')],
    ]


def test_a_history_may_stand_in_a_cell(tmp_path):
    rows = [
        {"instruction": "Ask", "output": "Answer", "history": cell} for cell in ("[]", '[["Hi", "Hello"]]', "", "x")
    ]

    first, second, third, fourth = turns_of(write_csv(tmp_path / "rows.csv", *rows))

    assert first == third == [("user", "Ask"), ("assistant", "Answer")]
    assert second == [("user", "Hi"), ("assistant", "Hello"), *first]
    assert fourth == "history is not a list of question and answer pairs"


def test_turns_as_python_prints_them_are_a_problem_of_each_row_and_never_text(tmp_path):
    alone = write_csv(tmp_path / "alone.csv", {"messages": str(TURNS)})
    other = write_csv(tmp_path / "other.csv", {"chat": str(TURNS)})
    mixed = write_csv(tmp_path / "mixed.csv", {"messages": json.dumps(TURNS)}, {"messages": str(TURNS)})

    with pytest.raises(DatasetError, match="messages is text, and not the JSON list of turns that it looks like"):
        check_file(alone)
    with pytest.raises(DatasetError, match="No format fits the columns 'chat'"):
        check_file(other)
    report = check_file(mixed)
    assert (report.kept, report.problem_counts) == (1, {"tools": 1})


@pytest.mark.parametrize("value", ["plain words", "[1, 2]", "[citation needed] {really}", '[{"word": "a"}]'])
def test_a_lone_column_of_other_text_stays_text(value):
    assert detect({"body": value}).format == "text"


def test_of_several_lists_of_turns_none_is_guessed():
    with pytest.raises(DatasetError, match="No format fits"):
        detect({"one": TURNS, "other": TURNS})


@pytest.mark.parametrize(
    "row", [TURNS[0], TALK[0], {"id": "7", "role": "Assistant", "content": "Answer"}], ids=["role", "from", "other"]
)
def test_rows_that_are_single_turns_are_not_text_to_learn(row):
    with pytest.raises(DatasetError) as refusal:
        detect(row)

    assert "a single turn" in refusal.value.what
    assert "messages" in refusal.value.fix


def test_content_next_to_a_role_that_no_one_speaks_in_is_text():
    assert detect({"role": "engineer", "content": "A description."}).format == "text"


@pytest.mark.parametrize("value", [None, "", "[", "[{", "[]", [], ["x"], "[" * 100_000, '[["x"]]', {"role": "user"}])
def test_what_is_not_a_list_of_objects_is_none(value):
    assert turn_list(value) is None


def turns(number):
    return [{"role": "user", "content": f"Ask {number}"}, {"role": "assistant", "content": "[Answer]"}]


def talk(number):
    return [{"from": "human", "value": f"Ask {number}"}, {"from": "gpt", "value": "[Answer]"}]


def write(path, rows, end="\n"):
    data = "".join(json.dumps(row) + end for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def answer_text(number):
    return [("user", f"Ask {number}"), ("assistant", "[Answer]")]


@pytest.mark.parametrize("make", [turns, talk])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows", "rows.jsonl.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n\n"])
def test_each_line_that_is_a_list_of_turns_is_a_conversation(tmp_path, make, name, end):
    path = write(tmp_path / name, map(make, range(3)), end)

    assert open_file(path).kind.startswith("lists of turns, one on each line")
    assert turns_of(path) == [answer_text(0), answer_text(1), answer_text(2)]
    assert turns_of(path, 2) == [answer_text(2)]


def test_one_line_alone_is_one_conversation_too(tmp_path):
    assert turns_of(write(tmp_path / "rows.jsonl", [turns(0)])) == [answer_text(0)]
    assert turns_of(write(tmp_path / "rows.jsonl", [turns(0)], end="")) == [answer_text(0)]


@pytest.mark.parametrize("make", [turns, talk])
def test_lists_may_stand_in_one_array(tmp_path, make):
    assert turns_of(write(tmp_path / "rows.json", [[make(0), make(1)]], end="")) == [answer_text(0), answer_text(1)]


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
        assert len(turns_of(path)) == 3


def test_a_first_line_beyond_what_is_looked_at_is_found_out_all_the_same(tmp_path):
    long = [{"role": "user", "content": "x" * 200_000}, {"role": "assistant", "content": "y"}]
    assert len(turns_of(write(tmp_path / "rows.jsonl", [long, turns(1)]))) == 2

    array = tmp_path / "array.json"
    array.write_text(json.dumps([{"text": "x" * 1000}] * 10_000))
    assert open_file(array).kind == "JSON array"
    assert sum(1 for _ in open_file(array).records()) == 10_000


def test_an_array_of_turns_in_one_file_is_not_a_dataset_of_single_turns(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(turns(0), indent=2))

    with pytest.raises(DatasetError, match="a single turn"):
        turns_of(path)


def test_a_call_without_words_is_a_turn_and_an_object_without_a_speaker_is_none():
    call = [{"role": "user", "content": "Ask"}, {"role": "assistant", "tool_calls": []}]

    assert json_record(Position(0, 1, 0), json.dumps(call).encode()).value == {"messages": call}
    assert json_record(Position(0, 1, 0), b'[{"content": "x"}]').value is None
