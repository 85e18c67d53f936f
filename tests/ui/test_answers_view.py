"""Answers at each evaluation, as the page shows them below the curve."""

import re

import pytest

from loratory.engine.runs.store import RunStore
from loratory.ui.backend.run_reader import RunReader, RunSnapshot
from loratory.ui.views.answers import mark_changes, render_answers
from tests.invented_runs import InventedRun, a_config, write_run


def observe(home, config=None, **story) -> RunSnapshot:
    store = RunStore(home, "ann")
    run = write_run(store, config or a_config(), InventedRun(**story))
    return RunReader(store).observe(run.id)


def test_each_prompt_has_its_answers_at_every_evaluation(home):
    html = render_answers(observe(home, answers=True, steps=40, total_steps=120, state="running"))

    assert 'data-steps="0 12 24 36"' in html
    assert re.search(r'<input type="range" aria-label="Evaluation" max="3" value="3">', html)
    assert [label.split(",")[0] for label in re.findall(r"<span data-frame=.\d.>(Step [^<]*)", html)] == [
        "Step 0", "Step 12", "Step 24", "Step 36",
    ]  # fmt: skip
    assert "Step 0, held-out loss 2.71" in html
    assert html.count("<h3 class=") == 2
    assert ">What is r?</p>" in html
    assert html.count(">Before training</h4>") == 2
    assert html.count(">Reference</h4>") == 1  # a typed prompt has none


def test_answers_and_names_are_text(home):
    html = render_answers(observe(home, answers=True))

    assert "&lt;b&gt;hello&lt;/b&gt;" in html
    assert "<b>hello" not in html
    assert "Say <hello>" not in html


@pytest.mark.parametrize(
    ("before", "text", "html"),
    [
        ("a b c", "a b c", "a b c"),
        ("a b c", "a x c", "a <mark>x</mark> c"),
        ("a b c", "a c", "a c"),
        ("a b", "a b c", "a b<mark> c</mark>"),
        ("", "a <b>", "<mark>a &lt;b&gt;</mark>"),
    ],
)
def test_words_that_changed_are_marked(before, text, html):
    assert mark_changes(before, text) == html


@pytest.mark.parametrize(
    ("changes", "story", "waits"),
    [
        ({}, {"state": "starting"}, True),
        ({}, {"state": "queued"}, True),
        ({"training__eval_max_new_tokens": 0}, {"state": "queued"}, False),
        ({"dataset__eval_fraction": 0.0}, {"state": "queued"}, False),
        ({}, {"state": "running", "steps": 20}, False),  # evaluated without answers: the model is large
        ({}, {"state": "completed"}, False),
    ],
)
def test_until_the_first_evaluation_a_sentence_announces_it(home, changes, story, waits):
    snapshot = observe(home, a_config(**changes), **story)
    if story["state"] == "starting":  # before anything was measured
        snapshot.run.folder.events.unlink()
        snapshot = RunReader(RunStore(home, "ann")).observe(snapshot.run.id)

    assert ("first before training" in render_answers(snapshot)) == waits
