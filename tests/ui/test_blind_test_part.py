"""The blind test on the page: nothing tells whose answer is whose before the choice, everything does after it."""

from types import SimpleNamespace

import gradio as gr
import pytest
from gradio import EventData

from loratory.engine.evaluation.blind_test import judgements_file, read_judgements
from loratory.engine.evaluation.preference import interval
from loratory.ui.backend.run_reader import FINAL
from loratory.ui.tabs.blind_test import HELD_OUT, OWN, Judging
from loratory.ui.tabs.chat import BLIND_TEST, MEASURE, ChatTab
from loratory.ui.tabs.chat_choice import AS_TRAINED, NOTHING, Chosen
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
    return write_run(services.runs, a_config(), InventedRun())


@pytest.fixture
def blind(tab, run):
    load(tab, run)
    return tab.blind


def load(tab, run, against=NOTHING):
    list(tab.load_chosen(*Chosen(run.id, FINAL, "", "", against, AS_TRAINED)))


def draw(blind, source=HELD_OUT, typed="", judging=Judging()):  # noqa: B008 - it is frozen
    return [Changes(blind, step) for step in blind.generate_pair(source, typed, judging, "", PAGE, *SAMPLING)]


def judge(blind, verdict, judging) -> Changes:
    return Changes(blind, blind.judge(EventData(None, {"pick": verdict}), judging))


def judging_of(steps) -> Judging:
    """Return what the page holds in the end."""
    return [step.judging for step in steps if isinstance(step.judging, Judging)][-1]


def pair_of(steps):
    return judging_of(steps).pair


def test_the_answers_appear_together_and_without_names(blind):
    steps = draw(blind)

    for html in (step.pair for step in steps if isinstance(step.pair, str)):
        assert not any(word in html.lower() for word in ("tuned", "base", "tokens/s"))
    assert "Greek alphabet" not in "".join(str(step.pair) for step in steps[:-1])
    assert "Greek alphabet" in steps[-1].pair
    assert "scales the adapter" in steps[-1].pair
    assert pair_of(steps).reference
    assert pair_of(steps).reference not in steps[-1].pair
    assert len(judging_of(steps).deck) == 49  # without the card that was drawn


def test_a_choice_reveals_and_is_kept_with_the_run(blind, run):
    open_judging = judging_of(draw(blind))
    pair = open_judging.pair
    side = "left" if pair.left == "tuned" else "right"

    verdict_changes = judge(blind, side, open_judging)
    html, judging = verdict_changes.pair, verdict_changes.judging

    assert "You preferred the tuned model." in html
    assert pair.reference.split("&")[0][:20] in html
    assert (judging.pair, verdict_changes.choosing["visible"], verdict_changes.trouble) == (None, False, "")
    (judgement,) = read_judgements(judgements_file(run.folder.path, None))
    assert judgement.winner == "tuned"
    assert judgement == judging.judgements[0]
    assert "1 pair judged" in blind.show_tally(judging)
    assert "At least 6 decided pairs" in blind.show_tally(judging)


def test_own_questions_can_be_asked(blind, services):
    steps = draw(blind, OWN, " Why <b>? ")

    assert services.chat.requests[-1].messages[-1].content == "Why <b>?"
    assert "Why &lt;b&gt;?" in steps[-1].pair
    assert "The question is empty" in draw(blind, OWN, " ")[-1].trouble


def test_answers_of_the_same_words_count_as_equal(blind, services, run, monkeypatch):
    monkeypatch.setattr("tests.fake_chat._ANSWERS", {"base": "Same words.", "tuned": "Same words."})

    steps = draw(blind)

    assert "identical" in steps[-1].pair
    assert pair_of(steps) is None
    assert read_judgements(judgements_file(run.folder.path, None))[0].verdict == "equal"


def test_two_runs_are_judged_under_their_names_in_a_file_of_their_own(tab, services, run):
    other = write_run(services.runs, a_config(run__name="the other"), InventedRun())
    load(tab, run, against=f"{other.id}/final")

    html = judge(tab.blind, "left", judging_of(draw(tab.blind))).pair

    assert "the other" in html
    assert len(read_judgements(judgements_file(run.folder.path, None, f"{other.id}-final"))) == 1


def test_without_a_second_answer_it_reports_what_is_missing(tab):
    assert "No model is loaded" in draw(tab.blind)[-1].trouble
    assert "Load a run" in tab.blind.why_absent(())
    assert "Nothing to compare" in tab.blind.why_absent(("base",))
    assert tab.blind.why_absent(("base", "tuned")) == ""


def test_a_choice_is_filed_under_what_answered_whatever_was_loaded_since(tab, blind, services, run):
    open_judging = judging_of(draw(blind))
    other = write_run(services.runs, a_config(run__name="the other"), InventedRun())
    load(tab, other)  # by another page, say

    html = judge(blind, "left", open_judging).pair

    assert "You preferred" in html
    assert len(read_judgements(judgements_file(run.folder.path, None))) == 1
    assert read_judgements(judgements_file(other.folder.path, None)) == ()
    load(tab, run, against=f"{other.id}/final")
    assert "the base model" in judge(blind, "left", open_judging).pair, "named as they were when they answered"


