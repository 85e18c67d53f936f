"""Prompt sets: saved, read and deleted within their limits; hostile names and files are refused."""

import json
import os
import stat

import pytest

from loratory.engine.errors import StorageError
from loratory.engine.evaluation import prompt_sets as module
from loratory.engine.evaluation.prompt_sets import PromptSets, SavedPrompt

ROWS = [("What is alpha?", "A scale."), ("Why <b>?\n\u2028Größe", "")]


@pytest.fixture
def sets(home) -> PromptSets:
    return PromptSets(home)


def file_of(sets: PromptSets, name: str):
    return sets.home.votes / "prompts" / f"{name}.jsonl"


def test_a_set_is_kept_in_order_as_json_lines(sets):
    sets.save("b-set", [("1", "")])
    sets.save("A_1", ROWS)

    assert sets.names() == ["A_1", "b-set"]
    assert sets.read("A_1").prompts == tuple(SavedPrompt(prompt=text, reference=answer) for text, answer in ROWS)
    lines = file_of(sets, "A_1").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == [{"prompt": text, "reference": answer} for text, answer in ROWS]
    assert stat.S_IMODE(file_of(sets, "A_1").stat().st_mode) == 0o600


def test_each_person_has_their_own_and_a_guest_has_none(home):
    PromptSets(home.for_person("ann")).save("colours", ROWS)

    assert PromptSets(home.for_person("eve")).names() == []
    PromptSets(home.for_person("eve")).delete("colours")
    assert PromptSets(home.for_person("ann")).names() == ["colours"]
    with pytest.raises(StorageError, match="guests"):
        PromptSets(home.for_person("gus", "guest")).save("colours", ROWS)


def test_a_set_is_deleted(sets):
    sets.save("colours", ROWS)
    sets.delete("colours")
    sets.delete("colours")

    assert sets.names() == []
    with pytest.raises(StorageError, match="no prompt set “colours”"):
        sets.read("colours")


@pytest.mark.parametrize(
    "name", ["", "a" * 41, "../votes", "a/b", "a.b", "a b", "ä", "a\n", "a\0", ".", "*", "/etc/passwd"]
)
def test_a_hostile_name_is_refused(sets, name):
    with pytest.raises(StorageError, match="letters, digits"):
        sets.save(name, ROWS)
    with pytest.raises(StorageError, match="no prompt set"):
        sets.read(name)
    sets.delete(name)

    assert not sets.home.votes.exists()


@pytest.mark.parametrize(
    ("rows", "fact"),
    [
        ([], "at least 1"),
        ([("1", "")] * 501, "at most 500"),
        ([("x" * 20_001, "")], "at most 20000 characters"),
        ([("x", "y" * 20_001)], "at most 20000 characters"),
        ([(" \n", "")], "pattern"),
    ],
)
def test_what_exceeds_a_limit_changes_nothing(sets, rows, fact):
    sets.save("colours", ROWS)

    for name in ("colours", "another"):
        with pytest.raises(StorageError, match=fact):
            sets.save(name, rows)

    assert sets.names() == ["colours"]
    assert len(sets.read("colours").prompts) == 2


def test_the_largest_set_is_read_again(sets):
    sets.save("largest", [(f"{number:03}" + "€" * 19_997, "") for number in range(500)])

    assert len(sets.read("largest").prompts) == 500


def test_a_set_is_not_lost_to_another_of_its_name(sets):
    sets.save("colours", ROWS)

    with pytest.raises(StorageError, match="already a prompt set colours"):
        sets.save("colours", [("1", "")])

    assert len(sets.read("colours").prompts) == 2


def test_sets_are_bounded(sets, monkeypatch):
    monkeypatch.setattr(module, "MOST_SETS", 2)
    sets.save("1", ROWS)
    sets.save("2", ROWS)

    with pytest.raises(StorageError, match="2 prompt sets"):
        sets.save("3", ROWS)


def test_a_lone_surrogate_of_a_browser_is_replaced(sets):
    sets.save("broken", [("a\ud800", "")])

    assert sets.read("broken").prompts[0].prompt == "a?"


@pytest.mark.parametrize(
    "content",
    [b"", b"{broken\n", b"[" * 100_000, b'{"prompt": 1}\n', b'{"prompt": "a", "x": 1}\n', b'"a"\n', b"\xff\n"],
)
def test_a_damaged_file_is_refused_and_can_be_deleted(sets, content):
    sets.save("good", ROWS)
    file_of(sets, "bad").write_bytes(content)

    with pytest.raises(StorageError, match="“bad” is not valid"):
        sets.read("bad")
    sets.delete("bad")

    assert sets.names() == ["good"]


def test_links_pipes_folders_and_large_files_are_no_sets(sets, tmp_path, monkeypatch):
    sets.save("good", ROWS)
    (tmp_path / "secret.jsonl").write_text('{"prompt": "secret"}\n')
    file_of(sets, "link").symlink_to(tmp_path / "secret.jsonl")
    os.mkfifo(file_of(sets, "pipe"))
    file_of(sets, "folder").mkdir()
    file_of(sets, "large").write_bytes(b" " * 10_000)
    monkeypatch.setattr(module, "_LARGEST_FILE_BYTES", 10_000)

    assert sets.names() == ["good"]
    for name in ("link", "pipe", "folder", "large"):
        with pytest.raises(StorageError, match="no prompt set"):
            sets.read(name)
