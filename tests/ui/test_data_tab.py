"""The Data tab on fakes: what stays in reach when something fails, and the tokenizer that comes in the background."""

import threading

import gradio as gr
import pytest

from loratory.engine.data.contract import CheckProgress
from loratory.engine.errors import ConfigError, DatasetError, ModelError
from loratory.engine.models.prepared import ModelProgress
from loratory.ui.backend.models import Tokenizers, key_of
from loratory.ui.build import build_app
from loratory.ui.components import picked_change
from loratory.ui.tabs.data import DataTab
from loratory.ui.tabs.dataset_format import _keep_mapping, _map_columns
from loratory.ui.views.dataset import render_progress
from tests.invented_runs import a_config
from tests.ui.data_tab_visitor import MODEL, PATIENCE_SECONDS, question_on
from tests.waiting import wait_until

# What stays in reach when something fails


def test_where_no_format_fits_the_format_and_the_columns_can_be_chosen(visitor):
    updates = visitor.open(dataset__source="odd-columns.csv")

    assert "No format fits" in updates["summary"]
    assert updates["reading"]["visible"]
    assert updates["mapping"]["visible"]
    assert [updates[f"role{n}"]["label"] for n in range(5)] == [
        f"Column for {role}" for role in ("prompt", "completion", "system", "tools", "images")
    ]
    assert updates["role0"]["choices"] == ["(none)", ("q: What is LoRA?", "q"), ("a", "a")]
    assert not updates["role5"]["visible"]
    assert not updates["rows_column"]["visible"]


def test_a_dataset_that_cannot_be_opened_leaves_its_split_and_subset_in_sight(visitor):
    updates = visitor.open(dataset__source="missing/data")

    assert "does not exist" in updates["summary"]
    assert updates["reading"]["visible"]
    assert updates["fold"]["open"]
    assert not updates["mapping"]["visible"]
    again = visitor.open(dataset__source="missing/data", shown_source="missing/data")
    assert again["fold"]["open"], "a person is typing there"
    assert not visitor.open(dataset__source="/missing/rows.jsonl")["fold"]["open"], "a file has neither"
    opened = visitor.open(dataset__source="rows.jsonl", shown_source="missing/data")
    assert not opened["fold"]["open"], "it was opened for another dataset"
    assert not opened["mapping"]["visible"], "its format is sure"
    assert visitor.open(dataset__source="rows.jsonl", shown_source="rows.jsonl")["fold"] == gr.skip()


def test_a_dataset_that_cannot_be_opened_keeps_the_draft_from_starting(visitor):
    page = visitor.tab.page
    updates = visitor.open(dataset__source="missing/data")

    broken = page.draft(visitor.values(dataset__source="missing/data"))
    assert updates["trouble"].startswith("missing/data does not exist.")
    assert updates["trouble"] != visitor.open(dataset__source="missing/others")["trouble"], "the panel follows a change"
    (problem,) = broken.problems
    assert problem.field == "dataset.source"
    assert problem.message.startswith("missing/data does not exist.")
    assert visitor.open(dataset__source="rows.jsonl")["trouble"] == ""
    assert page.draft(visitor.values(dataset__source="rows.jsonl")).problems == ()


def test_a_dataset_that_can_be_opened_after_all_is_no_trouble_any_more(visitor, monkeypatch):
    source = {"dataset__source": "missing/data"}
    visitor.open(**source)
    inspector = visitor.tab.page.services.inspector
    page_of = inspector.preview
    monkeypatch.setattr(
        inspector, "preview", lambda dataset, *rest, **more: page_of(question_on("found").dataset, *rest, **more)
    )

    assert visitor.open(**source)["trouble"] == ""
    assert visitor.tab.page.draft(visitor.values(**source)).problems == ()


def test_one_event_opens_the_rows_and_what_they_are_redraws_the_page(visitor, services):
    """Answers of several events arrive in any order; Gradio orders those of one."""
    events = list(build_app(services).fns.values())
    (opening,) = [event for event in events if getattr(event.fn, "__func__", None) is DataTab.open]
    tab = opening.fn.__self__
    requests = [event for event in events if tab.open_request in event.outputs]

    assert (opening.trigger_mode, opening.concurrency_limit) == ("always_last", None)
    assert len(requests) > 10
    assert all(event.outputs == [tab.open_request] for event in requests)
    # The objective follows the rows while no model is chosen, when no lengths are known that would redraw it.
    assert len([event for event in events if (tab.page.data_kind._id, "change") in event.targets]) == 1
    assert visitor.open(dataset__source="rows.jsonl")["kind"] == "alpaca"
    assert visitor.open(dataset__source="missing/data")["kind"] == ""


