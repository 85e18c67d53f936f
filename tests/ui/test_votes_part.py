"""Votes on the page: given in Chat and in the blind test, looked through, deleted, used as a dataset; three answers."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio import EventData

from loratory.engine.errors import StorageError
from loratory.engine.evaluation.blind_test import judgements_file, read_judgements
from loratory.engine.evaluation.votes import Votes
from loratory.ui.backend.conversation import Answer, QuestionSettings, Turn
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.tabs.blind_test import OWN, Judging
from loratory.ui.tabs.chat import VOTES, ChatTab
from loratory.ui.tabs.chat_choice import AS_TRAINED, NOTHING, START, Chosen
from loratory.ui.tabs.question_settings import BASE_AND_SECOND, SIDE_BY_SIDE, TUNED
from tests.evaluation.test_votes import HOSTILE, a_vote
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes

SAMPLING = (0.3, 0.9, 64, None, 0, 1.0, False)
PAGE = SimpleNamespace(session_hash="page-1", headers={})


@pytest.fixture
def tab(laid_out, services) -> ChatTab:
    services.chat._pace = 0.0005
    return laid_out(ChatTab)


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(run__name="faq"), InventedRun())


@pytest.fixture
def preference_run(services, run):
    """Write a run that learned preferences from where `run` ended."""
    config = a_config(
        run__name="plain answers", training__objective="dpo", adapter__warm_start=run.id,
        dataset__source="sample:loratory-preferences",
    )  # fmt: skip
    return write_run(services.runs, config, InventedRun())


@pytest.fixture
def votes(services) -> Votes:
    return Votes(services.home)


def load(tab, run, against=NOTHING):
    list(tab.load_chosen(*Chosen(run.id, FINAL, "", "", against, AS_TRAINED)))


def send(tab, question, turns=(), branches=SIDE_BY_SIDE, system="Be brief."):
    steps = [
        Changes(tab.talk, step)
        for step in tab.talk.stream_answers(question, list(turns), [], None, branches, system, PAGE, *SAMPLING)
    ]
    return steps[-1]


def vote(tab, turns, pick: str) -> Changes:
    (step,) = tab.talk.act(EventData(None, {"pick": pick}), turns, [], SIDE_BY_SIDE, "", PAGE, *SAMPLING)
    return Changes(tab.talk, step)


def press(tab, pick: str, number=0) -> Changes:
    return Changes(tab.votes, tab.votes.pick(EventData(None, {"pick": pick}), False, number))


def test_one_press_keeps_the_pair_and_another_takes_it_back(tab, run, votes):
    load(tab, run)
    answers = send(tab, "What is <b>alpha</b>?")
    assert answers.transcript.count('aria-pressed="false"') == 2

    changes = vote(tab, answers.turns, "vote:0:tuned")

    assert changes.transcript.count('aria-pressed="true"') == 1
    assert "1 vote in total" in changes.trouble
    (saved_vote,) = votes.read()
    better, worse = saved_vote.sides
    assert [turn.role for turn in saved_vote.prompt] == ["system", "user"]
    assert "scales the adapter" in better.text
    assert "Greek alphabet" in worse.text
    assert (better.model.run, better.model.name, worse.model.run, worse.model.base) == (
        run.id, "Tuned", "", "smollm2-135m-instruct",
    )  # fmt: skip
    assert saved_vote.sampling.seed is not None, "drawn, so it is known"
    assert (saved_vote.source, saved_vote.by, better.finish_reason) == ("chat", "somebody", "eos")

    changes = vote(tab, answers.turns, "vote:0:base")
    assert "Greek alphabet" in votes.read()[0].sides[0].text
    assert changes.transcript.count('aria-pressed="true"') == 1
    assert 'aria-pressed="true"' not in vote(tab, answers.turns, "vote:0:base").transcript
    assert votes.read() == ()


@pytest.mark.parametrize("pick", ["vote:0:second", "vote:7:base", "vote:x:base", "vote", "edit:0", "vote:-1:base"])
def test_a_vote_for_what_is_not_there_keeps_nothing(tab, run, votes, pick):
    load(tab, run)
    vote(tab, send(tab, "Why?").turns, pick)

    assert votes.read() == ()


def test_only_whole_and_different_answers_are_offered(tab, run):
    load(tab, run)
    (turn,) = send(tab, "Why?").turns
    base, tuned = turn.answers

    def offers(*answers, **changes):
        return "vote:" in tab.talk.render([replace(turn, answers=answers, **changes)])

    assert offers(base, tuned)
    assert not offers(base, replace(tuned, finish_reason="stopped"))
    assert not offers(base, replace(tuned, text=f" {base.text}\n"))
    assert not offers(base, replace(tuned, text=" "))
    assert not offers(base)
    assert not offers(base, tuned, settings=None), "a conversation of an older version"
    assert offers(base, replace(tuned, finish_reason="length"))


def test_later_turns_keep_both_conversations_since_they_differ(tab, run, votes):
    load(tab, run)
    changes = send(tab, "And why?", send(tab, "What?").turns)

    vote(tab, changes.turns, "vote:1:tuned")

    (saved_vote,) = votes.read()
    assert [turn.content for turn in saved_vote.prompt] == ["Be brief.", "What?"]
    assert [turn.role for turn in saved_vote.sides[0].turns] == ["assistant", "user", "assistant"]
    assert "scales" in saved_vote.sides[0].turns[0].content
    # What a branch was not asked is in no context: the pair begins with the question to both.
    alone = send(tab, "And why?", send(tab, "What?", branches=TUNED).turns)
    vote(tab, alone.turns, "vote:1:tuned")
    assert ["Be brief.", "And why?"] in [[turn.content for turn in vote_.prompt] for vote_ in votes.read()]


def test_answers_of_another_model_are_in_no_context_and_in_no_vote(tab, run, services, votes):
    load(tab, run)
    before = send(tab, "What?").turns
    load(tab, write_run(services.runs, a_config(run__name="another"), InventedRun()))

    changes = send(tab, "And why?", before)

    assert [message.content for message in services.chat.requests[-1].messages] == ["Be brief.", "And why?"]
    assert "Not in the context: 1 earlier question" in changes.transcript
    vote(tab, changes.turns, "vote:1:tuned")
    (saved_vote,) = votes.read()
    assert [turn.content for turn in saved_vote.prompt] == ["Be brief.", "And why?"]


def test_an_older_conversation_with_two_models_on_one_side_is_not_a_pair(tab, run, services):
    load(tab, run)
    before = send(tab, "What?").turns
    load(tab, write_run(services.runs, a_config(run__name="another"), InventedRun()))
    *_, last = send(tab, "And why?", before).turns

    old = [*before, replace(last, settings=replace(last.settings, left_out=()))]

    assert "vote:0" in tab.talk.render(old)
    assert "vote:1" not in tab.talk.render(old)


def test_a_vote_that_cannot_be_kept_reports_why(tab, run, votes, monkeypatch):
    load(tab, run)
    turns = send(tab, "Why?").turns
    monkeypatch.setattr("loratory.engine.evaluation.votes.LONGEST_CHARACTERS", 10)

    changes = vote(tab, turns, "vote:0:base")

    assert "a vote may have at most 10" in changes.trouble
    assert 'aria-pressed="true"' not in changes.transcript


def test_a_choice_of_the_blind_test_is_a_vote(tab, run, votes):
    load(tab, run)
    for verdict in ("left", "neither"):
        steps = list(tab.blind.generate_pair(OWN, f"Why {verdict}?", Judging(), "Be brief.", PAGE, *SAMPLING))
        judging = steps[-1][tab.blind.judging]
        updates = tab.blind.judge(EventData(None, {"pick": verdict}), judging)
        assert updates[tab.blind.trouble] == ""

    tie, preference = votes.read()
    assert (tie.is_tie, preference.source) == (True, "blind test")
    assert {side.model.run for side in preference.sides} == {run.id, ""}
    assert [turn.content for turn in preference.prompt] == ["Be brief.", "Why left?"]
    assert len(read_judgements(judgements_file(run.folder.path, None))) == 2


def test_the_tally_stays_where_a_vote_is_too_long(tab, run, votes, monkeypatch):
    load(tab, run)
    steps = list(tab.blind.generate_pair(OWN, "Why?", Judging(), "", PAGE, *SAMPLING))
    monkeypatch.setattr("loratory.engine.evaluation.votes.LONGEST_CHARACTERS", 10)

    updates = tab.blind.judge(EventData(None, {"pick": "left"}), steps[-1][tab.blind.judging])

    assert "at most 10" in updates[tab.blind.trouble]
    assert "You preferred" in updates[tab.blind.pair]
    assert len(read_judgements(judgements_file(run.folder.path, None))) == 1


def test_votes_are_looked_through_and_deleted(tab, votes):
    assert "No votes yet" in tab.votes.show(False)[tab.votes.counts]
    for number in range(7):
        votes.save(a_vote(f"Question {number} {HOSTILE}", left=HOSTILE, minute=number))
    votes.save(a_vote("Equal?", verdict="equal", minute=9))

    first, last = (Changes(tab.votes, tab.votes.show(False, page)) for page in (0, 99))

    assert "7 pairs. Left out: 1 tie." in first.counts
    assert first.list.count("<section>") == 5
    assert "Question 0" in last.list
    assert "6–8 of 8 votes" in last.list
    assert 'data-pick="page:1"' in first.list
    assert "6–8 of 8 votes" in press(tab, "page:1").list
    assert "<img" not in first.list
    identifier = votes.read()[0].id
    assert f"really:{identifier}" in press(tab, f"delete:{identifier}").list
    assert len(votes.read()) == 8
    after = press(tab, f"really:{identifier}")
    assert "1 vote deleted." in after.status
    assert identifier not in after.list
    assert "0 votes deleted." in press(tab, "really:of-another-person").status
    assert "7 votes" in press(tab, "nonsense").list
    assert "7 votes deleted." in tab.votes.delete(False)[tab.votes.status]


def test_votes_become_the_data_of_the_draft(tab, votes):
    with pytest.raises(StorageError, match="give no pair"):
        tab.votes.use(False)
    votes.save(a_vote())
    votes.save(a_vote("Equal?", verdict="equal"))

    used = Changes(tab.votes, tab.votes.use(False))

    source = used._updates[tab.votes.dataset_change]["dataset"]["source"]
    assert source.startswith(str(votes.home.uploads))
    assert [json.loads(line)["vote"]["id"] for line in Path(source).read_text().splitlines()] == [a_vote().id]
    assert "1 pair. Left out: 1 tie." in used.status


def test_the_mode_shows_votes_alone(tab):
    changes = Changes(tab, tab.switch_mode(VOTES))

    assert changes.votes_mode["visible"]
    assert not any(getattr(changes, name)["visible"] for name in ("fold", "talk_mode", "blind_mode", "measure_mode"))


def test_a_preferred_run_answers_next_to_its_start_and_its_base(tab, services, run, preference_run, votes):
    choice = Changes(tab.choice, tab.choice.choose(preference_run.id)).against
    assert choice["value"] == START
    load(tab, preference_run, START)
    target = services.chat.state.target
    assert target.second.folder == run.folder.path

    changes = tab.refresh("", Judging())[tab.talk.branches]
    answer_changes = send(tab, "Why?", branches=changes["value"])

    assert [label for label, _ in changes["choices"]][:3] == [
        "All three",
        "Supervised and preferred",
        "Base and preferred",
    ]
    assert [answer.branch for answer in answer_changes.turns[0].answers] == ["base", "second", "tuned"]
    names = [
        answer_changes.transcript.index(title)
        for title in ("Base model", "Supervised: faq", "Preferred: plain answers")
    ]
    assert names == sorted(names)
    assert vote(tab, answer_changes.turns, "vote:0:tuned").transcript.count('aria-pressed="true"') == 1
    assert {saved_vote.sides[1].model.name for saved_vote in votes.read()} == {"Base model", "Supervised: faq"}
    assert {saved_vote.sides[0].model.run for saved_vote in votes.read()} == {preference_run.id}
    send(tab, "Why?", branches=BASE_AND_SECOND)
    assert services.chat.requests[-1].branches == ("base", "second")


def test_three_columns_read_the_same_questions_after_a_chat_with_the_start(tab, services, run, preference_run):
    load(tab, run)
    alone = send(tab, "What is alpha?").turns
    load(tab, preference_run, START)

    changes = send(tab, "And r?", alone)

    (request,) = [request for request in services.chat.requests if "second" in request.branches]
    assert request.branches == ("base", "second", "tuned"), "one prompt for all three"
    assert [message.content for message in request.messages] == ["Be brief.", "And r?"]
    assert "Not in the context: 1 earlier question" in changes.transcript
    assert changes.transcript.count('data-pick="vote:1:') == 3
    send(tab, "And dropout?", changes.turns)
    histories = [request.messages for request in services.chat.requests[-3:]]
    assert {tuple(m.content for m in messages if m.role != "assistant") for messages in histories} == {
        ("Be brief.", "And r?", "And dropout?")
    }


def test_any_two_of_three_are_judged_blindly(tab, services, run, preference_run):
    load(tab, preference_run, START)
    offers = tab.refresh("", Judging())[tab.blind.sides]
    assert [label for label, _ in offers["choices"]] == [
        "Preferred: plain answers and Supervised: faq", "Base model and Preferred: plain answers",
        "Base model and Supervised: faq",
    ]  # fmt: skip

    for value, branches in (
        ("runs", {"tuned", "second"}),
        ("tuned", {"base", "tuned"}),
        ("second", {"base", "second"}),
    ):
        judging = tab.blind.choose_sides(value, Judging())[tab.blind.judging]
        judging = list(tab.blind.generate_pair(OWN, "Why?", judging, "", PAGE, *SAMPLING))[-1][tab.blind.judging]
        assert set(judging.pair.answers) == branches
        judging = tab.blind.judge(EventData(None, {"pick": "left"}), judging)[tab.blind.judging]
        assert "1 pair judged" in tab.blind.show_tally(judging)
    assert tab.blind.choose_sides("nonsense", Judging())[tab.blind.judging].sides == ""
    # Base and result alone are in one file, whatever else was loaded.
    assert len(read_judgements(judgements_file(preference_run.folder.path, None))) == 1
    load(tab, run)
    assert not tab.refresh("", Judging())[tab.blind.sides]["visible"]


def test_a_start_that_is_gone_is_not_offered(tab, services, run, preference_run):
    services.runs.delete(run.id)

    choices = Changes(tab.choice, tab.choice.choose(preference_run.id)).against

    assert START not in [value for _, value in choices["choices"]]
    assert choices["value"] == NOTHING


def test_a_hostile_answer_stays_text(tab, run, votes):
    load(tab, run)
    settings = QuestionSettings(tab.choice.answer_models(), a_vote().sampling)
    turn = Turn(
        "Why?", (Answer("base", HOSTILE, 1, done=True), Answer("tuned", "Because.", 1, done=True)), "", settings
    )

    html = vote(tab, [turn], "vote:0:base").transcript

    assert "<img" not in html
    assert "onerror=alert(1)&gt;" in html
    assert votes.read()[0].sides[0].text == HOSTILE
