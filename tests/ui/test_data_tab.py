"""The Data tab on fakes: what stays in reach when something fails, what is read when, and what a list shows."""

import threading
import time

import gradio as gr
import pytest

from engine.config.model import ModelConfig
from engine.data.problems import RowProblem
from engine.data.report import CheckProgress
from engine.errors import ModelError, WorkerError
from engine.models.progress import ModelProgress
from tests.fakes import FakeInspector, a_report
from tests.invented_runs import a_config
from ui.checks import CheckQuestion, DatasetChecks
from ui.tabs.data import DataTab
from ui.tabs.reading import _keep_mapping, _map_columns
from ui.tokenizers import Tokenizers, key_of
from ui.views.row_lists import PAGE_ROWS, ListPage, listing_choices, render_counts, render_problem_list

MODEL = ModelConfig(id="some/model")
PATIENCE_SECONDS = 20  # generous: a timed test would only measure the machine


class Visitor:
    """A page of which the Data tab's handlers are called as the browser would, by name of what comes back."""

    def __init__(self, tab: DataTab) -> None:
        self.tab = tab

    def values(self, **settings):
        config = a_config(**settings)
        return self.tab._page.form.updates(config.model_dump(mode="json"))

    def open(self, *, row=0, shown_source="", listing="all", **settings):
        names = ["samples", "summary", "fetching", "fetch_again", "fetch_key", "reading", "mapping"]
        names += [f"role{number}" for number in range(5)]
        names += ["fold", "seen_columns", "opened", "row", "shown", "source"]
        names += ["facts", "lengths", "list", "listing", "stop", "read", "poll", "seen"]
        told = self.tab._open(row, "tokens", shown_source, listing, 0, *self.values(**settings))
        return dict(zip(names, told, strict=True))

    def tick(self, seen="", listing="all", **settings):
        names = ["facts", "lengths", "list", "listing", "stop", "read", "poll", "seen"]
        return dict(zip(names, self.tab._tick(seen, listing, 0, *self.values(**settings)), strict=True))


@pytest.fixture
def visitor(laid_out) -> Visitor:
    return Visitor(laid_out(DataTab))


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


# What stays in reach when something fails


def test_where_no_format_fits_the_format_and_the_columns_can_be_chosen(visitor):
    told = visitor.open(dataset__source="odd-columns.csv")

    assert "No format fits" in told["summary"]
    assert told["reading"]["visible"]
    assert told["mapping"]["visible"]
    assert [told[f"role{n}"]["label"] for n in range(4)] == [
        f"{role} is column" for role in ("prompt", "completion", "system", "tools")
    ]
    assert told["role0"]["choices"] == ["(none)", "q", "a"]
    assert not told["role4"]["visible"]
    assert not told["opened"]["visible"]


def test_a_dataset_that_cannot_be_opened_leaves_its_split_and_subset_in_sight(visitor):
    told = visitor.open(dataset__source="missing/data")

    assert "does not exist" in told["summary"]
    assert told["reading"]["visible"]
    assert told["fold"]["open"]
    assert not told["mapping"]["visible"]


def test_a_readable_dataset_shows_its_rows_and_a_sure_format_needs_no_mapping(visitor):
    told = visitor.open(dataset__source="rows.jsonl")

    assert told["opened"]["visible"]
    assert not told["mapping"]["visible"]
    assert "exactly as training will see it" in told["shown"]


def test_a_new_dataset_begins_at_its_first_row_and_a_changed_setting_keeps_the_place(visitor):
    assert "Row 0 of" in visitor.open(row=40, shown_source="other.jsonl", dataset__source="rows.jsonl")["shown"]
    assert "Row 40 of" in visitor.open(row=40, shown_source="rows.jsonl", dataset__source="rows.jsonl")["shown"]


def test_choosing_columns_settles_the_format_that_they_are_columns_of():
    seen = {"format": "alpaca", "columns": ["q", "a", "system"]}

    mapped, format_ = _map_columns(seen, {"from": "who"}, "q", "(none)", "a", "(none)", None)

    assert format_ == "alpaca"
    assert mapped == {"from": "who", "instruction": "q", "output": "a", "system": ""}


def test_another_format_keeps_of_the_mapping_what_it_has_too():
    mapping = {"prompt": "q", "completion": "a", "system": "s"}

    assert _keep_mapping("alpaca", mapping) == {"system": "s"}
    assert _keep_mapping("auto", mapping) == {}