def test_what_an_event_sets_in_the_form_is_not_replaced_by_an_event_in_between(services):
    """A tab's address is answered while a sample in it is clicked: its change of nothing came between, and the sample was lost."""
    app = build_app(services)
    (tab,) = {event.fn.__self__ for event in app.fns.values() if getattr(event.fn, "__func__", None) is DataTab.open}
    events = {event._id: event for event in app.fns.values()}
    changes = [event for event in events.values() if event.fn in (tab.page.change, tab.page.change_with_undo)]
    by_data = {
        event.inputs[0]: events[event.trigger_after].fn.__name__
        for event in changes
        if events[event.trigger_after].fn.__module__ == DataTab.__module__
    }

    assert sorted(by_data.values()) == ["_pick_own", "_pick_sample", "_take_path", "_take_upload", "take_address"]
    assert all(len([event for event in events.values() if state in event.outputs]) == 1 for state in by_data)


def test_a_new_dataset_begins_at_its_first_row_and_a_changed_setting_keeps_the_place(visitor):
    assert "Row 1 of" in visitor.open(row=40, shown_source="other.jsonl", dataset__source="rows.jsonl")["row_html"]
    html = visitor.open(row=40, shown_source="rows.jsonl", dataset__source="rows.jsonl")["row_html"]
    assert "Row 40 of" in html
    assert ", line 40," in html, "rows and lines count alike"


def test_choosing_columns_settles_the_format_that_they_are_columns_of():
    box_format = {"format": "alpaca", "columns": ["q", "a", "system"]}

    mapping, format_ = _map_columns(box_format, {"from": "who"}, "q", "(none)", "a", "(none)", None)

    assert format_ == "alpaca"
    assert mapping == {"from": "who", "instruction": "q", "output": "a", "system": ""}


UNKNOWN = {"customer": (3, "My <b>order</b> is late."), "support agent": (2, "I am sorry.")}


def test_roles_that_no_row_can_be_used_for_are_mapped_in_a_table(visitor, monkeypatch):
    def check(*_args, on_progress, **_settings):
        on_progress(CheckProgress(rows=3, bytes_read=9, size_bytes=9, unknown_roles=UNKNOWN))
        raise DatasetError("Nothing to train on: turn 1 has the unknown role 'customer'.", "Map it.")

    monkeypatch.setattr(visitor.tab.page.services.inspector, "check", check)
    settings = {"dataset__source": "rows.jsonl"}
    visitor.open(**settings)
    wait_until(lambda: visitor.tab.page.services.checks.request(question_on("rows.jsonl")).is_done)

    updates = visitor.tick(**settings)
    assert "unknown role" in updates["facts"]
    table = updates["role_map"]
    assert '<td class="r" data-label="Rows skipped">3</td>' in table
    assert "My &lt;b&gt;order&lt;/b&gt; is late." in table
    assert table.count('<option value="?" selected>not mapped</option>') == table.count("<select") == 2
    assert 'data-name="support agent"' in table
    assert ">Apply roles</button>" in table


def test_a_mapping_of_roles_is_applied_with_an_undo_and_stays_in_the_table(visitor):
    page, pick = visitor.tab.page, 'dataset.role_map={"customer":"user","support\\u0020agent":"","bot":"assistant"}'
    change = picked_change(gr.EventData(None, {"pick": pick}))
    values = visitor.values(dataset__source="rows.jsonl")

    updates = page.change_with_undo(change, *values)

    mapping = updates[page.form["dataset.role_map"]]
    assert mapping == {"customer": "user", "support agent": "", "bot": "assistant"}
    table = visitor.open(dataset__source="rows.jsonl", dataset__role_map=mapping)["role_map"]
    assert table.count(" selected>") == 3
    assert '<option value="" selected>leave out</option>' in table
    assert visitor.open(dataset__source="rows.jsonl")["role_map"] == ""
    for roles in ("{", '{"customer":"boss"}', "[1]", "3"):
        with pytest.raises(ConfigError):
            picked_change(gr.EventData(None, {"pick": f"dataset.role_map={roles}"}))


def test_the_line_of_the_cut_sets_max_length_and_stays_while_rows_are_read(visitor, monkeypatch):
    change = picked_change(gr.EventData(None, {"pick": "training.max_length=96"}))
    assert change == {"training": {"max_length": 96}}
    with pytest.raises(ConfigError):
        picked_change(gr.EventData(None, {"pick": "training.max_length=7"}))

    is_over, check = threading.Event(), visitor.tab.page.services.inspector.check
    monkeypatch.setattr(
        visitor.tab.page.services.inspector, "check", lambda *args, **more: is_over.wait(300) and check(*args, **more)
    )
    settings = {"dataset__source": "rows.jsonl", "training__max_length": 96}
    assert visitor.open(shown_source="rows.jsonl", **settings)["lengths"] == gr.skip()
    assert visitor.open(shown_source="others.jsonl", **settings)["lengths"] == ""
    is_over.set()
    running = visitor.tab.page.services.checks.request(question_on("rows.jsonl", training__max_length=96))
    wait_until(lambda: running.is_done)
    assert 'value="96"' in visitor.tick(**settings)["lengths"]


def test_another_format_keeps_of_the_mapping_what_it_has_too():
    mapping = {"prompt": "q", "completion": "a", "system": "s"}

    assert _keep_mapping("alpaca", mapping) == {"system": "s"}
    assert _keep_mapping("auto", mapping) == {}


