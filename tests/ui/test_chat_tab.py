"""Talking: load, stream side by side, stop, and the exact prompt."""

import json
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio import EventData

from loratory.engine.chat.contract import ChatChunk, ChatState, LoadedModel
from loratory.engine.errors import ConfigError, ModelError, StorageError
from loratory.ui.backend.conversation import Answer, RowPrompt, SavedConversation, Turn
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.tabs.blind_test import Judging
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.tabs.chat_choice import A_FOLDER, A_MODEL, AS_TRAINED, NOTHING, Chosen
from loratory.ui.tabs.question_settings import RUNS, SIDE_BY_SIDE, read_sampling
from loratory.ui.views.chat import render_chat_state, render_loading, render_transcript
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes

SAMPLING = (0.3, 0.9, 64, None, 0, 1.0, False)
PAGE = SimpleNamespace(session_hash="page-1", headers={"x-ip-token": "of the visitor"})


def pick(what: str) -> EventData:
    return EventData(None, {"pick": what})


@pytest.fixture
def tab(laid_out, services) -> ChatTab:
    services.chat._pace = 0.0005
    return laid_out(ChatTab)


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(), InventedRun())


def load(
    tab: ChatTab, run_id: str, checkpoint: str = FINAL, model: str = "", folder: str = "", against: str = NOTHING,
    precision: str = AS_TRAINED,
) -> list:  # fmt: skip
    return [
        Changes(tab, step) for step in tab.load_chosen(*Chosen(run_id, checkpoint, model, folder, against, precision))
    ]


def send(tab: ChatTab, question: str, turns=(), branches: str = SIDE_BY_SIDE, row=None, before_edit=()) -> list:
    return [
        Changes(tab.talk, step)
        for step in tab.talk.stream_answers(
            question, list(turns), list(before_edit), row, branches, None, PAGE, *SAMPLING
        )
    ]


def act(tab: ChatTab, what: str, turns: list, before_edit=(), system: str = "") -> Changes:
    return all_of(tab, what, turns, before_edit, system)[-1]


def all_of(tab: ChatTab, what: str, turns: list, before_edit=(), system: str = "") -> list:
    steps = tab.talk.act(pick(what), turns, list(before_edit), SIDE_BY_SIDE, system, PAGE, *SAMPLING)
    return [Changes(tab.talk, step) for step in steps]


def turns_of(steps: list) -> list:
    return next(step.turns for step in reversed(steps) if isinstance(step.turns, list))


def refresh(tab: ChatTab, last_state: str = "") -> dict:
    return tab.refresh(last_state, Judging())


def test_runs_with_a_result_or_a_checkpoint_are_offered_newest_first(tab, services, run):
    write_run(services.runs, a_config(), InventedRun(state="failed", steps=3))
    newer = write_run(services.runs, a_config(run__name="newer"), InventedRun(state="running", steps=60))

    changes = Changes(tab.choice, tab.choice.offer("", A_MODEL, ""))
    offers, against = changes.run, changes.against

    assert [value for _, value in offers["choices"]] == [newer.id, run.id, A_FOLDER, A_MODEL]
    assert offers["value"] == newer.id
    assert [value for _, value in changes.checkpoint["choices"]] == ["step-60", "step-30"]
    assert changes.model["visible"] is False
    assert changes.folder["visible"] is False
    assert [value for _, value in against["choices"]] == [NOTHING, f"{newer.id}/step-30", f"{run.id}/final"]


def test_loading_shows_progress_and_then_what_is_loaded(tab, run):
    states = [step.state for step in load(tab, run.id)]

    assert any("Loading the adapter." in state for state in states)
    assert 'role="progressbar"' in "".join(states)
    assert "with the LoRA result of" in states[-1]


