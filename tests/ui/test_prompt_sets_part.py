"""Prompt sets of the chat: saved from the conversation or typed, asked one by one, stopped and deleted."""

import gradio as gr
import pytest
from gradio import EventData

from loratory.engine.evaluation.prompt_sets import PromptSets
from loratory.ui.backend.conversation import QuestionSettings, Turn, read_conversation
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.tabs.question_settings import SIDE_BY_SIDE
from loratory.ui.views.chat import render_transcript
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes
from tests.ui.test_chat_tab import PAGE, SAMPLING, act, load, send, turns_of

ROWS = [("What is alpha?", "A scale."), ("Why?", ""), ("How?", "So.")]


@pytest.fixture
def tab(laid_out, services) -> ChatTab:
    services.chat._pace = 0.0005
    tab = laid_out(ChatTab)
    load(tab, write_run(services.runs, a_config(), InventedRun()).id)
    return tab


@pytest.fixture
def sets(services) -> PromptSets:
    return PromptSets(services.home)


def pick(tab: ChatTab, what: str, name: str = "", text: str = "", turns=()) -> str:
    return tab.talk.sets.pick(EventData(None, {"pick": what}), name, text, turns)


def stream(tab: ChatTab, what: str, turns=(), before_edit=()):
    event = EventData(None, {"pick": what})
    updates = tab.talk.stream_set(event, list(turns), list(before_edit), SIDE_BY_SIDE, "Be brief.", PAGE, *SAMPLING)
    return (Changes(tab.talk, step) for step in updates)


def test_typed_prompts_are_saved_one_per_line(tab, sets):
    html = pick(tab, "save", " colours ", " one? \n\n two?\r\none?\n", [Turn("of the conversation")])

    assert "colours is saved with 2 prompts." in html
    assert 'data-pick="ask:colours"' in html
    assert [prompt.prompt for prompt in sets.read("colours").prompts] == ["one?", "two?"]


def test_questions_of_the_conversation_are_saved_with_their_references(tab, sets):
    pick(tab, "save", "colours", " \n", [Turn("one?", reference="One."), Turn("two?")])

    assert [(prompt.prompt, prompt.reference) for prompt in sets.read("colours").prompts] == [
        ("one?", "One."),
        ("two?", ""),
    ]


def test_an_empty_set_or_one_of_a_used_name_changes_nothing(tab, sets):
    sets.save("colours", ROWS)

    assert 'role="alert"' in pick(tab, "save", "colours")
    assert "already a prompt set" in pick(tab, "save", "colours", "another?")
    assert "letters, digits" in pick(tab, "save", "<b>", "another?")
    assert "&lt;b&gt;" in pick(tab, "save", "<b>", "another?")
    assert len(sets.read("colours").prompts) == 3


def test_a_set_is_deleted_and_a_pick_of_none_only_lists(tab, sets):
    sets.save("colours", ROWS)

    assert "Delete colours" in pick(tab, "")
    assert "Delete colours" in pick(tab, "delete:another")
    assert "colours" not in pick(tab, "delete:colours")
    assert sets.names() == []


def test_each_prompt_of_a_set_is_a_fresh_question_to_all_models(tab, sets, services):
    sets.save("colours", ROWS)
    earlier = turns_of(send(tab, "Before?"))
    before = len(services.chat.requests)

    steps = list(stream(tab, "ask:colours", earlier))

    turns = turns_of(steps)
    assert [(turn.question, turn.reference) for turn in turns] == [("Before?", ""), *ROWS]
    assert all({answer.branch for answer in turn.answers} == {"base", "tuned"} for turn in turns)
    requests = services.chat.requests[before:]
    assert [[message.content for message in request.messages] for request in requests] == [
        ["Be brief.", question] for question, _ in ROWS
    ]
    assert "Prompt 2 of 3" in "".join(step.trouble for step in steps if isinstance(step.trouble, str))
    assert steps[-1].stop["visible"] is False
    assert all(step.stop["visible"] for step in steps[:-1]), "a person on Stop stays on it"
    assert not any(value for step in steps for value in [step.question] if isinstance(value, str))


def test_a_later_question_does_not_read_the_prompts_of_a_set(tab, sets, services):
    sets.save("colours", ROWS)
    turns = turns_of(list(stream(tab, "ask:colours", turns_of(send(tab, "Before?")))))

    turns = turns_of(send(tab, "And now?", turns))

    questions = [message.content for message in services.chat.requests[-1].messages if message.role == "user"]
    assert questions == ["Before?", "And now?"]
    assert "Not in the context: 3 earlier questions." in render_transcript(turns)
    again = act(tab, "retry:2", turns).turns[2]
    assert again.settings.is_alone
    assert [message.content for message in services.chat.requests[-1].messages] == [again.question]


def test_a_saved_conversation_still_knows_what_was_alone(tab, sets):
    sets.save("colours", ROWS)
    turns = turns_of(list(stream(tab, "ask:colours")))

    copy = tab.talk.save(turns, "")[tab.talk.browser_copy]

    assert all(turn.settings.is_alone for turn in read_conversation(copy.encode()).turns)
    assert QuestionSettings.__dataclass_fields__["is_alone"].default is False, "older files have none"


def test_a_stop_ends_the_whole_set_also_between_two_prompts(tab, sets, services):
    sets.save("colours", ROWS)
    steps = stream(tab, "ask:colours")
    for step in steps:
        if isinstance(step.turns, list) and step.turns and step.turns[-1].answers[-1].done:
            break
    assert not tab.talk._stream.is_busy(PAGE.session_hash)
    (step,) = send(tab, "In between?")
    assert step._updates == {}

    tab.talk.stop_answers(PAGE)

    assert len(turns_of(list(steps))) == 1
    assert [len(turns_of(list(stream(tab, "ask:colours")))), tab.talk._pages_with_set] == [3, set()]


def test_a_set_ends_with_a_stopped_answer_or_an_error(tab, sets, services, monkeypatch):
    sets.save("colours", ROWS)
    services.chat.most_words = 1
    steps = stream(tab, "ask:colours")
    next(steps)
    tab.talk.stop_answers(PAGE)
    rest = list(steps)
    assert len(turns_of(rest)) == 1
    assert rest[-1].stop["visible"] is False

    services.chat.unload()
    steps = list(stream(tab, "ask:colours"))
    assert "No model is loaded." in steps[0].trouble
    assert steps[-1].trouble == gr.skip(), "the error stays"
    assert turns_of(steps) == []


def test_a_page_that_is_closed_ends_its_set(tab, sets, services):
    sets.save("colours", ROWS)
    steps = tab.talk.stream_set(EventData(None, {"pick": "ask:colours"}), [], [], SIDE_BY_SIDE, "", PAGE, *SAMPLING)
    next(steps)

    steps.close()

    assert tab.talk._pages_with_set == set()
    assert len(services.chat.requests) <= 1


def test_another_pick_asks_nothing_and_a_missing_set_is_reported(tab, sets):
    for what in ("save", "delete:colours", ""):
        (step,) = stream(tab, what)
        assert step._updates == {}
    with pytest.raises(gr.Error, match="no prompt set"):
        list(stream(tab, "ask:../votes"))


def test_a_guest_has_no_prompt_sets(laid_out, services, monkeypatch):
    part = laid_out(ChatTab).talk.sets
    monkeypatch.setattr(part, "_sets", PromptSets(services.home.for_person("gus", "guest")))

    assert "guests are not saved" in part.pick(EventData(None, {"pick": "save"}), "colours", "one?", [])
