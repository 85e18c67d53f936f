"""A conversation as a file."""

import json
import re
from base64 import b64decode

import pytest

from engine.errors import DatasetError
from ui.views.chat import Answer, Turn
from ui.views.conversation_file import (
    SavedConversation,
    as_json,
    as_markdown,
    open_conversation,
    read_conversation,
    render_links,
)

TURNS = [
    Turn("Grüße?", (Answer("tuned", "Hallo.", 3, 12.5, 20, True, "eos"),), reference="Guten Tag."),
    Turn("</a><script>?", (Answer("tuned", "No.", 1, 0.0, 30, True, "length"),)),
]


@pytest.fixture
def conversation():
    return SavedConversation(model="SmolLM2", names={"tuned": "faq, rank 16"}, system="Be brief.", turns=TURNS)


def test_json_comes_back_as_it_was(conversation):
    opened = read_conversation(as_json(conversation).encode())

    assert opened == conversation
    assert list(opened.turns) == TURNS


def test_markdown_names_who_said_what(conversation):
    text = as_markdown(conversation)

    assert "### faq, rank 16\n\nHallo." in text
    assert "### Reference\n\nGuten Tag." in text
    assert "Be brief." in text


def test_the_links_hold_the_files_themselves(conversation):
    markdown, values = (b64decode(data).decode() for data in re.findall(r"base64,([^\"]+)", render_links(conversation)))

    assert markdown == as_markdown(conversation)
    assert json.loads(values)["turns"][1]["question"] == "</a><script>?"
    assert "No messages yet" in render_links(SavedConversation())


@pytest.mark.parametrize("content", [b"", b"{}x", b'{"turns": [{"question": 1}]}', b"[]", b"\xff"])
def test_other_files_are_refused(content):
    with pytest.raises(DatasetError, match="not a conversation"):
        read_conversation(content)


def test_a_saved_file_is_opened_again(tmp_path, conversation):
    (tmp_path / "saved.json").write_text(as_json(conversation))

    assert open_conversation(tmp_path / "saved.json") == conversation
    with pytest.raises(DatasetError, match="cannot be read"):
        open_conversation(tmp_path / "gone.json")


def test_of_a_file_that_is_too_large_no_more_than_the_limit_is_read(tmp_path):
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(10**12)  # sparse; read whole, it would not fit into memory

    with pytest.raises(DatasetError, match="larger than 4 MB"):
        open_conversation(huge)