def test_the_choice_folds_also_when_the_same_is_loaded_again(tab, run):
    """Nothing that the page polls changes then: a fold opened by hand stayed open over the conversation."""
    for _ in range(2):
        assert load(tab, run.id)[-1].fold["open"] is False
    assert all(step.fold == gr.skip() for step in load(tab, A_MODEL))


def test_what_is_loaded_stays_in_sight_once_a_wish_to_load_is_over(tab):
    """Gradio takes a handler that yields nothing for one that empties its outputs: a button lost its words."""
    assert list(tab.load_wanted("")) == [gr.skip()]


def test_a_model_that_cannot_be_reached_is_reported_in_place(tab):
    last = load(tab, A_MODEL, model="nowhere/at-all")[-1]

    assert "cannot be reached" in last.state
    assert last.load["interactive"]
    assert "No model is named." in load(tab, A_MODEL)[-1].state


def test_a_failed_load_is_reported_until_the_next_load_on_every_page(tab, run):
    """The page also looks every few seconds: what it saw of the loading must not replace the reason."""
    loading = tab.load_chosen(*Chosen(A_MODEL, FINAL, "nowhere/at-all", "", NOTHING, AS_TRAINED))
    while "Starting" not in Changes(tab, next(loading)).state:
        pass
    last_state = f"\n{render_loading(None)}"

    assert "cannot be reached" in Changes(tab, list(loading)[-1]).state
    assert "cannot be reached" in refresh(tab, last_state)[tab.state]
    load(tab, run.id)
    assert "cannot be reached" not in refresh(tab, last_state)[tab.state]
    assert "cannot be reached" in render_chat_state(
        tab.page.services.chat.state.model_copy(update={"failure": ModelError("It cannot be reached.", "Wait.")})
    )


def test_both_branches_stream_into_one_transcript(tab, services, run):
    load(tab, run.id)

    steps = send(tab, "What does <b>lora_alpha</b> do?")

    html = steps[-1].transcript
    assert "first letter of the Greek alphabet" in html
    assert "It scales the adapter's update" in html
    assert "<b>lora_alpha" not in html
    assert len(services.chat.requests) == 1  # one prompt for both
    assert steps[0].question == ""  # the question is taken from where it was typed


def test_a_lent_gpu_is_counted_for_the_visitor_and_its_wait_is_shown(tab, services, run):
    load(tab, run.id)
    send(tab, "Why?")
    assert services.chat.requests[-1].gpu_token == "of the visitor"

    chunk = ChatChunk(branch="tuned", text="", tokens=0, tokens_per_second=0, prompt_tokens=0, note="waiting for <b>")
    waiting = Turn("Why?", (Answer("tuned"),)).with_chunk(chunk)
    assert "waiting for &lt;b&gt;" in render_transcript([waiting])
    assert "waiting" not in SavedConversation(turns=(waiting,)).model_dump_json()


def test_afterwards_each_branch_is_asked_with_its_own_memory(tab, services, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "one?"))

    steps = send(tab, "two?", turns)

    later = services.chat.requests[1:]
    assert sorted(request.branches for request in later) == [("base",), ("tuned",)]
    assert {request.messages[1].content[:5] for request in later} == {"Alpha", "It sc"}
    assert all(answer.done for answer in turns_of(steps)[-1].answers)


def test_two_runs_are_asked_side_by_side(tab, services, run):
    other = write_run(services.runs, a_config(run__name="the <other>"), InventedRun())
    load(tab, run.id, against=f"{other.id}/final")

    changes = refresh(tab)
    html = send(tab, "one?", branches=RUNS)[-1].transcript

    assert ("Both runs", RUNS) in changes[tab.talk.branches]["choices"]
    assert services.chat.requests[0].branches == ("tuned", "second")
    assert "the &lt;other&gt;" in html
    assert "Base model" not in html


