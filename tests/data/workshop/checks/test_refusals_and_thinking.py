"""Refusals and thinking."""

import pytest

from tests.data.workshop.checks.reports import findings_of, talk


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("I’m sorry, but I can't  help with that.", "refusal"),
        ("As an AI language model, I have no opinion.", "boilerplate"),
        ("抱歉，我无法回答这个问题。", "refusal"),
    ],
)
def test_a_refusal_at_the_beginning_is_found(tmp_path, answer, kind):
    assert findings_of(tmp_path, [talk("Do it.", answer)], "refusals") == [(0, kind)]


@pytest.mark.parametrize(
    "answer", ["I cannot help but laugh.", "Sure. " * 60 + "I cannot help with more.", "As an AI engineer, I test."]
)
def test_other_answers_are_not_found(tmp_path, answer):
    assert findings_of(tmp_path, [talk("I cannot help with that.", answer)], "refusals") == []


def test_phrases_of_a_person_replace_the_own_ones(tmp_path):
    rows = [talk("Do it.", "No way."), talk("Do it.", "Nope."), talk("Do it.", "I cannot help with that.")]

    phrases = "# Ours\n\nslang: no way\nnope\n"
    assert findings_of(tmp_path, rows, "refusals", refusals=phrases) == [(0, "slang"), (1, "refusal")]


def test_empty_blocks_and_rows_without_thinking_are_found(tmp_path):
    thinks = talk("2 + 2?", "<think>Two and two.</think>4")
    rows = [thinks, talk("1 + 1?", "<think>\n\n</think>\n2"), thinks]

    assert findings_of(tmp_path, rows, "thinking") == [(1, "empty"), (1, "mixed")]


def test_a_set_where_all_rows_think_or_none_does_is_not_mixed(tmp_path):
    column = {
        "messages": [
            {"role": "user", "content": "2?"},
            {"role": "assistant", "content": "2", "reasoning_content": "Two."},
        ]
    }

    assert findings_of(tmp_path, [column, talk("2 + 2?", "<think>Two and two.</think>4")], "thinking") == []
    assert findings_of(tmp_path, [talk("1?", "1"), talk("2?", "2")], "thinking") == []
