"""The table of all runs: found, sorted, shown a page at a time and saved."""

import csv
import io
import re
import time

import gradio as gr
import pytest

from loratory.engine.runs.names import words_of
from loratory.engine.runs.run import RunState
from loratory.engine.runs.summary import summarize
from loratory.ui.tabs.runs import RunsTab
from loratory.ui.views.run_table import (
    _COLUMNS,
    ANY_METHOD,
    ANY_MODEL,
    COMPARE_PREFIX,
    MORE,
    ORDERS,
    best_of,
    query_of,
    render_run_table,
    when,
)  # fmt: skip
from loratory.ui.views.run_view import state_mark
from tests.fake_results import a_test_result, save_tests
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.runs_tab_visitor import list_runs, pick, table_of, take
from tests.waiting import wait_until


@pytest.fixture
def tab(laid_out) -> RunsTab:
    return laid_out(RunsTab)


def test_an_empty_home_reports_what_to_do(tab):
    assert "No runs yet" in table_of(tab)


def test_every_state_is_reported_in_words_and_shape(tab, history):
    tab.page.reader.summaries()  # on a busy machine, a glance leaves older runs for later
    html = table_of(tab)

    for text in ("✓</i> completed", "✗</i> failed", "○</i> waiting", "■</i> stopped", "◐</i> interrupted"):
        assert text in html
    assert html.count("<tr data-pick") == len(history)


def test_search_filter_and_order_narrow_the_table(tab, history):
    assert table_of(tab, search="qwen3 support").count("<tr data-pick") == 2
    assert table_of(tab, state="Failed").count("<tr data-pick") == 2
    assert "No matching runs" in table_of(tab, search="nothing of the kind")
    assert table_of(tab, method="QLoRA").count("<tr data-pick") == 1
    assert table_of(tab, model="Qwen/Qwen3-0.6B").count("<tr data-pick") == 2
    assert list_runs(tab).method["choices"] == [ANY_METHOD, "LoRA", "QLoRA"]
    by_loss = table_of(tab, order="Lowest held-out loss first")
    assert by_loss.index("faq, rank 16 · ") < by_loss.index("first try")


def test_held_out_losses_are_ranked_among_comparable_runs_alone(tab, services):
    dpo = {"training__objective": "dpo", "dataset__source": "sample:loratory-preferences"}
    write_run(services.runs, a_config(run__name="pairs", **dpo), InventedRun(floor=0.01))
    for name, seed, floor in (("worse", 42, 1.2), ("other rows", 7, 0.5), ("better", 42, 0.9)):
        config = a_config(run__name=name, training__seed=seed)
        write_run(services.runs, config, InventedRun(floor=floor))

    html = table_of(tab, order="Lowest held-out loss first")
    names = ["better", "worse", "other rows", "pairs"]
    assert [html.index(f">{name} · ") for name in names] == sorted(html.index(f">{name} · ") for name in names)
    assert re.findall("Comparable losses: (.*?)</td>", html) == [
        "Supervised · smollm2-135m-instruct · loratory-faq", "Supervised · smollm2-135m-instruct · loratory-faq",
        "DPO · smollm2-135m-instruct · loratory-preferences",
    ]  # fmt: skip
    assert "Comparable losses" not in table_of(tab, order="Lowest held-out loss first", search="better")
    assert "Comparable losses" not in table_of(tab)


def test_an_unchanged_table_is_not_sent_again(tab, history):
    first = list_runs(tab)

    assert list_runs(tab, last=first.last).names() == []
    changes = list_runs(tab, last=first.last, search="faq")
    assert changes.table != first.table
    assert set(changes.names()) == {"table", "last"}  # queue and choices are as they were


def test_runs_that_are_read_slowly_come_by_and_by_the_newest_first(tab, history, monkeypatch):
    def summarize_slowly(run, history):
        time.sleep(0.12)
        return summarize(run, history)

    monkeypatch.setattr("loratory.ui.backend.run_reader._AT_ONCE_SECONDS", 0.1)
    monkeypatch.setattr("loratory.engine.runs.summary.summarize", summarize_slowly)
    first = table_of(tab)
    count = first.count("<tr data-pick")
    assert 0 < count < len(history)
    assert f"Reading {len(history) - count} older runs" in first
    assert max(history) in first

    wait_until(lambda: table_of(tab).count("<tr data-pick") == len(history))
    assert "older runs" not in table_of(tab)


