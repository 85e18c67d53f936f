"""Pairs and ratings as HTML: the prompt once, both answers side by side, and what the checks found."""

import re

import pytest

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.data.contract import DatasetPage
from loratory.ui.views.dataset import render_facts, render_preferences
from loratory.ui.views.rows import listing_choices, render_row
from tests.fake_inspector import FakeInspector, a_report

MODEL = ModelConfig(id="some/model")


def page_of(source: str, row: int = 0) -> DatasetPage:
    return FakeInspector().preview(DatasetConfig(source=source), MODEL, first_row=row, count=1)


def report_on(source: str, **changes):
    return a_report(DatasetConfig(source=source), MODEL, 1024).model_copy(update=changes)


def test_the_prompt_of_a_pair_is_shown_once_and_then_both_answers():
    html = render_row(page_of("preferences.jsonl"), as_tokens=True)

    prompt, chosen, rejected = re.split(r"<h3>(?:Chosen|Rejected)</h3>", html)
    assert "Shared prompt of 14 tokens." in prompt
    assert prompt.count("lora_alpha do?") == 1
    assert "lora_alpha do?" not in chosen + rejected
    assert "It scales the adapter" in chosen
    assert "It depends on many things." in rejected
    for side in (chosen, rejected):
        assert 'class="trained differs"' in side
        assert "43 tokens, 29 of them trained" in side
    assert html.count('role="region"') == 3
    assert "Differences between the two answers are highlighted." in html


def test_what_is_cut_is_struck_through_and_escaped():
    page = page_of("preferences.jsonl")
    row = page.rows[0]
    long = row.sequences[0].model_copy(update={"uncut_tokens": 60, "cut_text": "<b>and so on"})
    page = page.model_copy(update={"rows": (row.model_copy(update={"sequences": (long, row.sequences[1])}),)})

    html = render_row(page, as_tokens=True)

    assert '<span class="cut">&lt;b&gt;and so on</span>' in html
    assert "17 truncated at 43, struck through" in html


def test_a_pair_reads_as_two_conversations_with_one_beginning():
    html = render_row(page_of("preferences.jsonl"), as_tokens=False)

    before, after = html.split('<div class="sides">')
    assert before.count('<div class="turn">') == 1
    assert after.count("assistant · trained") == 2
    assert "as a pair." in html


@pytest.mark.parametrize(("row", "word"), [(0, "bad"), (1, "good")])
def test_a_rated_answer_has_its_label(row, word):
    assert f"rated {word}, exactly as in training" in render_row(page_of("ratings.jsonl", row), as_tokens=True)


def test_the_length_of_both_answers_is_a_sentence_and_a_chart():
    html = render_preferences(report_on("preferences.jsonl"))

    assert "longer in 250 of 347 pairs (72%), the rejected one in 90, and 7 are equally long" in html
    assert "at most 4 tokens longer than the rejected one" in html
    assert html.count("<rect") == 3
    assert [css for css in ("cut", "even", "kept") if f'class="{css}"' in html] == ["cut", "even", "kept"]
    assert "No prompt is on both sides of the split." in html
    assert render_preferences(report_on("rows.jsonl")) == ""


@pytest.mark.parametrize(
    ("good", "advice"),
    [
        (300, "Set undesirable_weight to about 6.4"),
        (47, "Set desirable_weight to about 6.4"),
        (180, "Both labels have about the same weight."),
        (0, "All answers have the same label"),
    ],
)
def test_the_balance_of_labels_comes_with_the_weights_that_even_it_out(good, advice):
    html = render_preferences(report_on("ratings.jsonl", desirable=good))

    assert advice in html
    assert f"{good / 347:.0%} good" in html


def test_facts_and_lists_are_those_of_the_kind_of_rows():
    pairs, ratings = render_facts(report_on("preferences.jsonl")), render_facts(report_on("ratings.jsonl"))

    assert "pairs kept" in pairs
    assert "good answers" in ratings
    assert "47</b>bad answers" in ratings
    single = render_facts(report_on("rows.jsonl").model_copy(update={"kept": 1, "dropped": 1, "masked_tokens": 0}))
    assert "1</b>row kept" in single
    assert "0</b>masked tokens" in single
    lists = {value: label for label, value in listing_choices(report_on("preferences.jsonl"))}
    assert lists["contradictions"] == "contradictory (2)"
    assert "length_gap" in lists
    assert "length_gap" not in {value: label for label, value in listing_choices(report_on("rows.jsonl"))}
