"""Values into what people see: figures, errors, lengths and lists, with nothing of a stranger's text as markup."""

import json
import re

import gradio as gr
import pytest

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.errors import ConfigError, EngineError, Problem
from loratory.ui.components import picked_value, shown_as_message, shown_in_place
from loratory.ui.views.dataset import render_lengths
from loratory.ui.views.html import count, duration, error_box, gib, pickable, plural, size
from tests.fake_inspector import a_report


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (gib, 10.6 * 2**30, "10.6"),
        (gib, 0.471 * 2**30, "0.47"),
        (size, 1_200_000_000, "1.2 GB"),
        (size, 12, "12 bytes"),
        (count, 999_999, "999,999"),
        (count, 999_600_000_000, "1 T"),
        (count, 4812, "4,812"),
        (count, 8_030_261_248, "8.03 B"),
        (duration, 132, "2 min 12 s"),
        (duration, 4320, "1 h 12 min"),
        (duration, 200_000, "2 d 7 h"),
        (duration, -3, "0 s"),
        (lambda rows: plural(rows, "row"), 1, "1 row"),
        (lambda rows: plural(rows, "row"), 4812, "4,812 rows"),
    ],
)
def test_figures_read_as_people_write_them(function, value, text):
    assert function(value) == text


def test_all_problems_of_a_configuration_are_listed_in_one_box():
    box = error_box(ConfigError([Problem("adapter.r", "0 is too small."), Problem("model.id", "it is <empty>.")]))

    assert box.count("<li ") == 2
    assert 'data-field="adapter.r">Rank</button>: <span>0 is too small.</span>' in box
    assert "2 settings need your attention" in box
    assert "&lt;empty&gt;" in box


def test_commands_of_an_error_are_code_and_nothing_is_markup():
    box = error_box(EngineError("`<b>` is gone.", "Run `hf auth <login>`, or set `HF_TOKEN`; ` stays."))

    assert "<code>&lt;b&gt;</code> is gone." in box
    assert "Run <code>hf auth &lt;login&gt;</code>, or set <code>HF_TOKEN</code>; ` stays." in box


def test_an_unexpected_failure_shows_no_traceback():
    @shown_in_place
    def handler() -> str:
        raise ZeroDivisionError("secret/path")

    assert "secret" not in handler()
    assert "unexpected" in handler()


def test_an_engine_error_leaves_the_page_as_it_was():
    @shown_as_message
    def handler() -> str:
        raise EngineError("It is <gone>.", "Try again.")

    with pytest.raises(gr.Error, match="&lt;gone&gt;"):
        handler()


@pytest.mark.parametrize("data", [None, {}, "x", {"pick": None}])
def test_a_click_next_to_the_rows_picks_nothing_dangerous(data):
    event = gr.EventData(None, data)

    assert picked_value(event) in ("", "None")


def test_an_id_cannot_break_out_of_its_attribute():
    assert '"><script>' not in pickable('x"><script>')


def test_the_histogram_marks_what_the_cut_takes_and_has_a_slider_on_the_cut():
    report = a_report(DatasetConfig(source="rows.jsonl"), ModelConfig(id="some/model"), 120)
    lengths = report.token_lengths.model_copy(update={"over_max_length": 24})
    chart = render_lengths(report.model_copy(update={"token_lengths": lengths, "lost_trained_tokens": 1200}))

    assert (chart.count('class="kept"'), chart.count('class="cut"')) == (3, 4)
    assert "180 rows of 40 to 79 tokens" in chart
    slider = re.search(r'<input type="range" max="280" value="120" aria-label="Max length" [^>]*>', chart)[0]
    text = "24 rows and 1,200 trained tokens cut at 120 tokens."
    assert f'aria-valuetext="{text}"' in slider
    assert f">{text}</p>" in chart
    cuts = json.loads(re.search(r'data-cuts="([^"]*)"', slider)[1])
    assert [(edge, rows) for edge, rows, _ in cuts] == [
        (0, 347), (40, 286), (80, 106), (120, 24), (160, 9), (200, 3), (240, 1), (280, 0),
    ]  # fmt: skip
    tokens = [tokens for _, _, tokens in cuts]
    assert tokens[0] == pytest.approx(14_800 + 1_200), "a cut of everything takes all trained tokens"
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[-1] == 0
