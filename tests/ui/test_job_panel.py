"""The panel of a job: it follows work that any page started, and draws it again once it began or ended."""

import json
import threading

import gradio as gr
import pytest

from loratory.engine.errors import RunError
from loratory.ui.backend.background import BackgroundWork, FunctionJob, WorkProgress
from loratory.ui.polls import JobPanel

WAIT_SECONDS = 300


@pytest.fixture
def works() -> BackgroundWork[str]:
    return BackgroundWork()


@pytest.fixture
def panel(works) -> JobPanel:
    with gr.Blocks():
        return JobPanel(works, "Export", "Stopped; nothing was written.", name="export", watch=lambda _: "same")


def begin(works, message="Row 1 of 8.") -> threading.Event:
    """Start a job that reports once, and ends when the event is set."""
    report_event, may_end = threading.Event(), threading.Event()

    def run(report) -> str:
        report(WorkProgress(message, 0.125))
        report_event.set()
        assert may_end.wait(WAIT_SECONDS)
        report(WorkProgress("Ending."))
        return "result"

    works.start("run", "An export", FunctionJob(run))
    assert report_event.wait(WAIT_SECONDS)
    return may_end


def news_of(panel, question, stamp="") -> dict | None:
    answer = panel.news(question, stamp)
    return None if answer is None else json.loads(answer)


def test_work_that_another_page_started_and_its_end_are_drawn_again(panel, works):
    idle = panel.follow("run")[panel.poll]
    assert news_of(panel, idle) is None, "an error of a start may be in the status"

    may_end = begin(works)
    assert news_of(panel, idle)["submit"]
    updates = panel.follow("run")
    assert (updates[panel.start]["interactive"], updates[panel.stop]["visible"]) == (False, True)
    news = news_of(panel, updates[panel.poll])
    assert not news["submit"]
    assert "Row 1 of 8." in news["values"]["export-status"]
    assert news_of(panel, updates[panel.poll], news["stamp"]) is None

    may_end.set()
    assert works.find("run").done.wait(WAIT_SECONDS)
    assert news_of(panel, updates[panel.poll], news["stamp"])["submit"]
    updates = panel.follow("run")
    assert (updates[panel.start]["interactive"], updates[panel.stop]["visible"]) == (True, False)


def test_a_stop_is_shown_at_once_and_its_end_with_what_it_means(panel, works):
    may_end = begin(works)
    question = panel.follow("run")[panel.poll]

    stopping = panel.end("run")
    assert "Stopping …" in stopping[panel.status]
    assert not stopping[panel.stop]["interactive"]
    assert panel.poll not in stopping
    assert news_of(panel, question)["submit"], "what else the page shows of it is drawn again"

    may_end.set()
    assert works.find("run").done.wait(WAIT_SECONDS)
    assert "nothing was written" in panel.follow("run")[panel.status]


def test_without_a_key_nothing_is_asked_and_nothing_can_be_started(panel):
    updates = panel.follow()

    assert (updates[panel.status], updates[panel.poll], updates[panel.start]["interactive"]) == ("", "", False)


def test_an_error_of_a_start_is_shown_in_the_status_alone(panel):
    def start():
        raise RunError("No run is chosen.", "Choose one.")

    updates = panel.shown_in_status(start)()

    assert list(updates) == [panel.status]
    assert "No run is chosen." in updates[panel.status]


@pytest.mark.parametrize("question", ["", "\n", "x\nunknown\n\x1f", "\n" * 500])
def test_what_a_browser_invents_as_question_is_answered_once(panel, question):
    news = news_of(panel, question)

    assert news is None or news_of(panel, question, news["stamp"]) is None
