"""The Data tab on fakes: its lists of rows, and searching them."""

import gradio as gr
import pytest

from loratory.engine.data.contract import RowProblem
from loratory.ui.views.html import ListPage
from loratory.ui.views.rows import PAGE_ROWS, listing_choices, render_counts, render_problem_list
from tests.ui.changes import Changes
from tests.ui.data_tab_visitor import PATIENCE_SECONDS, question_on, some_report
from tests.waiting import wait_until


@pytest.fixture
def checked_visitor(visitor, services):
    """Return the tab with a finished check whose report has something of everything."""
    question = question_on("rows.jsonl")
    services.tokenizers.download(question.model).done.wait(PATIENCE_SECONDS)
    check = services.checks.request(question)
    wait_until(lambda: check.is_done)
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
    updates = rows.jump(0, event, *values)
    html = rows.redraw_list("left_out", 29, *values)

    assert updates == {rows.list_page: 29}
    assert "reason 898" in html
    assert "reason 868" not in html
    assert "Later" not in html
    assert "436–450 of 450 listed rows" in html


def test_a_list_is_gone_through_with_previous_and_next(checked_visitor):
    values = checked_visitor.values(dataset__source="rows.jsonl")
    rows = checked_visitor.tab.rows

    assert rows.begin_list(1, "longest", *values) == {rows.number: 8, rows.list_page: 0}
    assert rows.turn(1, 8, "longest", *values) == 4
    assert rows.turn(1, 4, "longest", *values) == 4
    assert rows.turn(-1, 10, "odd", *values) == 6
    assert rows.turn(1, 7, "all", *values) == 8
    assert rows.turn(-1, 1, "all", *values) == 1


def test_the_longest_rows_are_listed_with_their_lengths(checked_visitor):
    html = checked_visitor.tab.rows.redraw_list("longest", 0, *checked_visitor.values(dataset__source="rows.jsonl"))

    assert 'data-pick="7"' in html
    assert ">43</td>" in html


def test_oddities_have_a_table_of_their_own(checked_visitor):
    values = checked_visitor.values(dataset__source="rows.jsonl")
    event = gr.EventData(None, {"pick": "show:odd"})

    rows = checked_visitor.tab.rows
    assert rows.jump(1, event, *values) == {rows.number: 6, rows.listing: "odd", rows.list_page: 0}
    assert "turn 3 is odd" in checked_visitor.tab.rows.redraw_list("odd", 0, *values)


@pytest.mark.parametrize("pick", ["page:x", "show:nothing", "9" * 40, "", "rm:1"])
def test_a_forged_pick_changes_nothing(checked_visitor, pick):
    values = checked_visitor.values(dataset__source="rows.jsonl")

    assert checked_visitor.tab.rows.jump(0, gr.EventData(None, {"pick": pick}), *values) == gr.skip()


def test_a_problem_is_shown_as_text_whatever_it_says():
    problem = RowProblem(row=1, line=None, problem="<b>bad</b>", kind="empty", sample="<script>")

    html = render_problem_list([problem], ListPage(0, 1, PAGE_ROWS), "Left out because")

    assert "<script>" not in html
    assert "&lt;b&gt;bad" in html


# Searching


def find(visitor, text, row=0):
    values = visitor.values(dataset__source="rows.jsonl")
    rows = visitor.tab.rows
    return [Changes(rows, step) for step in rows.find(text, row, *values)]


def test_a_search_reports_how_far_it_is_and_can_be_stopped(visitor):
    rows = visitor.tab.rows
    steps = rows.find("alpha", 0, *visitor.values(dataset__source="rows.jsonl"))

    first = Changes(rows, next(steps))

    assert "Searching: 0 rows" in first.found
    assert first.stop["visible"]
    page = rows.stop.parent.parent
    while page.parent is not None:
        page = page.parent
    stop_events = [event for event in page.fns.values() if (rows.stop._id, "click") in event.targets]
    (find_event,) = [event for event in page.fns.values() if (rows.text._id, "submit") in event.targets]
    assert [find_event._id] in [event.cancels for event in stop_events], (
        "Gradio closes the generator, which stops the search"
    )


def test_a_search_finds_the_next_row_or_reports_where_it_began_again(visitor):
    assert (last := find(visitor, "lora_alpha")[-1]).number == 5
    assert last.found == ""
    assert "Continued from the top" in find(visitor, "lora_alpha", row=349)[-1].found
    assert "No matching rows" in find(visitor, "nothing like it")[-1].found


def test_a_text_too_long_to_find_is_refused_with_a_message(visitor):
    assert "1,001 characters; 1,000 are the most" in find(visitor, "x" * 1001)[-1].found
    assert visitor.tab.rows.text.max_length == 1000
