"""The blind test on the page: nothing tells whose answer is whose before the choice, everything does after it."""

from types import SimpleNamespace

import pytest

from engine.evaluation.blind_test import judgements_file, read_judgements
from tests.invented_runs import InventedRun, a_config, write_run
from ui.tabs.blind_test import HELD_OUT, OWN
from ui.tabs.chat import ChatTab
from ui.tabs.chat_choice import AS_TRAINED, FINAL, NOTHING, Chosen

SAMPLING = (0.3, 0.9, 64, None, 0, 1.0, False)
PAGE = SimpleNamespace(session_hash="page-1")


@pytest.fixture
def tab(laid_out, services) -> ChatTab:
    services.chat._pace = 0.0005
    return laid_out(ChatTab)


@pytest.fixture
def run(services):
    return write_run(services.runs, a_config(), InventedRun())


@pytest.fixture
def blind(tab, run):
    list(tab._load(*Chosen(run.id, FINAL, "", "", NOTHING, AS_TRAINED)))
    return tab.blind


def draw(blind, source=HELD_OUT, typed="", deck=()):
    return list(blind.draw(source, typed, list(deck), [], "", PAGE, *SAMPLING))


def pair_of(steps):
    return steps[-1][1]


def test_the_answers_appear_together_and_without_names(blind):
    steps = draw(blind)

    for html in (step[0] for step in steps if isinstance(step[0], str)):
        assert not any(word in html.lower() for word in ("tuned", "base", "tokens/s"))
    assert "Greek alphabet" not in "".join(str(step[0]) for step in steps[:-1])
    assert "Greek alphabet" in steps[-1][0]
    assert "scales the adapter" in steps[-1][0]
    assert pair_of(steps).reference
    assert pair_of(steps).reference not in steps[-1][0]
    assert len(steps[0][2]) == 49  # the deck without the card that was drawn


def test_a_choice_reveals_and_is_kept_with_the_run(blind, run):
    pair = pair_of(draw(blind))
    side = "left" if pair.left == "tuned" else "right"

    html, cleared, judged, choosing, problem = blind.judge(side, pair, [])

    assert "You preferred <b>the tuned model</b>" in html
    assert pair.reference.split("&")[0][:20] in html
    assert (cleared, choosing["visible"], problem) == (None, False, "")
    (kept,) = read_judgements(judgements_file(run.folder.path, None))
    assert kept.preferred == "tuned"
    assert kept == judged[0]
    assert "1 pair judged" in blind._counted(judged)
    assert "At least 6 decided pairs" in blind._tally(judged)


def test_the_order_changes_from_pair_to_pair(blind):
    assert {pair_of(draw(blind)).left for _ in range(24)} == {"base", "tuned"}


def test_own_questions_can_be_asked(blind, services):
    steps = draw(blind, OWN, " Why <b>? ")

    assert services.chat.asked[-1].messages[-1].content == "Why <b>?"
    assert "Why &lt;b&gt;?" in steps[-1][0]
    assert "No question is typed" in draw(blind, OWN, " ")[-1][4]


def test_a_held_out_question_comes_once_before_any_comes_twice(blind):
    deck, seen = [], []
    for _ in range(50):
        steps = draw(blind, deck=deck)
        deck = steps[0][2]
        seen.append(pair_of(steps).prompt)

    assert deck == []


def test_answers_of_the_same_words_count_as_equal(blind, services, run, monkeypatch):
    monkeypatch.setattr("tests.fake_chat._ANSWERS", {"base": "Same words.", "tuned": "Same words."})

    steps = draw(blind)

    assert "word for word" in steps[-1][0]
    assert pair_of(steps) is None
    assert read_judgements(judgements_file(run.folder.path, None))[0].verdict == "equal"


def test_two_runs_are_judged_under_their_names_in_a_file_of_their_own(tab, services, run):
    other = write_run(services.runs, a_config(run__name="the other"), InventedRun())
    list(tab._load(*Chosen(run.id, FINAL, "", "", f"{other.id}/final", AS_TRAINED)))

    html, *_ = tab.blind.judge("left", pair_of(draw(tab.blind)), [])

    assert "the other" in html
    assert len(read_judgements(judgements_file(run.folder.path, None, f"{other.id}-final"))) == 1


def test_without_a_second_answer_it_says_what_is_missing(tab):
    assert "No model is loaded" in draw(tab.blind)[-1][4]
    assert "Load a run" in tab.blind.why_absent(())
    assert "nothing to compare" in tab.blind.why_absent(("base",))
    assert tab.blind.why_absent(("base", "tuned")) == ""


def test_a_stopped_pair_is_not_shown(blind, services):
    services.chat._pace = 0.01
    stream = blind.draw(HELD_OUT, "", [], [], "", PAGE, *SAMPLING)
    next(stream)
    next(stream)
    blind._stop(PAGE)

    last = list(stream)[-1]

    assert last[0] == ""
    assert last[1] is None