@pytest.mark.parametrize("handler", ["_open", "_show", "_find", "_list"])
def test_what_no_one_foresaw_is_reported_in_two_sentences(visitor, monkeypatch, handler, caplog):
    def broken(*_args, **_kwargs):
        raise KeyError("secret detail")

    inspector = visitor.tab.page.services.inspector
    values = visitor.values(dataset__source="rows.jsonl")
    if handler == "_list":
        check = visitor.tab.page.services.checks.request(question_on("rows.jsonl"))
        wait_until(lambda: check.is_done)
        check.report = check.report.model_copy(update={"longest_rows": (3, 4)})
    for name in ("preview", "find_steps"):
        monkeypatch.setattr(inspector, name, broken)
    rows = visitor.tab.rows
    if handler == "_open":
        updates = visitor.open(dataset__source="rows.jsonl")["summary"]
    elif handler == "_show":
        updates = rows.show(0, "tokens", *values)
    elif handler == "_find":
        updates = list(rows.find("alpha", 0, *values))[-1][rows.found]
    else:
        updates = rows.render_list(question_on("rows.jsonl"), check.report, "longest", 0)

    assert "Something unexpected happened." in updates
    assert "secret detail" not in updates
    assert "secret detail" in caplog.text


# The tokenizer comes in the background


class SlowResolver:
    """Hands out a tokenizer when it is let go, and says before how far it is."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.error = None
        self.lookups = 0

    def __call__(self, model, report):
        self.lookups += 1
        report(ModelProgress("downloading", "Downloading the demo model.", 41_000_000, 93_000_000))
        assert self.go_on.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error


@pytest.fixture
def slow(services):
    resolver = SlowResolver()
    object.__setattr__(services, "tokenizers", Tokenizers(resolver))
    yield resolver
    resolver.go_on.set()


def test_rows_are_shown_without_tokens_until_the_tokenizer_is_here(visitor, slow, monkeypatch):
    monkeypatch.setattr("loratory.ui.tabs.model._BLINK_SECONDS", 0.0)
    settings = {"dataset__source": "rows.jsonl", "model__id": MODEL.id}
    tab = visitor.tab
    download = tab.page.services.tokenizers.download(MODEL)
    wait_until(lambda: "41.0 MB" in download.message)

    updates = visitor.open(**settings)

    assert "Downloading the demo model. 41.0 MB of 93.0 MB." in updates["fetching"]
    assert "Rows are shown without tokens" in updates["fetching"]
    assert updates["rows_column"]["visible"]
    assert "What does lora_alpha do?" in updates["row_html"]
    assert "exactly as in training" not in updates["row_html"]
    assert updates["fetch_key"].endswith(key_of(MODEL))
    assert '"submit":false' in tab.tokenizer.news(updates["fetch_key"], "")

    slow.go_on.set()
    wait_until(lambda: tab.page.services.tokenizers.is_ready(MODEL))
    assert '"submit":true' in tab.tokenizer.news(updates["fetch_key"], "")  # the page opens the dataset again
    updates = visitor.open(**settings)

    assert (updates["fetching"], updates["fetch_key"]) == ("", "")
    assert "exactly as in training" in updates["row_html"]
    assert slow.lookups == 1


def test_a_tokenizer_that_cannot_be_had_leaves_the_rows_and_can_be_tried_again(visitor, slow):
    slow.error = ModelError("The demo model cannot be downloaded.", "Check the connection.")
    slow.go_on.set()
    settings = {"dataset__source": "rows.jsonl", "model__id": MODEL.id}

    updates = visitor.open(**settings)

    assert "cannot be downloaded" in updates["fetching"]
    assert updates["fetch_again"]["visible"]
    assert "What does lora_alpha do?" in updates["row_html"]
    assert visitor.open(**settings)["fetch_again"]["visible"]
    assert slow.lookups == 1  # looking again does not try again

    slow.error = None
    visitor.tab.fetch_again(*visitor.values(**settings))
    wait_until(lambda: visitor.tab.page.services.tokenizers.is_ready(MODEL))
    assert slow.lookups == 2


def test_a_check_that_waits_for_the_processes_of_a_lab_shows_that():
    waiting = CheckProgress(rows=0, bytes_read=0, size_bytes=None, waiting="Waiting: all <8> processes are at work.")

    assert "Waiting: all &lt;8&gt; processes are at work." in render_progress(waiting)
    assert "Reading all rows" in render_progress(waiting.model_copy(update={"waiting": ""}))


def test_the_box_for_files_shows_what_filled_the_form_and_nothing_of_before(visitor):
    tab = visitor.tab
    page = tab.page

    assert (
        page.fill(a_config(dataset__source="/data/rows.jsonl").model_dump(mode="json"))[tab.own] == "/data/rows.jsonl"
    )
    assert page.fill(a_config(dataset__source="sample:lab-chats").model_dump(mode="json"))[tab.own] == ""
