"""Formats found in columns."""

import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.formats import detect_format, likeliest_format
from loratory.engine.data.passes.reader import DatasetPart
from loratory.engine.data.source import SourceOptions
from loratory.engine.errors import DatasetError

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
    detection = detect(row)

    assert detection.format == format_
    assert dict(detection.columns) == columns
    assert detection.sure
    assert "every row has" in detection.reason


def test_columns_of_other_names_are_guessed_and_said_to_be():
    detection = detect({"id": 1, "question": "a", "answer": "b"})

    assert detection.format == "prompt_completion"
    assert dict(detection.columns) == {"prompt": "question", "completion": "answer"}
    assert not detection.sure
    assert "question and answer" in detection.reason


ALPACA_LIKE = {
    "what a response is with an input": (
        {"instruction": "Say it in French.", "input": "Good morning", "response": "Bonjour"},
        {"instruction": "instruction", "input": "input", "output": "response"},
    ),
    "Dolly": (
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "closed_qa"},
        {"instruction": "instruction", "input": "context", "output": "response"},
    ),
    "an answer": ({"instruction": "Ask", "answer": "x"}, {"instruction": "instruction", "output": "answer"}),
    "context with a question": (
        {"question": "Who?", "context": "Ada wrote it.", "answer": "Ada"},
        {"instruction": "question", "input": "context", "output": "answer"},
    ),
    "a question with an instruction": (
        {"instruction": "Answer in one word.", "question": "Who wrote it?", "response": "Ada"},
        {"instruction": "instruction", "input": "question", "output": "response"},
    ),
    "context with an input": (
        {"input": "Who?", "context": "Ada wrote it.", "output": "Ada"},
        {"instruction": "input", "input": "context", "output": "output"},
    ),
}


@pytest.mark.parametrize(("row", "columns"), ALPACA_LIKE.values(), ids=ALPACA_LIKE)
def test_whatever_belongs_to_a_question_is_read_with_it(row, columns):
    detection = detect(row)

    assert detection.format == "alpaca"
    assert dict(detection.columns) == columns
    assert not detection.sure


def test_what_is_read_under_another_name_is_reported():
    row = {"system_prompt": "Be brief.", "instruction": "Who?", "context": "Ada wrote it.", "response": "Ada"}

    assert detect(row).reason.endswith("; context is read as input; system_prompt is read as system")


@pytest.mark.parametrize("name", ["system", "system_prompt", "System_Prompt"])
@pytest.mark.parametrize(
    "row",
    [
        {"question": "Ask", "response": "x"},
        {"prompt": "Ask", "completion": "x"},
        {"instruction": "Ask", "output": "x"},
        {"conversations": TALK},
    ],
    ids=lambda row: " ".join(row),
)
def test_a_column_of_system_prompts_is_the_system_turn_of_every_format(name, row):
    assert detect({"id": "1", name: "You are a pirate.", **row}).columns["system"] == name


def test_a_system_prompt_that_the_turns_already_begin_with_is_not_read_twice():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]

    assert dict(detect({"messages": turns, "system_prompt": "Be kind."}).columns) == {"messages": "messages"}


def test_a_column_that_holds_no_text_takes_no_part_of_a_question():
    rows = [{"question": "Who?", "answer": "Ada", "context": {"title": ["x"]}, "system_prompt": 7}]

    assert dict(detect(*rows).columns) == {"prompt": "question", "completion": "answer"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {"question": "2 + 2?", "prompt": "Think first.\n2 + 2?", "response": "4"},
            {"prompt": "prompt", "completion": "response"},
        ),
        (
            {"instruction": "Add.", "input": "2 2", "prompt": "### Add.\n\n2  2\n###", "completion": "4"},
            {"prompt": "prompt", "completion": "completion"},
        ),
        ({"prompt": "Who wrote it? Ada wrote it.", "context": "Ada wrote it.", "completion": "Ada"},
         {"prompt": "prompt", "completion": "completion"}),
        ({"prompt": "", "question": "Who?", "answer": "Ada"}, {"prompt": "question", "completion": "answer"}),
        ({"question": "2 + 2?", "answer": None, "response": "4"}, {"prompt": "question", "completion": "response"}),
        ({"question": "2 + 2?", "answer": 4}, {"prompt": "question", "completion": "answer"}),
    ],
)  # fmt: skip
def test_of_several_questions_the_one_that_says_most_is_taken(row, columns):
    detection = detect(row)

    assert detection.format == "prompt_completion"
    assert dict(detection.columns) == columns


def test_turns_as_prompt_and_completion_need_no_text_next_to_them():
    row = {"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "y"}]}

    assert detect({**row, "context": "Ada wrote it."}).format == "prompt_completion"
    cells = {column: json.dumps(turns) for column, turns in row.items()}
    assert detect({**cells, "context": "Ada wrote it."}).format == "prompt_completion"


def test_a_mapping_reads_what_it_names_and_guesses_nothing():
    row = {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada"}

    chosen = detect(row, format="alpaca", column_map={"output": "response"})
    left_out = detect(row, column_map={"input": ""})

    assert dict(chosen.columns) == {"instruction": "instruction", "output": "response"}
    assert dict(left_out.columns) == {"instruction": "instruction", "output": "response"}


def test_the_format_that_most_rows_have_wins():
    alpaca = {"instruction": "a", "output": "b"}

    detection = detect({"conversations": TALK}, alpaca, alpaca)

    assert detection.format == "alpaca"
    assert "2 of the first 3 rows" in detection.reason


def test_richer_formats_go_before_text():
    assert detect({"text": "a", "instruction": "b", "output": "c"}).format == "alpaca"


def test_a_chosen_format_is_taken_and_its_missing_columns_are_named():
    assert detect({"text": "a", "instruction": "b", "output": "c"}, format="text").format == "text"

    with pytest.raises(DatasetError, match=r"needs the column 'output'.*'instruction', 'response'"):
        detect({"instruction": "a", "response": "b"}, format="alpaca")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"nonsense": "q"}, "makes no format complete"),
        ({"instruction": "q"}, "makes no format complete"),
        ({"instruction": "q", "output": "not there"}, "'not there'"),
    ],
)
def test_a_mapping_that_cannot_work_reports_what_can(mapping, message):
    with pytest.raises(DatasetError, match=message):
        detect({"q": "a", "a": "b"}, column_map=mapping)


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
    assert "instruction=question" in refusal.value.fix
    assert "--" not in refusal.value.fix  # the page shows it as well


def test_unreadable_rows_are_among_the_first_that_the_reason_counts(tmp_path):
    rows = [*[{"instruction": "a", "output": "b"}] * 57, {"text": "c"}, {"text": "d"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), "{broken"]))

    assert "57 of the first 60 rows" in DatasetPart(DatasetConfig(source=str(file)), SourceOptions()).detection.reason