def test_a_click_on_a_title_sorts_by_it_and_another_one_the_other_way_round(tab, history):
    query = ("", "All", ANY_METHOD, ANY_MODEL)

    def order_after(title: str, current: str) -> str:
        return tab.take(pick(f"sort:{title}"), [], False, 100, *query, current)[tab.order]

    for title, _, first, other in _COLUMNS:
        assert {first, other} <= set(ORDERS)
        assert order_after(title, "Largest on disk first") == first
        assert order_after(title, first) == other
        assert order_after(title, other) == first
    assert re.findall(
        r'<th[^>]*aria-sort="(\w+)"[^>]*>.*?>([^<]+)</button>', table_of(tab, order="Fewest steps first")
    ) == [("ascending", "Steps ▲")]
    assert tab.take(pick("sort:<b>"), [], False, 100, *query, "Newest first") == gr.skip()


def test_a_tick_while_another_is_answered_is_not_lost(tab, history, monkeypatch):
    ticks: list[str] = []  # Gradio hands the session's own list to every event
    rest = (False, 100, "", "All", ANY_METHOD, ANY_MODEL, "Newest first", "")
    compare = tab.compare

    def compare_while_another_is_ticked(run_ids, log_axis):
        monkeypatch.setattr(tab, "compare", compare)
        tab.take(pick(f"{COMPARE_PREFIX}{history[1]}"), ticks, *rest)
        return compare(run_ids, log_axis)

    monkeypatch.setattr(tab, "compare", compare_while_another_is_ticked)

    assert tab.take(pick(f"{COMPARE_PREFIX}{history[0]}"), ticks, *rest)[tab.ticked_runs] == [history[0], history[1]]
    assert tab.take(pick(f"{COMPARE_PREFIX}{history[0]}"), ticks, *rest)[tab.ticked_runs] == [history[1]]


def test_a_tie_has_no_winner(tab, history):
    row = tab.page.reader.summary(history[1])
    better = row.model_copy(update={"id": "other", "best_eval_loss": row.best_eval_loss - 0.1})

    assert best_of([row, better]) == "other"
    assert best_of([row, row.model_copy(update={"id": "same", "best_eval_loss": row.best_eval_loss + 1e-5})]) is None
    for change in ({"objective": "DPO"}, {"held_out": "other rows"}):
        assert best_of([row, better.model_copy(update=change)]) is None
    assert best_of([row]) is None
    assert best_of([row, better, row.model_copy(update={"id": "unmeasured", "best_eval_loss": None})]) == "other"


def test_what_never_started_was_removed_from_the_queue(tab, services):
    write_run(services.runs, a_config(), InventedRun(state="stopped"))

    assert "removed from the queue" not in table_of(tab)
    assert "removed from the queue" in state_mark("stopped", never_started=True)
    assert "removed" not in state_mark("failed", never_started=True)


def test_a_browser_cannot_ask_for_an_order_that_there_is_not():
    query = query_of("x" * 5000, "<b>", ANY_METHOD, None, "drop table")

    assert query.sort == "created"
    assert not query.states
    assert len(query.terms) == 200


def test_long_histories_are_shown_a_page_at_a_time(tab, services):
    for _ in range(5):
        services.runs.create(a_config())
    rows = tab.page.reader.summaries()

    html = render_run_table(rows, "", (), 3)

    assert html.count("<tr data-pick") == 3
    assert "Show 2 more of 2" in html
    assert take(tab, MORE, [], 3).shown_rows == 103


