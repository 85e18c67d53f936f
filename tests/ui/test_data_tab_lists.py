"""The Data tab on fakes: its lists of rows, and searching them."""

import gradio as gr
import pytest

from engine.data.contract import RowProblem
from tests.ui.changes import Changes
from tests.ui.data_tab_visitor import PATIENCE_SECONDS, question_on, some_report, wait_for
from ui.views.html import ListPage
from ui.views.rows import PAGE_ROWS, listing_choices, render_counts, render_problem_list


@pytest.fixture
def checked_visitor(visitor, services):
    """The tab with a finished check whose report has something of everything."""
    question = question_on("rows.jsonl")
    services.tokenizers.ask(question.model).ended.wait(PATIENCE_SECONDS)
    check = services.checks.ask(question)
    wait_for(lambda: check.is_done)
    check.report = some_report()
    return visitor


def test_a_list_that_another_dataset_does_not_have_is_left(checked_visitor, services):
    check = services.checks.find(question_on("rows.jsonl"))
    settings = {"dataset__source": "rows.jsonl"}
    assert checked_visitor.open(listing="odd", **settings)["listing"]["value"] == "odd"
    check.report = some_report(notices=())

    assert checked_visitor.open(listing="odd", **settings)["listing"]["value"] == "all"


def test_only_lists_with_rows_on_them_are_offered_with_their_counts():
    assert listing_choices(None) == [("all rows", "all")]
    assert listing_choices(some_report()) == [
        ("all rows", "all"), ("skipped (1,200)", "left_out"), ("kept with warnings (2)", "odd"), ("longest", "longest"),
        ("shortest", "shortest"),
    ]  # fmt: skip


def test_problems_and_oddities_are_counted_by_kind():
    counts = render_counts(some_report())

    assert "<b>1,150</b> empty part" in counts
    assert "<b>50</b> invalid JSON" in counts
    assert "<b>2</b> turns out of order" in counts


def test_a_long_list_of_problems_is_turned_page_by_page_to_its_end(checked_visitor):
    values = checked_visitor.values(dataset__source="rows.jsonl")
    event = gr.EventData(None, {"pick": "page:29"})

    rows = checked_visitor.tab.rows
    jumped = rows._jump(0, event, *values)
    html = rows._list("left_out", 29, *values)

    assert jumped == {rows._list_page: 29}
    assert "reason 898" in html
    assert "reason 868" not in html
    assert "Later" not in html
    assert "436 to 450 of 450 listed" in html


def test_a_list_is_gone_through_with_previous_and_next(checked_visitor):
    values = checked_visitor.values(dataset__source="rows.jsonl")
    rows = checked_visitor.tab.rows

    assert rows._begin_list(1, "longest", *values) == {rows.number: 8, rows._list_page: 0}
    assert rows._turn(1)(8, "longest", *values) == 4
    assert rows._turn(1)(4, "longest", *values) == 4
    assert rows._turn(-1)(10, "odd", *values) == 6
    assert rows._turn(1)(7, "all", *values) == 8
    assert rows._turn(-1)(1, "all", *values) == 1


def test_the_longest_rows_are_listed_with_their_lengths(checked_visitor):
    html = checked_visitor.tab.rows._list("longest", 0, *checked_visitor.values(dataset__source="rows.jsonl"))

    assert 'data-pick="7"' in html
    assert ">43</td>" in html


def test_oddities_have_a_table_of_their_own(checked_visitor):
    values = checked_visitor.values(dataset__source="rows.jsonl")
    event = gr.EventData(None, {"pick": "show:odd"})

    rows = checked_visitor.tab.rows
    assert rows._jump(1, event, *values) == {rows.number: 6, rows.listing: "odd", rows._list_page: 0}
    assert "turn 3 is odd" in checked_visitor.tab.rows._list("odd", 0, *values)


@pytest.mark.parametrize("pick", ["page:x", "show:nothing", "9" * 40, "", "rm:1"])
def test_a_forged_pick_changes_nothing(checked_visitor, pick):
    values = checked_visitor.values(dataset__source="rows.jsonl")

    assert checked_visitor.tab.rows._jump(0, gr.EventData(None, {"pick": pick}), *values) == gr.skip()


def test_a_problem_is_shown_as_text_whatever_it_says():
    problem = RowProblem(row=1, line=None, problem="<b>bad</b>", kind="empty", sample="<script>")

    html = render_problem_list([problem], ListPage(0, 1, PAGE_ROWS), "Left out because")

    assert "<script>" not in html
    assert "&lt;b&gt;bad" in html


# Searching


def find(visitor, text, row=0):
    values = visitor.values(dataset__source="rows.jsonl")
    search = visitor.tab.rows.search
    return [Changes(search, one) for one in search._find(text, row, gr.Request(session_hash="a"), *values)]


def test_a_search_reports_how_far_it_is_and_can_be_stopped(visitor, services):
    search = visitor.tab.rows.search
    values = visitor.values(dataset__source="rows.jsonl")
    request = gr.Request(session_hash="somebody")

    steps = search._find("alpha", 0, request, *values)
    first = Changes(search, next(steps))
    assert "Searching: 0 rows" in first.result_line
    assert first.stop["visible"]
    search._stop(request)
    last = Changes(search, list(steps)[-1])

    assert "The search was stopped" in last.result_line
    assert not last.stop["visible"]
    assert search._searches == {}


def test_a_search_finds_the_next_row_or_reports_where_it_began_again(visitor):
    assert (last := find(visitor, "lora_alpha")[-1])._number == 5
    assert last.result_line == ""
    assert "Continued from the top" in find(visitor, "lora_alpha", row=349)[-1].result_line
    assert "No matching rows" in find(visitor, "nothing like it")[-1].result_line


def test_a_text_too_long_to_find_is_refused_with_a_message(visitor):
    assert "1,001 characters; 1,000 are the most" in find(visitor, "x" * 1001)[-1].result_line
    assert visitor.tab.rows.search.text.max_length == 1000
