"""Conversations that a file holds as text, under other names, or in pieces."""

import csv
import json

import pytest

from engine.config.run import DatasetConfig
from engine.data.formats import detect_format
from engine.data.formats.turns import turn_list
from engine.data.passes.reader import DatasetReader
from engine.data.source import SourceOptions
from engine.errors import DatasetError
from tests.data.checks import check_file

TURNS = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Answer"}]
TALK = [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Answer"}]


def detect(*rows, **settings):
    return detect_format(DatasetConfig(source="x", **settings), rows)


def turns_of(source):
    reader = DatasetReader(DatasetConfig(source=str(source)), SourceOptions())
    return [
        row.problem or [(message.role, message.content) for message in row.example.messages]  # type: ignore[attr-defined]
        for row in reader.rows()
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