def test_no_two_rows_look_the_same_and_each_shows_age_and_loss(tab, services):
    config = a_config(run__name="twice", dataset__eval_fraction=0.0)
    twins = [write_run(services.runs, config, InventedRun()) for _ in range(2)]
    copy = write_run(services.runs, a_config(run__name=f"faq-lora-{words_of(twins[0].id)}"), InventedRun())
    row = tab.page.reader.summary(twins[0].id)
    html = table_of(tab)

    for run in (*twins, copy):
        assert html.count(f"· {run.id[-4:]}<span") == 1
    assert html.count(">just now</span>") == 3
    assert "below base 2.71" in html
    without_eval = row.model_copy(update={"best_eval_loss": None, "base_eval_loss": None, "final_loss": 1.5})
    assert '1.500<span class="under">not held out</span>' in render_run_table([without_eval], "", (), 9)
    waiting = row.model_copy(update={"best_eval_loss": None, "final_loss": None})
    assert ">–</td>" in render_run_table([waiting], "", (), 9)


def test_the_table_is_saved_as_it_is_filtered(tab, history):
    rows = list(csv.DictReader(io.StringIO(tab.save_csv("qwen3", "All", ANY_METHOD, ANY_MODEL, "Oldest first"))))

    assert [row["model"] for row in rows] == ["Qwen/Qwen3-0.6B"] * 2
    assert rows[0]["id"] < rows[1]["id"]


def test_waiting_runs_are_moved_let_start_and_taken_out(tab, services):
    first, second = (services.runs.create(a_config(run__name=f"waits {n}")) for n in (1, 2))
    first.folder.write_state(RunState(reason="memory", cause="It needs 9 GiB, and the CPU has 2 of 16 GiB free."))
    assert list_runs(tab).queue.index("waits 1") < list_runs(tab).queue.index("waits 2")
    assert list_runs(tab).queue.count("Start anyway") == 1

    tab.order_queue(pick(f"first:{second.id}"))
    assert list_runs(tab).queue.index("waits 2") < list_runs(tab).queue.index("waits 1")
    tab.order_queue(pick(f"anyway:{first.id}"))
    assert first.folder.start_anyway_request.exists()
    tab.order_queue(pick(f"out:{second.id}"))
    assert second.folder.stop_request.exists()
    tab.order_queue(pick("first:../../etc"))
    tab.order_queue(pick(f"explode:{first.id}"))


def test_losses_on_other_held_out_rows_are_not_ranked(tab, history):
    differences = tab.compare([history[1], history[5]], False)[tab.differences]

    assert "★" not in differences
    assert "not comparable" in differences


def test_times_are_formatted_for_people():
    now = 1_764_000_000.0

    assert ":" in when(now - 60, now)
    assert when(now - 86_400, now).startswith("yesterday")
    assert when(now - 400 * 86_400, now).endswith("2024")
    assert when(0.0, now) == "–"


def test_test_sets_are_columns_that_sort_the_runs(tab, services):
    best, worst, without = (write_run(services.runs, a_config(), InventedRun()) for _ in range(3))
    assert "Number" not in table_of(tab)
    title = "sums.jsonl (Number)"
    save_tests(best.folder.path, a_test_result(tuned=0.75))
    save_tests(worst.folder.path, a_test_result(tuned=0.25))
    tab.page.reader.invalidate()

    html = table_of(tab)
    assert f">{title}</button>" in html
    assert re.search(r'0\.75<span class="under">0\.\d\d to [01]\.\d\d</span>', html)
    query = ("", "All", ANY_METHOD, ANY_MODEL)
    order = tab.take(pick(f"sort:{title}"), [], False, 100, *query, "Newest first")[tab.order]
    assert order in list_runs(tab).order["choices"], "the page refuses an order that is not a choice"
    by_score = table_of(tab, order=order)
    assert 'aria-sort="descending"' in by_score
    ids = [f'data-pick="{run.id}"' for run in (best, worst, without)]
    assert sorted(ids, key=by_score.index) == ids
    other = tab.take(pick(f"sort:{title}"), [], False, 100, *query, order)[tab.order]
    by_score = table_of(tab, order=other)
    assert sorted(ids, key=by_score.index) == [ids[1], ids[0], ids[2]]