def test_a_question_can_be_edited_and_the_edit_cancelled_without_a_loss(tab, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "two?", turns_of(send(tab, "one?"))))
    edit = act(tab, "edit:1", turns)
    assert (edit.turns, edit.question) == (turns[:1], "two?")
    assert "two?" not in edit.transcript
    assert act(tab, "edit:7", turns)._updates == {}

    twice = act(tab, "edit:0", edit.turns, edit.before_edit)
    back = Changes(tab.talk, tab.talk.cancel_edit(twice.before_edit))

    assert twice.turns == []
    assert (back.turns, back.question, back.cancel_button["visible"]) == (turns, "", False)


def test_an_changed_question_is_another_version_and_the_earlier_one_comes_back_whole(tab, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "two?", turns_of(send(tab, "one?"))))
    edit = act(tab, "edit:0", turns)

    changed = turns_of(send(tab, "uno?", edit.turns, before_edit=edit.before_edit))
    earlier = act(tab, "version:0:0", changed)
    later = act(tab, "version:0:1", earlier.turns)

    assert [turn.question for turn in changed] == ["uno?"]
    assert "2 of 2" in tab.talk.render(changed)
    assert [turn.question for turn in earlier.turns] == ["one?", "two?"]
    assert "1 of 2" in earlier.transcript
    assert later.turns == changed
    assert json.loads(earlier.browser_copy)["turns"][0]["others"][0][0]["question"] == "uno?"
    assert act(tab, "version:0:2", changed)._updates == {}


def test_a_retry_answers_the_same_question_again_and_keeps_what_came_after(tab, services, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "two?", turns_of(send(tab, "one?", row=RowPrompt(7, "one?", "Reference.")))))

    again = turns_of(all_of(tab, "retry:0", turns))

    assert services.chat.requests[-1].messages[-1].content == "one?"
    assert [(turn.question, turn.reference, turn.version) for turn in again] == [("one?", "Reference.", 1)]
    assert act(tab, "version:0:0", again).turns[1:] == turns[1:]
    assert act(tab, "forget:0", turns)._updates == {}


def test_a_conversation_branches_after_an_answer(tab, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "two?", turns_of(send(tab, "one?"))))
    branch = act(tab, "branch:0", turns)

    other = turns_of(send(tab, "zwei?", branch.turns, before_edit=branch.before_edit))

    assert [turn.question for turn in other] == ["one?", "zwei?"]
    assert [turn.question for turn in act(tab, "version:1:0", other).turns] == ["one?", "two?"]
    assert "branch:0" in branch.transcript or "branch:1" not in tab.talk.render(turns), "the end has no other one"


def test_a_retry_without_an_answer_loses_nothing(tab, services, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "one?"))
    services.chat.unload()

    last = all_of(tab, "retry:0", turns)[-1]

    assert (last.turns, last.question, last.before_edit) == ([], "one?", turns)
    assert last.cancel_button["visible"]


def test_an_answer_that_is_whole_is_kept_in_the_same_step(tab, run):
    """What follows in another event comes too late for a reload, or over what was pressed meanwhile."""
    load(tab, run.id)
    prompt = RowPrompt(7, "one?", "The reference.")

    first, *_, last = send(tab, "one?", row=prompt)

    assert (first.row, last.row) == (None, gr.skip())
    assert 'data-pick="retry:0"' in last.transcript
    assert json.loads(last.browser_copy)["turns"][0]["reference"] == "The reference."


def test_a_conversation_survives_a_reload_and_is_opened_from_its_file(tab, run, services, tmp_path):
    load(tab, run.id)
    turns = turns_of(send(tab, "What is <b>r</b>?"))

    saved, links = tab.talk.save(turns, "Be brief.").values()

    restored = Changes(tab.talk, tab.talk.restore(saved, [], ""))
    assert restored.turns == turns
    assert Changes(tab.talk.sampling, restored._updates).system == "Be brief."
    assert "&lt;b&gt;r" in restored.transcript
    assert tab.talk.restore(saved, turns, "") == gr.skip()  # what is on the page stays
    assert tab.talk.restore("nonsense", [], "") == gr.skip()
    assert 'download="smollm2-135m-instruct-LoRA-loratory-faq-chat.json"' in links
    elsewhere = tmp_path / "conversation.json"
    elsewhere.write_text(saved)
    with pytest.raises(StorageError):
        tab.talk.open_file(str(elsewhere))
    file = services.home.transfers / "conversation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(saved)
    assert tab.talk.open_file(str(file))[tab.talk.turns] == turns