def test_pair_deck_and_tally_go_once_something_else_is_loaded(tab, blind, services):
    open_judging = judging_of(draw(blind))
    assert blind.clear_outdated(open_judging) == {}
    services.chat.unload()
    assert blind.clear_outdated(open_judging) == {}, "it may be loaded again"
    other = write_run(services.runs, a_config(), InventedRun())
    load(tab, other)

    updates = tab.refresh("", open_judging)
    changes = Changes(blind, updates)

    assert changes.judging == Judging(services.chat.state.target)
    assert (changes.pair, changes.choosing["visible"], changes.tally) == ("", False, "")
    assert tab.refresh(updates[tab.last_state], changes.judging) == gr.skip()
    assert len(judging_of(draw(blind, judging=open_judging)).deck) == 49, "a deck of the other's own"


def test_a_run_on_the_same_base_is_seen_to_be_another(tab, blind, services, run):
    state = tab.refresh("", Judging())[tab.last_state]
    load(tab, write_run(services.runs, a_config(), InventedRun()))

    assert tab.refresh(state, Judging())[tab.last_state] != state


def test_what_answered_while_something_else_was_loaded_is_not_a_pair(tab, blind, services):
    other = write_run(services.runs, a_config(), InventedRun())
    stream = blind.generate_pair(HELD_OUT, "", Judging(), "", PAGE, *SAMPLING)
    next(stream)
    next(stream)
    load(tab, other)

    last = Changes(blind, list(stream)[-1])

    assert "Something else was loaded meanwhile" in last.trouble
    assert last.judging == gr.skip()


def test_a_folder_without_a_run_has_the_tally_of_this_page(tab, blind, services, monkeypatch):
    monkeypatch.setattr(blind, "_file", lambda target, sides: None)
    judging = judge(blind, "left", judging_of(draw(blind))).judging

    assert "1 pair judged" in blind.show_tally(judging)
    load(tab, write_run(services.runs, a_config(), InventedRun()))
    assert blind.show_tally(judging) == ""


def test_a_stopped_pair_is_not_shown(blind, services):
    services.chat.most_words = 6  # enough for the page to say how far it is
    stream = blind.generate_pair(HELD_OUT, "", Judging(), "", PAGE, *SAMPLING)
    first = Changes(blind, next(stream))
    next(stream)
    blind.stop_answers(PAGE)

    last = Changes(blind, list(stream)[-1])

    assert last.pair == ""
    assert first.judging.pair is None
    assert last.judging == gr.skip()


def test_a_pair_that_is_stopped_in_the_first_moment_is_not_shown(blind, services):
    stream = blind.generate_pair(HELD_OUT, "", Judging(), "", PAGE, *SAMPLING)
    next(stream)
    assert services.chat.requests == []

    blind.stop_answers(PAGE)

    assert Changes(blind, list(stream)[-1]).pair == ""


def test_a_pair_is_stopped_once_another_mode_is_in_front(tab, blind, services):
    services.chat.most_words = 6
    stream = blind.generate_pair(HELD_OUT, "", Judging(), "", PAGE, *SAMPLING)
    next(stream)

    tab.leave_blind_test(BLIND_TEST, PAGE)
    next(stream)
    assert services.chat._stopped == set()
    tab.leave_blind_test(MEASURE, PAGE)

    assert Changes(blind, list(stream)[-1]).pair == ""


def test_a_verdict_begins_the_next_pair_of_the_held_out_set_at_once(blind, services):
    judging = judge(blind, "left", judging_of(draw(blind))).judging

    steps = [Changes(blind, step) for step in blind.generate_next_pair(HELD_OUT, "", judging, "", PAGE, *SAMPLING)]

    assert judging_of(steps).pair is not None
    assert len(judging_of(steps).deck) == 48
    assert list(blind.generate_next_pair(OWN, "Why?", judging, "", PAGE, *SAMPLING)) == [gr.skip()], "asked once"
    waiting = judging_of(steps)
    assert list(blind.generate_next_pair(HELD_OUT, "", waiting, "", PAGE, *SAMPLING)) == [gr.skip()], "not judged"
    assert list(blind.generate_next_pair(HELD_OUT, "", Judging(), "", PAGE, *SAMPLING)) == [gr.skip()]


def test_the_tally_has_a_win_rate_with_its_interval_and_the_last_pair(blind):
    judging, wins = Judging(), 0
    for verdict in ("tuned", "tuned", "equal", "neither", "base"):
        judging = judging_of(draw(blind, judging=judging))
        side = "left" if judging.pair.left == verdict else "right"
        judging = judge(blind, side if verdict in ("tuned", "base") else verdict, judging).judging
        wins += verdict == "tuned"

    html = blind.show_tally(judging)

    low, high = interval(wins, 3)
    assert f"the tuned model wins 67% ({low:.0%}–{high:.0%}) · 5 pairs judged · " in html
    assert "votes in all" in html
    assert "ties are left out" in html
    assert "You preferred the base model." in html
    assert "Last pair" in html


@pytest.mark.parametrize("verdict", ["", "LEFT", "left:1", "best"])
def test_a_verdict_that_is_not_offered_is_not_saved(blind, run, verdict):
    assert judge(blind, verdict, judging_of(draw(blind)))._updates == {}
    assert read_judgements(judgements_file(run.folder.path, None)) == ()
