"""Losses of held-out rows as a picture, with the rows that became worse."""

import json
import re
from dataclasses import dataclass
from html import unescape

import pytest

from loratory.engine.evaluation.job import (
    AnsweredRow,
    AnswerScores,
    BranchAnswer,
    BranchLoss,
    EvaluationResult,
    RowLoss,
)
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.views.row_losses import render_row_losses
from tests.fake_results import losses_by_row
from tests.invented_runs import InventedRun, a_config, write_run

LOSSES = tuple(RowLoss(row=row, base=2.0, tuned=tuned) for row, tuned in ((3, 1.0), (4, 2.5), (9, 2.01), (11, 4.0)))


@dataclass
class Click:
    """What a browser sends."""

    _data: dict[str, str]


def answered_row(row):
    answer = BranchAnswer(text="a", tokens=1, scores=AnswerScores(exact=False, rouge_l=0.0, chrf=0.0))
    return AnsweredRow(row=row, prompt="q", reference="r", answers={"tuned": answer})


def a_result(losses=LOSSES, rows=(11,)):
    mean = BranchLoss.from_loss(1.0, 10)
    answered_rows = tuple(map(answered_row, rows))
    return EvaluationResult(
        losses={"base": mean, "tuned": mean}, rows=4, scores={}, row_losses=losses, answered_rows=answered_rows
    )


def test_rows_that_became_worse_have_another_shape_and_are_listed_first():
    html = render_row_losses(a_result())

    assert "1 of 4 rows improved, 2 became worse." in html
    assert html.count('<path class="worse"') == 2
    assert html.count('<path class="better"') == 2
    assert html.count('data-pick="row:11"') == 1  # its point
    assert 'data-pick="row:4"' not in html  # it has no answer to open
    assert "Row 4: 2.00 → 1.00" in html


@pytest.mark.parametrize("losses", [(), LOSSES[:1]])
def test_results_without_losses_by_row_have_no_picture(losses):
    assert render_row_losses(a_result(losses)) == ""


def test_rows_that_stand_out_are_listed_with_the_losses_of_their_tokens():
    html = render_row_losses(losses_by_row("set:<faq>"))

    assert re.findall("<caption>(.*?)</caption>", html) == [
        "Likeliest",
        "Most surprising",
        "Got worse",
        "Still failing",
    ]
    assert "Loss by row of set:&lt;faq&gt;" in html
    assert re.findall(r'data-pick="(\d+)"', html) == ["3", "3", "11", "11"]
    assert ">It &lt;i&gt;é</td>" in html
    (text,) = set(re.findall('data-tokens="(.*?)"', html))
    assert json.loads(unescape(text)) == {
        "pieces": ["It", " <i>", "", "é"],
        "tokens": {"base": [0.05, 2.0, 0.7, 5.25], "tuned": [0.01, 1.0, 0.1, 2.89]},
    }


def test_of_held_out_rows_a_pick_opens_the_answer_too():
    assert 'data-pick="row:3"' in render_row_losses(losses_by_row())


def open_row(part, event, run_id, state, number):
    return part.open_row(event, run_id, state, number, "local", None, 20, 64, True)


def test_a_picked_row_opens_the_page_with_its_answers(laid_out, services, monkeypatch):
    part, run = laid_out(ChatTab).evaluate, write_run(services.runs, a_config(), InventedRun())
    result = a_result(rows=range(20))
    monkeypatch.setattr(part._evaluations, "read", lambda run_id, state, all_rows=False: result)

    assert open_row(part, Click({"pick": "row:12"}), run.id, None, 0)[part.number] == 2
    assert open_row(part, Click({"pick": "row:999"}), run.id, None, 1)[part.number] == 1
    assert open_row(part, Click({"pick": "<b>"}), "another", None, 0)[part.number] == 0
