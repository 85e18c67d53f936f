"""Formats found in columns."""

import pytest

from engine.config.dataset import DatasetConfig
from engine.data.detect import detect_format, likeliest_format
from engine.errors import DatasetError

TALK = [{"from": "human", "value": "x"}]


def detect(*rows, **settings):
    return detect_format(DatasetConfig(source="x", **settings), rows)


@pytest.mark.parametrize(
    ("row", "format_", "columns"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca", {"instruction": "instruction", "output": "output"}),
        (
            {"Instruction ": "a", "INPUT": "b", "output": "c"},
            "alpaca",
            {"instruction": "Instruction ", "input": "INPUT", "output": "output"},
        ),
        ({"conversations": TALK, "tools": "[]"}, "sharegpt", {"conversations": "conversations", "tools": "tools"}),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages", {"messages": "messages"}),
        ({"messages": TALK}, "sharegpt", {"conversations": "messages"}),
        ({"conversations": [{"role": "user", "content": "x"}]}, "messages", {"messages": "conversations"}),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", {"prompt": "prompt", "completion": "completion"}),
        ({"text": "a", "label": 1}, "text", {"text": "text"}),
    ],
)
def test_formats_are_recognised_with_their_columns(row, format_, columns):
    found = detect(row)

    assert found.format == format_
    assert dict(found.columns) == columns
    assert found.sure
    assert "every row has" in found.reason


def test_columns_of_other_names_are_guessed_and_said_to_be():
    found = detect({"id": 1, "question": "a", "answer": "b"})

    assert found.format == "prompt_completion"
    assert dict(found.columns) == {"prompt": "question", "completion": "answer"}
    assert not found.sure
    assert "question and answer" in found.reason


def test_the_format_that_most_rows_have_wins():
    alpaca = {"instruction": "a", "output": "b"}

    found = detect({"conversations": TALK}, alpaca, alpaca)

    assert found.format == "alpaca"
    assert "2 of the first 3 rows" in found.reason


def test_richer_formats_go_before_text():
    assert detect({"text": "a", "instruction": "b", "output": "c"}).format == "alpaca"


def test_a_chosen_format_is_taken_and_its_missing_columns_are_named():
    assert detect({"text": "a", "instruction": "b", "output": "c"}, format="text").format == "text"

    with pytest.raises(DatasetError, match=r"needs the column 'output'.*'instruction', 'response'"):
        detect({"instruction": "a", "response": "b"}, format="alpaca")


def test_a_mapping_makes_the_format():
    found = detect({"q": "a", "a": "b"}, column_map={"instruction": "q", "output": "a"})

    assert found.format == "alpaca"
    assert dict(found.columns) == {"instruction": "q", "output": "a"}


@pytest.mark.parametrize(
    ("mapped", "words"),
    [
        ({"nonsense": "q"}, "makes no format complete"),
        ({"instruction": "q"}, "makes no format complete"),
        ({"instruction": "q", "output": "not there"}, "'not there'"),
    ],
)
def test_a_mapping_that_cannot_work_says_what_can(mapped, words):
    with pytest.raises(DatasetError, match=words):
        detect({"q": "a", "a": "b"}, column_map=mapped)


def test_a_role_mapped_to_no_column_is_left_out():
    rows = {"instruction": "a", "output": "b", "system": "c"}

    assert "system" in detect(rows).columns
    assert "system" not in detect(rows, format="alpaca", column_map={"system": ""}).columns
    with pytest.raises(DatasetError, match="needs the column 'output'"):
        detect(rows, format="alpaca", column_map={"output": ""})


@pytest.mark.parametrize(
    ("row", "settings", "format_"),
    [
        ({"q": "a", "a": "b"}, {}, "prompt_completion"),
        ({"q": "a", "a": "b"}, {"format": "text"}, "text"),
        ({"q": "a", "a": "b"}, {"column_map": {"instruction": "q"}}, "alpaca"),
        ({"instruction": "a", "a": "b"}, {}, "alpaca"),
        ({"chat": [{"from": "human", "value": "a"}], "id": 1}, {}, "sharegpt"),
        ({"chat": [{"role": "user", "content": "a"}], "id": 1}, {}, "messages"),
        ({"body": 1}, {}, "text"),
    ],
)
def test_where_no_format_fits_there_is_one_to_begin_with(row, settings, format_):
    assert likeliest_format(DatasetConfig(source="x", **settings), [row]) == format_


def test_unknown_columns_are_named_with_a_way_out():
    with pytest.raises(DatasetError) as refusal:
        detect({"x": "a", "y": "b"})

    assert "'x', 'y'" in refusal.value.what
    assert "--map" in refusal.value.fix