def test_without_a_model_the_question_stays_with_its_reference(tab):
    prompt = RowPrompt(7, "one?", "The reference.")

    (last,) = send(tab, "one?", row=prompt)

    assert (last.turns, last.question, last.row) == ([], "one?", prompt)
    assert "No model is loaded." in last.trouble


def test_wrong_sampling_settings_are_listed_together(tab, run):
    with pytest.raises(ConfigError) as error_info:
        read_sampling((9.0, 0.0, "many", None, 0, 1.0, False))

    assert [tuple(problem) for problem in error_info.value.problems] == [
        ("temperature", "9.0 is out of range; it must be at most 5.0."),
        ("top_p", "0.0 is out of range; it must be above 0."),
        ("max_new_tokens", "'many' is not a whole number."),
    ]
    assert read_sampling((None,) * 7).temperature == 0.3
    assert read_sampling((0.8, None, None, None, None, None, True)).greedy


def test_stop_ends_the_answer_of_this_page_only(tab, services, run):
    load(tab, run.id)
    services.chat.most_words = 1
    stream = tab.talk.stream_answers("one?", [], [], None, SIDE_BY_SIDE, "", PAGE, *SAMPLING)
    next(stream)
    next(stream)

    tab.talk.stop_answers(SimpleNamespace(session_hash="another page"))
    assert not services.chat._stopped
    tab.talk.stop_answers(PAGE)

    html = list(stream)[-1][tab.talk.transcript]
    assert html.count("stopped") == 2


def test_a_stop_in_the_first_moment_is_not_lost(tab, services, run):
    """Once the Stop button is there, a click counts, although nothing was asked of the model yet."""
    load(tab, run.id)
    stream = tab.talk.stream_answers("one?", [], [], None, SIDE_BY_SIDE, "", PAGE, *SAMPLING)
    assert Changes(tab.talk, next(stream)).stop["visible"]
    assert services.chat.requests == []

    tab.talk.stop_answers(PAGE)

    (turn,) = list(stream)[-1][tab.talk.turns]
    assert {answer.finish_reason for answer in turn.answers} == {"stopped"}
    assert not any(answer.text for answer in turn.answers)


def test_a_page_is_answered_one_question_at_a_time(tab, services, run):
    load(tab, run.id)
    stream = tab.talk.stream_answers("one?", [], [], None, SIDE_BY_SIDE, "", PAGE, *SAMPLING)
    next(stream)

    (second,) = send(tab, "two?")

    assert second._updates == {}
    assert len(turns_of([Changes(tab.talk, step) for step in stream])) == 1


def test_a_page_that_is_closed_in_the_middle_stops_its_answer(tab, services, run):
    load(tab, run.id)
    stream = tab.talk.stream_answers("one?", [], [], None, SIDE_BY_SIDE, "", PAGE, *SAMPLING)
    next(stream)
    next(stream)

    stream.close()

    assert services.chat._stopped == {services.chat.requests[0].id}


def test_the_exact_prompt_of_a_turn_is_what_its_models_read(tab, run):
    load(tab, run.id)
    turns = turns_of(send(tab, "What <now>?", turns_of(send(tab, "one?"))))

    first, second = (act(tab, f"prompt:{number}", turns).transcript for number in (0, 1))

    assert "1 2 3" in first
    assert first.count("Prompt text") == 1, "both read the same"
    assert "Base model and Tuned: " in first
    assert "scales the adapter" not in first.split("Prompt text")[1].split("</pre>")[0]
    assert second.count("Prompt text") == 2, "each has its own earlier answer"
    assert "What &lt;now&gt;?&lt;|im_end|&gt;" in second