@pytest.mark.parametrize("handler", ["_open", "_show", "_find", "_list"])
def test_what_nobody_foresaw_is_told_in_two_sentences(visitor, monkeypatch, handler, caplog):
    def broken(*_args, **_kwargs):
        raise KeyError("secret detail")

    inspector = visitor.tab._page.services.inspector
    values = visitor.values(dataset__source="rows.jsonl")
    if handler == "_list":
        check = visitor.tab._page.services.checks.ask(question_on("rows.jsonl"))
        wait_for(lambda: check.is_done)
        check.report = check.report.model_copy(update={"longest_rows": (3, 4)})
    for name in ("preview", "find_steps"):
        monkeypatch.setattr(inspector, name, broken)
    rows = visitor.tab.rows
    if handler == "_open":
        told = visitor.open(dataset__source="rows.jsonl")["summary"]
    elif handler == "_show":
        told = rows._show(0, "tokens", *values)
    elif handler == "_find":
        told = list(rows.search._find("alpha", 0, gr.Request(session_hash="a"), *values))[-1][1]
    else:
        told = rows.render_list(question_on("rows.jsonl"), check.report, "longest", 0)

    assert "Something unexpected happened." in told
    assert "secret detail" not in told
    assert "secret detail" in caplog.text


# The tokenizer comes in the background


