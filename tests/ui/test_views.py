"""Values into what people see: figures, errors, lengths and lists, with nothing of a stranger's text as markup."""

import gradio as gr
import pytest

from loratory.engine.errors import ConfigError, EngineError, Problem
from loratory.ui.components import picked_value, shown_as_message, shown_in_place
from loratory.ui.views.dataset import render_length_histogram
from loratory.ui.views.html import count, duration, error_box, gib, pickable, plural, size


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


def test_the_histogram_marks_what_the_cut_takes():
    chart = render_length_histogram([0, 100, 200, 300], [5, 9, 2], max_length=200)

    assert chart.count('class="kept"') == 2
    assert chart.count('class="cut"') == 1
    assert "cut at 200" in chart
    assert "9 rows of 100 to 199 tokens" in chart
    assert render_length_histogram([0, 1], [0], 10) == ""