def test_the_exact_prompt_has_the_system_prompt_of_its_turn_and_needs_its_models(tab, services, run):
    load(tab, run.id)
    stream = tab.talk.stream_answers("one?", [], [], None, SIDE_BY_SIDE, "Be brief.", PAGE, *SAMPLING)
    turns = turns_of([Changes(tab.talk, step) for step in stream])

    assert "system\nBe brief." in act(tab, "prompt:0", turns, system="Be long.").transcript
    load(tab, write_run(services.runs, a_config(run__name="other"), InventedRun()).id)
    assert "Tuned of this answer is not loaded." in act(tab, "prompt:0", turns).transcript


def test_the_choice_of_the_model_folds_once_it_is_loaded_and_opens_without(tab, services, run):
    load(tab, run.id)
    changes = Changes(tab, refresh(tab))
    assert changes.fold["open"] is False
    assert Changes(tab, tab.switch_mode("Measure")).fold["open"] is True

    services.chat.unload()

    assert Changes(tab, refresh(tab, changes.last_state)).fold["open"] is True


def test_questions_of_held_out_rows_are_offered_and_their_reference_is_next_to_it(tab, run):
    assert list(tab.talk.suggest().values()) == ["", []]  # nothing is loaded yet
    load(tab, run.id)

    html, prompts = tab.talk.suggest().values()

    assert len(prompts) == 3
    assert html.count("data-pick") == 4  # and "Show others"
    assert "From the held-out set" in html
    suggestion = Changes(tab.talk, tab.talk.take_suggestion(pick("1"), prompts))
    question, row = suggestion.question, suggestion.row
    turns = turns_of(send(tab, question, row=row))
    assert turns[0].reference == prompts[1].reference
    assert turns_of(send(tab, "something else?", row=row))[0].reference == ""
    assert tab.talk.take_suggestion(pick("others"), prompts)[tab.talk.suggested_prompts]
    assert tab.talk.take_suggestion(pick("9"), prompts) == gr.skip()


def test_who_is_asked_stays_chosen_while_the_same_is_loaded(tab, run):
    load(tab, run.id)
    branches, first = tab.talk.branches, refresh(tab)
    loaded, _, _ = first[tab.last_state].partition("\n")

    assert first[branches]["value"] == SIDE_BY_SIDE
    assert branches not in refresh(tab, f"{loaded}\nmore memory")

    load(tab, run.id, checkpoint="step-90")
    assert refresh(tab, first[tab.last_state])[branches]["value"] == SIDE_BY_SIDE


def test_the_state_line_is_sent_only_when_it_has_changed(tab, services):
    load(tab, write_run(services.runs, a_config(run__name="first"), InventedRun()).id)
    changes = refresh(tab)

    assert "result of <b>first</b> is loaded" in changes[tab.state]
    assert refresh(tab, changes[tab.last_state]) == gr.skip()
    tab.unload_model()
    assert "No model loaded" in refresh(tab, changes[tab.last_state])[tab.state]


def test_when_an_idle_model_is_unloaded_and_why_it_was_is_shown():
    model = LoadedModel(
        name="tiny", method="", branches=("base",), device="CPU", dtype="float32", quantization="none", weights_bytes=1,
        adapter_bytes=0, context_length=512,
    )  # fmt: skip
    ready = ChatState(phase="ready", model=model, expires_after_seconds=1800.0)
    note = "tiny was unloaded, because it was idle for 30 minutes."

    assert "unloads after 30 idle minutes, after 1 where a run waits" in render_chat_state(ready)
    assert "idle" not in render_chat_state(ready.model_copy(update={"expires_after_seconds": None}))
    assert note in render_chat_state(ChatState(phase="empty", note=note))