class SlowResolver:
    """Hands out a tokenizer when it is let go, and says before how far it is."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.error = None
        self.asked = 0

    def __call__(self, model, told):
        self.asked += 1
        told(ModelProgress("downloading", "Downloading the demo model.", 41_000_000, 93_000_000))
        assert self.go_on.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error


@pytest.fixture
def slow(services):
    resolver = SlowResolver()
    object.__setattr__(services, "tokenizers", Tokenizers(resolver))
    yield resolver
    resolver.go_on.set()


def test_rows_are_shown_without_tokens_until_the_tokenizer_is_here(visitor, slow):
    settings = {"dataset__source": "rows.jsonl", "model__id": MODEL.id}
    tab = visitor.tab

    told = visitor.open(**settings)

    assert "Downloading the demo model. 41.0 MB of 93.0 MB." in told["fetching"]
    assert "rows are shown without tokens" in told["fetching"]
    assert told["opened"]["visible"]
    assert "What does lora_alpha do?" in told["shown"]
    assert "exactly as training will see it" not in told["shown"]
    assert told["fetch_key"] == key_of(MODEL)
    assert '"submit":false' in tab.fetching._news(told["fetch_key"], "")

    slow.go_on.set()
    wait_for(lambda: tab._page.services.tokenizers.is_ready(MODEL))
    assert '"submit":true' in tab.fetching._news(told["fetch_key"], "")  # the page opens the dataset anew
    told = visitor.open(**settings)

    assert (told["fetching"], told["fetch_key"]) == ("", "")
    assert "exactly as training will see it" in told["shown"]
    assert slow.asked == 1


def test_a_tokenizer_that_cannot_be_had_leaves_the_rows_and_can_be_tried_again(visitor, slow):
    slow.error = ModelError("The demo model cannot be downloaded.", "Check the connection.")
    slow.go_on.set()
    settings = {"dataset__source": "rows.jsonl", "model__id": MODEL.id}

    told = visitor.open(**settings)

    assert "cannot be downloaded" in told["fetching"]
    assert told["fetch_again"]["visible"]
    assert "What does lora_alpha do?" in told["shown"]
    assert visitor.open(**settings)["fetch_again"]["visible"]
    assert slow.asked == 1  # looking again does not try again

    slow.error = None
    visitor.tab._fetch_again(*visitor.values(**settings))
    wait_for(lambda: visitor.tab._page.services.tokenizers.is_ready(MODEL))
    assert slow.asked == 2


# When all rows are read


def question_on(source: str, **changes) -> CheckQuestion:
    config = a_config(dataset__source=source, **changes)
    return CheckQuestion(config.dataset, config.model, config.training.max_length, config.training.seed)


def test_a_dataset_of_the_hub_is_read_from_end_to_end_only_when_asked_to(visitor, services):
    told = visitor.open(dataset__source="somebody/some-data")

    assert told["read"] == gr.update(value="Read all rows", visible=True)
    assert "lies on the Hub" in told["facts"]
    assert not services.checks.find(question_on("somebody/some-data")).is_under_way

    visitor.tab._read(*visitor.values(dataset__source="somebody/some-data"))
    wait_for(lambda: services.checks.find(question_on("somebody/some-data")).is_done)

    assert "rows kept" in visitor.tick(dataset__source="somebody/some-data")["facts"]
    # Another length is another question about rows that are here by now.
    longer = services.checks.ask(question_on("somebody/some-data", training__max_length=64))
    assert not longer.waits


class EndlessInspector(FakeInspector):
    """Its checks go on until they are stopped."""

    def __init__(self):
        super().__init__()
        self.checks = 0

    def check(self, dataset, model=None, max_length=1024, *, seed=42, on_progress=None):
        self.checks += 1
        for rows in range(10**9):
            on_progress(CheckProgress(rows=rows, bytes_read=0, size_bytes=None))
            time.sleep(0.005)
        raise AssertionError("unreachable")


def test_a_stop_stays_until_a_person_reads_again(visitor, services):
    inspector = EndlessInspector()
    object.__setattr__(services, "checks", DatasetChecks(inspector))
    settings = {"dataset__source": "rows.jsonl"}
    assert visitor.open(**settings)["stop"]["visible"]

    visitor.tab._stop(*visitor.values(**settings))
    wait_for(lambda: services.checks.find(question_on("rows.jsonl")).is_done)
    told = visitor.open(**settings)

    assert "Reading was stopped" in told["facts"]
    assert told["read"] == gr.update(value="Read again", visible=True)
    assert inspector.checks == 1

    visitor.tab._read(*visitor.values(**settings))
    assert services.checks.find(question_on("rows.jsonl")).is_under_way
    wait_for(lambda: inspector.checks == 2)
    visitor.tab._stop(*visitor.values(**settings))


def test_an_error_stays_until_the_question_changes(services):
    class FailingInspector(FakeInspector):
        checks = 0

        def check(self, *_args, **_settings):
            self.checks += 1
            raise RuntimeError("gone")

    inspector = FailingInspector()
    checks = DatasetChecks(inspector)
    for _ in range(3):
        check = checks.ask(question_on("rows.jsonl"))
        wait_for(lambda check=check: check.is_done)

    assert inspector.checks == 1
    assert "unexpected" in check.error.what
    wait_for(lambda: checks.ask(question_on("rows.jsonl", training__max_length=64)).is_done)
    assert inspector.checks == 2


def test_a_fetch_from_the_hub_ends_at_once_when_it_is_stopped(services):
    class FetchingInspector(FakeInspector):
        def __init__(self):
            super().__init__()
            self.ended = threading.Event()

        def stop_fetching(self):
            self.ended.set()

        def check(self, *_args, **_settings):
            assert self.ended.wait(PATIENCE_SECONDS)
            raise WorkerError("A helper process ended.", "Try again.")

    inspector = FetchingInspector()
    checks = DatasetChecks(inspector)
    question = question_on("somebody/some-data")
    check = checks.read(question)

    checks.stop(question)
    wait_for(lambda: check.is_done)

    assert check.was_stopped
    assert checks.ask(question) is check
    assert checks.ask(question_on("somebody/some-data", training__max_length=64)).waits  # a stop takes the word back


def test_a_list_that_another_dataset_does_not_have_is_left(checked, services):
    check = services.checks.find(question_on("rows.jsonl"))
    settings = {"dataset__source": "rows.jsonl"}
    assert checked.open(listing="odd", **settings)["listing"]["value"] == "odd"
    check.report = some_report(notices=())

    assert checked.open(listing="odd", **settings)["listing"]["value"] == "all"


# Lists of rows


def some_report(**changes):
    problems = tuple(
        RowProblem(row=row, line=row + 1, problem=f"reason {row}", kind="empty", sample="{…}")
        for row in range(0, 900, 2)
    )
    notices = (
        RowProblem(row=5, line=6, problem="turn 2 is odd", kind="order", dropped=False),
        RowProblem(row=5, line=6, problem="nothing answers it", kind="unanswered", dropped=False),
        RowProblem(row=9, line=10, problem="turn 3 is odd", kind="order", dropped=False),
    )
    made = a_report(question_on("rows.jsonl").dataset, MODEL, 1024)
    settings = {
        "problems": problems, "dropped": 1200, "problem_counts": {"empty": 1150, "not_json": 50}, "notices": notices,
        "notice_counts": {"order": 2, "unanswered": 1}, "longest_rows": (7, 3), "shortest_rows": (1,),
    }  # fmt: skip
    return made.model_copy(update=settings | changes)


@pytest.fixture
def checked(visitor, services):
    """The tab with a finished check whose report has something of everything."""
    question = question_on("rows.jsonl")
    services.tokenizers.ask(question.model).ended.wait(PATIENCE_SECONDS)
    check = services.checks.ask(question)
    wait_for(lambda: check.is_done)
    check.report = some_report()
    return visitor


def test_only_lists_with_rows_on_them_are_offered_with_their_counts():
    assert listing_choices(None) == [("all rows", "all")]
    assert listing_choices(some_report()) == [
        ("all rows", "all"), ("left out (1,200)", "left_out"), ("odd, kept (2)", "odd"), ("longest", "longest"),
        ("shortest", "shortest"),
    ]  # fmt: skip


def test_problems_and_oddities_are_counted_by_kind():
    counts = render_counts(some_report())

    assert "<b>1,150</b> an empty part" in counts
    assert "<b>50</b> no valid JSON" in counts
    assert "<b>2</b> turns out of order" in counts


def test_a_long_list_of_problems_is_turned_page_by_page_to_its_end(checked):
    values = checked.values(dataset__source="rows.jsonl")
    event = gr.EventData(None, {"pick": "page:29"})

    number, listing, page = checked.tab.rows._jump(0, event, *values)
    shown = checked.tab.rows._list("left_out", page, *values)

    assert (number, listing, page) == (gr.skip(), gr.skip(), 29)
    assert "reason 898" in shown
    assert "reason 868" not in shown
    assert "Later" not in shown
    assert "436 to 450 of 450 listed" in shown


def test_a_list_is_gone_through_with_previous_and_next(checked):
    values = checked.values(dataset__source="rows.jsonl")
    rows = checked.tab.rows

    assert rows._begin_list(0, "longest", *values) == (7, 0)
    assert rows._turn(1)(7, "longest", *values) == 3
    assert rows._turn(1)(3, "longest", *values) == 3
    assert rows._turn(-1)(9, "odd", *values) == 5
    assert rows._turn(1)(7, "all", *values) == 8


def test_the_longest_rows_are_listed_with_their_lengths(checked):
    shown = checked.tab.rows._list("longest", 0, *checked.values(dataset__source="rows.jsonl"))

    assert 'data-pick="7"' in shown
    assert "<td class='r'>43</td>" in shown


def test_oddities_have_a_table_of_their_own(checked):
    values = checked.values(dataset__source="rows.jsonl")
    event = gr.EventData(None, {"pick": "show:odd"})

    assert checked.tab.rows._jump(0, event, *values) == (5, "odd", 0)
    assert "turn 3 is odd" in checked.tab.rows._list("odd", 0, *values)


@pytest.mark.parametrize("pick", ["page:x", "show:nothing", "9" * 40, "", "rm:1"])
def test_a_forged_pick_changes_nothing(checked, pick):
    values = checked.values(dataset__source="rows.jsonl")

    assert checked.tab.rows._jump(0, gr.EventData(None, {"pick": pick}), *values) == (gr.skip(),) * 3


def test_a_problem_is_shown_as_text_whatever_it_says():
    problem = RowProblem(row=1, line=None, problem="<b>bad</b>", kind="empty", sample="<script>")

    shown = render_problem_list([problem], ListPage(0, 1), "Left out because")

    assert "<script>" not in shown
    assert "&lt;b&gt;bad" in shown
    assert PAGE_ROWS > 1


# Searching


def find(visitor, text, row=0):
    values = visitor.values(dataset__source="rows.jsonl")
    return list(visitor.tab.rows.search._find(text, row, gr.Request(session_hash="a"), *values))


def test_a_search_says_how_far_it_is_and_can_be_stopped(visitor, services):
    search = visitor.tab.rows.search
    values = visitor.values(dataset__source="rows.jsonl")
    request = gr.Request(session_hash="somebody")

    steps = search._find("alpha", 0, request, *values)
    _, words, stop = next(steps)
    assert "Searching: 0 rows" in words
    assert stop["visible"]
    search._stop(request)
    _, words, stop = list(steps)[-1]

    assert "The search was stopped" in words
    assert not stop["visible"]
    assert search._searches == {}


def test_a_search_finds_the_next_row_or_says_where_it_began_again(visitor):
    assert find(visitor, "lora_alpha")[-1][:2] == (4, "")
    assert "From the top again" in find(visitor, "lora_alpha", row=348)[-1][1]
    assert "No row says that" in find(visitor, "nothing like it")[-1][1]


def test_a_text_too_long_to_find_is_refused_in_words(visitor):
    assert "1,001 characters; 1,000 are the most" in find(visitor, "x" * 1001)[-1][1]
    assert visitor.tab.rows.search.text.max_length == 1000
