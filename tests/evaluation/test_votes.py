"""Votes: pairs that are saved, replaced and deleted, and become a dataset that the formats know."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest

from loratory.engine.cli import run_command
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.conversation import PreferencePair
from loratory.engine.data.formats import Converter, detect_format, unread_columns
from loratory.engine.errors import StorageError
from loratory.engine.evaluation import votes as module
from loratory.engine.evaluation.votes import AnswerModel, Vote, VotedAnswer, VotedTurn, Votes, pairs_of_votes

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOSTILE = '<img src=x onerror=alert(1)>\n![x](https://evil.example/a.png)\u2028"'


def answer(text: str, name: str = "Base model", finish: str = "eos") -> VotedAnswer:
    turns = (VotedTurn(role="assistant", content=text),)
    return VotedAnswer(turns=turns, finish_reason=finish, model=AnswerModel(name=name, base="smollm2-135m-instruct"))


def a_vote(question="What is alpha?", left="A scale.", right="A letter.", verdict="left", minute=0, **facts) -> Vote:
    prompt = (VotedTurn(role="system", content="Be brief."), VotedTurn(role="user", content=question))
    left, right = (side if isinstance(side, VotedAnswer) else answer(side) for side in (left, right))
    known = {
        "time": NOON + timedelta(minutes=minute),
        "by": "Ada Augusta King of Lovelace",
        "source": "chat",
        "sampling": SamplingConfig(seed=7),
    }
    return Vote.new(prompt, left, right, verdict=verdict, **(known | facts))


@pytest.fixture
def store(home) -> Votes:
    return Votes(home)


def test_a_vote_is_kept_for_its_person_alone(store, home):
    store.save(a_vote())
    store.save(a_vote("Why?", minute=1))

    assert [vote.question for vote in store.read()] == ["Why?", "What is alpha?"]
    assert stat.S_IMODE(store.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.file.parent.stat().st_mode) == 0o700
    assert Votes(home.for_person("eve")).read() == ()
    assert Votes(home.for_person("eve")).remove([store.read()[0].id]) == 0
    assert len(store.read()) == 2


def test_the_same_two_answers_are_one_vote_and_the_last_choice_counts(store):
    store.save(a_vote())
    store.save(a_vote(left="A letter.", right="A scale.", minute=1))

    (vote,) = store.read()
    assert vote.sides[0].text == "A letter."
    assert len(store.file.read_bytes().splitlines()) == 1


def test_a_vote_is_taken_back(store):
    first_vote, deleted_vote = a_vote(), a_vote("Why?")
    for vote in (first_vote, deleted_vote):
        store.save(vote)

    assert store.remove([deleted_vote.id, "not-a-vote"]) == 1
    assert store.read() == (first_vote,)
    assert store.find(deleted_vote.id) is None
    assert store.remove() == 1
    assert store.read() == ()


def test_a_line_that_is_no_vote_is_skipped_and_stays(store):
    store.save(a_vote())
    with store.file.open("ab") as file:
        file.write(b"{broken\n")

    store.save(a_vote("Why?", minute=1))

    assert len(store.read()) == 2
    assert b"{broken" in store.file.read_bytes()


def test_pairs_are_a_dataset_that_is_recognized(store):
    store.save(a_vote(left=HOSTILE, right="A letter.", verdict="right"))
    store.save(a_vote("Why?", verdict="equal", minute=1))
    store.save(a_vote("How?", verdict="neither", minute=2))
    store.save(a_vote("Cut?", left=answer("It begins", finish="length"), minute=3))
    store.save(a_vote("Empty?", right=" ", minute=4))

    path, pairs = store.snapshot()

    out = "2 ties, 1 pair whose better answer was cut off, 1 pair with an empty answer"
    assert pairs.summary == f"1 pair. Left out: {out}."
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (row,) = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
    detection = detect_format(DatasetConfig(source="x"), [row])
    pair = Converter(detection).convert(row)
    assert isinstance(pair, PreferencePair)
    assert detection.format == "preference"
    assert [turn.role for turn in pair.prompt] == ["system", "user"]
    assert pair.chosen[0].content == "A letter."
    assert pair.rejected[0].content == HOSTILE
    assert unread_columns(detection, {}, [row]) == ()
    assert row["vote"]["by"] == "Ada Augusta King of Lovelace"
    assert row["sampling"]["seed"] == 7
    assert len(pairs_of_votes(store.read(), with_cut_off=True).rows) == 2
    assert store.snapshot()[0] == path  # the same votes are the same file


def test_without_a_pair_there_is_no_dataset(store):
    store.save(a_vote(verdict="equal"))

    with pytest.raises(StorageError, match="1 tie"):
        store.snapshot()


def test_an_endless_answer_is_refused(store):
    with pytest.raises(StorageError, match="200,000"):
        store.save(a_vote(left="x" * 1_000_000))

    assert not store.file.exists()


def test_votes_are_bounded(store, monkeypatch):
    monkeypatch.setattr(module, "MOST_VOTES", 2)
    store.save(a_vote("1"))
    store.save(a_vote("2"))

    with pytest.raises(StorageError, match="limit"):
        store.save(a_vote("3"))
    store.save(a_vote("2", verdict="right"))  # in place of the one before

    assert len(store.read()) == 2


def test_a_guest_has_no_votes(home):
    guest = Votes(home.for_person("gus", "guest"))

    with pytest.raises(StorageError, match="guest"):
        guest.save(a_vote())


def test_votes_are_listed_exported_and_deleted_by_command(store, tmp_path, capsys):
    def run(*arguments) -> tuple[int, str]:
        code = run_command(
            ["votes", *map(str, arguments)], ("loratory.engine.commands.evaluate", "loratory.engine.commands.configs")
        )
        return code, capsys.readouterr().out

    first_vote, tie = a_vote(), a_vote("Why?", verdict="equal", minute=1)
    for vote in (first_vote, tie):
        store.save(vote)
    file = tmp_path / "pairs.jsonl"

    code, text = run("list")
    assert (code, "1 pair. Left out: 1 tie." in text, first_vote.id in text) == (0, True, True)
    assert len(json.loads(run("list", "--json")[1])["votes"]) == 2
    assert run("export", file)[1] == f"{file}: 1 pair. Left out: 1 tie.\n"
    assert json.loads(file.read_text())["vote"]["id"] == first_vote.id
    assert run("export", file)[0] == 1  # it is there already
    assert run("delete", "nothing-like-it")[0] == 1
    assert run("delete")[0] == 2
    assert run("delete", tie.id) == (0, "1 deleted.\n")
    assert run("delete", "--all")[0] == 1  # no one can be asked
    assert run("delete", "--all", "--yes") == (0, "1 deleted.\n")
    assert store.read() == ()
