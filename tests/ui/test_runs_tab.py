"""All runs: found, compared, copied and deleted."""

from types import SimpleNamespace

import gradio as gr
import pytest

from engine.errors import RunError
from tests.fake_services import invent_runs
from tests.invented_runs import InventedRun, a_config, write_run
from ui.tabs.runs import RunsTab
from ui.views.run_table import COMPARE_PREFIX, MORE, query_of, render_run_table, when


@pytest.fixture
def tab(laid_out) -> RunsTab:
    return laid_out(RunsTab)


@pytest.fixture
def history(services):
    invent_runs(services.runs)
    return services.runs.ids()


def table_of(tab: RunsTab, words: str = "", state: str = "All", order: str = "Newest first") -> str:
    return tab.list_runs(words, state, order, "", [], 100, "")[0]


def pick(identifier: str):
    return SimpleNamespace(_data={"pick": identifier})


def test_an_empty_home_says_what_to_do(tab):
    assert "No runs yet" in table_of(tab)


def test_every_state_is_told_in_words_and_shape(tab, history):
    html = table_of(tab)

    for words in ("✓</i> completed", "✗</i> failed", "○</i> waiting", "■</i> stopped", "◐</i> interrupted"):
        assert words in html
    assert html.count("<tr data-pick") == len(history)


def test_search_filter_and_order_narrow_the_table(tab, history):
    assert table_of(tab, words="qwen3 support").count("<tr data-pick") == 2
    assert table_of(tab, state="Failed").count("<tr data-pick") == 2
    assert "No run is like that" in table_of(tab, words="nothing of the kind")
    by_loss = table_of(tab, order="Lowest held-out loss first")
    assert by_loss.index("faq, rank 16<") < by_loss.index("first try")


def test_an_unchanged_table_is_not_sent_again(tab, history):
    html = table_of(tab)

    assert tab.list_runs("", "All", "Newest first", "", [], 100, html) == (gr.skip(), gr.skip())


def test_a_browser_cannot_ask_for_an_order_that_there_is_not():
    query = query_of("x" * 5000, "<b>", "drop table")

    assert query.sort == "created"
    assert not query.states
    assert len(query.words) == 200


def test_long_histories_are_shown_a_page_at_a_time(tab, services):
    for _ in range(5):
        services.runs.create(a_config())
    rows = tab._page.reader.summaries()

    html = render_run_table(rows, "", (), 3)

    assert html.count("<tr data-pick") == 3
    assert "Show 2 more of 2" in html
    assert tab._take(pick(MORE), [], 3)[2] == 103


def test_ticked_runs_are_laid_over_each_other_with_only_what_differs(tab, history):
    visible, figure, differences = tab.compare([history[1], history[4]], "step", False)

    assert visible["visible"]
    assert figure
    assert "adapter.r" in differences
    assert "model.quantization" in differences
    assert "training.max_steps" not in differences  # the same in both
    assert differences.count("★") == 1


def test_one_run_alone_is_no_comparison(tab, history):
    assert tab.compare([history[1]], "step", False)[0]["visible"] is False
    assert tab.compare([history[1], "deleted meanwhile"], "step", False)[0]["visible"] is False


def test_a_tick_box_takes_a_run_in_and_out_and_a_row_is_looked_at(tab, history):
    first = history[0]

    assert tab._take(pick(COMPARE_PREFIX + first), [], 100)[1] == [first]
    assert tab._take(pick(COMPARE_PREFIX + first), [first], 100)[1] == []
    assert tab._take(pick(first), [], 100)[0] == first
    assert tab._take(pick("../../etc/passwd"), [], 100) == (gr.skip(),) * 3


def test_details_show_the_saved_configuration_and_offer_what_can_be_done(tab, history, services):
    visible, html, chat, delete, _ = tab.describe(history[1])

    assert visible["visible"]
    assert "lora_alpha: 32" in html
    assert chat["visible"]
    assert delete["visible"]
    waiting = tab.describe(history[0])
    assert not waiting[2]["visible"]
    assert not waiting[3]["visible"]


def test_a_copy_has_the_settings_but_not_the_name(tab, history):
    mapping = tab._configuration(history[1])

    assert mapping["run"]["name"] == ""
    assert mapping["dataset"]["source"] == "sample:loratory-faq"


def test_deleting_says_its_size_first_and_then_frees_it(tab, history, services):
    victim = history[1]

    assert "kB in all" in tab._ask_delete(victim)[1]
    chosen, compared, _ = tab._delete(victim, [victim, history[2]])

    assert chosen == ""
    assert compared == [history[2]]
    assert victim not in services.runs.ids()
    assert tab.describe(victim)[0]["visible"] is False


def test_a_run_under_way_cannot_be_deleted(tab, services):
    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=3))

    with pytest.raises(RunError):
        tab._delete(run.id, [])
    assert run.id in services.runs.ids()


def test_times_are_told_as_people_tell_them():
    now = 1_764_000_000.0

    assert ":" in when(now - 60, now)
    assert when(now - 86_400, now).startswith("yesterday")
    assert when(now - 400 * 86_400, now).endswith("2024")
    assert when(0.0, now) == "–"
