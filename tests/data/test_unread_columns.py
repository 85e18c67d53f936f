"""Text of a dataset that its format leaves alone, and what is said about it."""

import json

import pytest

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.formats import detect_format, unread_columns
from tests.data.checks import check_dataset, check_file

QA = {"question": "Who wrote the first program?", "answer": "Ada Lovelace."}
TALK = [{"role": "user", "content": "Who wrote it?"}, {"role": "assistant", "content": "Ada Lovelace did."}]
PROSE = "It was written for a machine that was never built"


def unread(*rows, **settings):
    config = DatasetConfig(source="x", **settings)
    return unread_columns(detect_format(config, rows), config.column_map, rows)


def test_text_next_to_what_is_read_is_named():
    assert unread({**QA, "rationale": PROSE, "notes": [PROSE, PROSE]}) == ("rationale", "notes")
    assert unread({"text": "A whole article.", "summary": PROSE}) == ("summary",)
    assert unread({"messages": TALK, "critique": PROSE}) == ("critique",)
    assert unread({**QA, "begründung": "これは最初のプログラムです"}) == ("begründung",)


@pytest.mark.parametrize(
    "other",
    [
        {"response": "Ada."},
        {"query": "Who?"},
        {"system": "Short.", "system_prompt": "Be kind."},
        {"context": ["A list", "of passages"]},
        {"history": [["Hi", "Hello"]]},
    ],
    ids=lambda other: list(other)[-1],
)
def test_a_column_with_the_name_of_a_part_is_named_however_short_its_text(other):
    assert unread({**QA, **other}) == (list(other)[-1],)


def test_tools_that_a_format_cannot_take_are_named():
    row = {"instruction": "Which rank?", "output": "Sixteen.", "tools": [{"name": "find_rank"}]}

    assert unread(row) == ("tools",)


def test_what_is_only_about_a_row_makes_no_noise():
    about = {
        "id": "flan v2 1837",
        "source_id": "a b c d",
        "conversationHash": "1 2 3 4",
        "url": "https://example.org/a b c",
        "category": "closed question answering",
        "language": "English and some French",
        "score": "4 of 5 points",
        "quality_score": 3,
        "title": "The first program of all",
        "label": "yes",
        "split": "train",
        "sha": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "metadata": '{"made by": "a person", "in the year": "1843"}',
        "entities": [{"name": "Ada Lovelace", "what": "a person of history"}],
        "empty": " ",
        "nothing": None,
        "": "0",
    }

    assert unread({**QA, **about}) == ()


def test_what_repeats_the_text_that_is_read_makes_no_noise():
    alpaca = {"instruction": "Add the two numbers.", "input": "1 and 2", "output": "It is 3."}

    assert unread({**alpaca, "text": "Below is:\nAdd the two  numbers.\n\n1 and 2\n\n### Response: It is 3."}) == ()
    assert unread({**alpaca, "text": "Below is:\nAdd the two numbers."}) == ("text",)
    assert unread({"messages": TALK, "prompt": "Who wrote it?"}) == ()
    assert unread({"messages": json.dumps(TALK), "prompt": "Who wrote it?"}) == ()
    assert unread({"messages": TALK, "prompt": "Who wrote it?"}, {"messages": TALK, "prompt": "Another one?"}) == (
        "prompt",
    )


def test_what_was_left_out_on_purpose_makes_no_noise():
    row = {**QA, "system": "Be kind to everybody."}

    assert unread(row, column_map={"system": ""}) == ()
    assert unread(row, column_map={"text": "answer"}, format="text") == ("question", "system")


def test_the_report_says_it_once_for_each_source(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({**QA, "rationale": PROSE, "hint": PROSE}) + "\n")
    other = tmp_path / "other.csv"
    other.write_text(f"prompt,completion,critique\nWho?,Ada,{PROSE}\n")

    alone = check_file(rows)
    mixed = check_dataset(DatasetConfig(source=str(rows), mix={str(other): 1.0}))

    text = "What is in the columns rationale, hint is not read. A column mapping can give it a role."
    assert alone.notes == (text, "No held-out rows: there is one row.")
    assert mixed.notes[0] == text.replace("hint", "hint of rows.jsonl")
    assert "column critique of other.csv is not read" in mixed.notes[1]
