"""All runs: found, compared, copied and deleted."""

import csv
import io
import json
import re
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from loratory.engine.data.workshop.sets import delete_set, set_folder
from loratory.engine.errors import EngineError
from loratory.engine.runs.control import read_notes
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
from tests.data.workshop.made_sets import apply, make_set, newest
from tests.fake_services import invent_runs
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes
from tests.waiting import wait_until

QUERY = ("", "All", ANY_METHOD, ANY_MODEL, "Newest first")  # of an untouched search


@pytest.fixture
def tab(laid_out) -> RunsTab:
    return laid_out(RunsTab)


@pytest.fixture
def history(services):
    invent_runs(services.runs)
    return services.runs.ids()


def list_runs(tab: RunsTab, last=None, ticked_ids: Sequence[str] = (), **settings: str) -> Changes:
    query: dict[str, Any] = {
        "search": "",
        "state": "All",
        "method": ANY_METHOD,
        "model": ANY_MODEL,
        "order": "Newest first",
        **settings,
    }
    return Changes(tab, tab.list_runs(*query.values(), "", list(ticked_ids), 100, last))  # type: ignore[call-arg]


def table_of(tab: RunsTab, **settings: str) -> str:
    return list_runs(tab, **settings).table


def describe(tab: RunsTab, run_id: str) -> Changes:
    return Changes(tab.one, tab.one.describe(run_id))


def take(tab: RunsTab, identifier: str, ticked_ids: list[str], limit: int = 100) -> Changes:
    return Changes(tab, tab.take(pick(identifier), ticked_ids, False, limit))


def pick(identifier: str):
    return SimpleNamespace(_data={"pick": identifier})


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


def test_a_tie_has_no_winner(tab, history):
    row = tab.page.reader.summary(history[1])
    better = row.model_copy(update={"id": "other", "best_eval_loss": row.best_eval_loss - 0.1})

    assert best_of([row, better]) == "other"
    assert best_of([row, row.model_copy(update={"id": "same", "best_eval_loss": row.best_eval_loss + 1e-5})]) is None
    for change in ({"objective": "DPO"}, {"held_out": "other rows"}):
        assert best_of([row, better.model_copy(update=change)]) is None
    assert best_of([row]) is None
    assert best_of([row, better, row.model_copy(update={"id": "unmeasured", "best_eval_loss": None})]) == "other"


def test_the_sweep_of_the_chosen_run_is_concluded_and_its_best_settings_are_copied(tab, services, history):
    runs = {}
    for rank, floor in ((8, 1.2), (16, 0.8)):
        origin = {"sweep": "abcd1234", "swept": {"adapter.r": str(rank)}}
        config = a_config(run__name=f"sweep, r {rank}", adapter__r=rank)
        runs[rank] = write_run(services.runs, config, InventedRun(floor=floor, origin=origin)).id
    tab.page.reader.summaries()

    def listing(chosen: str) -> Changes:
        return Changes(tab, tab.list_runs(*QUERY, chosen, [], 100, None))

    changes = listing(runs[8])
    assert "Best: r 16: held-out loss" in changes.sweep
    assert f'data-pick="{runs[16]}"' in changes.sweep
    assert json.loads(changes.sweep_chart)["data"][0]["x"] == ["8", "16"]
    assert listing(runs[16]).sweep == changes.sweep
    assert (listing(history[1]).sweep, listing("").sweep, listing("").sweep_chart) == ("", "", "")

    (copy,) = [event.fn for event in tab.tab.parent.parent.fns.values() if (tab.sweep._id, "click") in event.targets]
    mapping, run_id = copy(pick(runs[16]))
    assert (mapping["adapter"]["r"], mapping["run"]["name"], run_id) == (16, "", runs[16])
    with pytest.raises(gr.Error, match="There is no run"):
        copy(pick("../../etc/passwd"))


def test_what_never_started_was_removed_from_the_queue(tab, services):
    write_run(services.runs, a_config(), InventedRun(state="stopped"))

    assert "removed from the queue" not in table_of(tab)
    assert "removed from the queue" in state_mark("stopped", never_started=True)
    assert "removed" not in state_mark("failed", never_started=True)


def test_ticked_runs_are_deleted_together_and_those_at_work_stay(tab, services, history):
    tab.page.reader.summaries()
    ticked_ids = tab.take(pick("all:"), [], False, 100, *QUERY)[tab.ticked_runs]
    waiting = [run.id for run in services.runs.list() if run.folder.read_state().state == "queued"]

    assert ticked_ids == history
    assert tab.take(pick("all:"), ticked_ids[:1], False, 100, *QUERY)[tab.ticked_runs] == []
    ended_ids = tab.deletable([*ticked_ids, "../../etc"], *QUERY)
    assert ended_ids == [run_id for run_id in history if run_id not in waiting]
    left = tab.delete_named(ended_ids, ticked_ids, history[-1])

    assert list(services.runs.ids()) == waiting == left[tab.ticked_runs]
    assert left[tab.page.chosen_run] == ""


def test_a_deletion_names_its_runs_and_leaves_those_that_the_search_hides(tab, history):
    tab.page.reader.summaries()
    query = ("rank 16", "All", ANY_METHOD, ANY_MODEL, "Newest first")

    named_ids = tab.deletable(history, *query)
    title, question = tab.deletion_question([*named_ids, "../../etc"])
    assert title == "1 run"
    assert f"“faq, rank 16 · {named_ids[0][-4:]}”. " in question
    comparison = [list_runs(tab, ticked_ids=history[:count]).to_comparison for count in (1, 2)]
    assert [button["visible"] for button in comparison] == [False, True]
    assert comparison[1]["value"] == "Compare 2 runs"
    assert list_runs(tab, ticked_ids=history, search="rank 16").delete["value"] == "Delete 1 run …"
    assert not list_runs(tab, ticked_ids=history, search="no such run").delete["visible"]
    assert " and 1 more. " in tab.deletion_question(history[1:])[1]
    assert tab.delete_named(named_ids, history, "")[tab.ticked_runs] == [
        run_id for run_id in history if run_id not in named_ids
    ]


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


def test_ticked_runs_are_laid_over_each_other_with_only_what_differs(tab, history):
    changes = Changes(tab, tab.compare([history[1], history[4]], False))
    differences = changes.differences

    assert changes.comparison["visible"]
    assert changes.overlay
    assert "adapter.r" in differences
    assert "model.quantization" in differences
    assert "training.max_steps" not in differences  # the same in both
    assert differences.count("★") == 1


def test_curves_have_the_name_of_what_differs(tab, services):
    settings = [(1e-4, 8), (2e-4, 8), (2e-4, 16)]
    configs = [a_config(training__learning_rate=rate, adapter__r=r) for rate, r in settings]
    ids = [write_run(services.runs, config, InventedRun()).id for config in configs]

    chart = json.loads(tab.compare(ids, False)[tab.overlay])

    names = [trace["name"] for trace in chart["data"] if trace["mode"] == "lines"]
    expected = ["lr 1e-4, r 8", "lr 2e-4, r 8", "lr 2e-4, r 16"]
    assert names == [f"{name} · {run_id[-4:]}" for name, run_id in zip(expected, ids, strict=True)]


def test_curves_of_equal_settings_have_the_names_of_their_runs(tab, services):
    runs = [write_run(services.runs, a_config(run__name=name), InventedRun()) for name in ("first", "second")]

    chart = json.loads(tab.compare([run.id for run in runs], False)[tab.overlay])

    names = [trace["name"] for trace in chart["data"] if trace["mode"] == "lines"]
    assert names == [f"first · {runs[0].id[-4:]}", f"second · {runs[1].id[-4:]}"]


def test_long_and_missing_values_are_short_in_a_name(tab, services):
    data = f"/data/{'long ' * 20}.jsonl"
    configs = [a_config(), a_config(dataset__source=data, dataset__max_samples=50, training__packing=True)]
    ids = [write_run(services.runs, config, InventedRun()).id for config in configs]

    names = [trace["name"] for trace in json.loads(tab.compare(ids, False)[tab.overlay])["data"]]

    assert names[0].startswith("loratory-faq, packing no · ")
    assert names[2].startswith("long long long long long lon, max samples 50, packing yes · ")


def test_one_run_alone_is_not_a_comparison(tab, history):
    assert tab.compare([history[1]], False)[tab.comparison]["visible"] is False
    assert tab.compare([history[1], "deleted meanwhile"], False)[tab.comparison]["visible"] is False


def test_a_supervised_and_a_preference_run_say_what_cannot_be_compared(tab, history, services):
    dpo = a_config(training__objective="dpo", dataset__source="sample:loratory-preferences")
    runs = [
        write_run(services.runs, config, InventedRun()).id
        for config in (dpo, a_config(training__objective="dpo", training__beta=0.5))
    ]
    tab.page.reader.invalidate()

    mixed = tab.compare([history[1], runs[0]], False)[tab.differences]
    betas = tab.compare(runs, False)[tab.differences]

    assert "Losses are not comparable" in mixed
    assert "blind test" in mixed
    assert "★" not in mixed
    assert "Losses are not comparable" in betas
    assert "Losses are not comparable" not in tab.compare([runs[0], runs[0]], False)[tab.differences]
    table = tab.list_runs("dpo", "All", ANY_METHOD, ANY_MODEL, "Newest first", "", [], 100, None)[tab.table]
    assert table.count('<span class="under">DPO</span>') == 2  # found and shown by its objective


def test_a_tick_box_takes_a_run_in_and_out_and_a_row_is_looked_at(tab, history):
    first = history[0]

    assert take(tab, COMPARE_PREFIX + first, []).ticked_runs == [first]
    assert take(tab, COMPARE_PREFIX + first, [first]).ticked_runs == []
    looked_at = tab.take(pick(first), [], False, 100, *QUERY, 0.9, False, False, "")
    assert looked_at[tab.page.chosen_run] == looked_at[tab.one.follow.run_shown] == first
    assert looked_at[tab.one.panel]["visible"]
    assert tab.take(pick("../../etc/passwd"), [], False, 100) == gr.skip()


def test_a_closed_run_stays_closed_when_rows_are_ticked_or_sorted(tab, history):
    closed = (*QUERY, 0.9, False, False, "")
    for other in (COMPARE_PREFIX + history[2], "sort:Steps", "all:", MORE):
        changes = tab.take(pick(other), [], False, 100, *closed)
        assert tab.one.panel not in changes
        assert tab.page.chosen_run not in changes

    late_answer = (*QUERY, 0.9, False, False, history[1])
    assert tab.take(pick(history[1]), [], False, 100, *late_answer)[tab.one.panel]["visible"]


def test_a_row_that_is_picked_while_a_tick_is_under_way_is_not_dropped(tab):
    page = tab.tab.parent.parent
    (take_event,) = [event for event in page.fns.values() if getattr(event.fn, "__func__", None) is RunsTab.take]
    (close_event,) = [event for event in page.fns.values() if (tab.one.close._id, "click") in event.targets]

    assert take_event.trigger_mode == "multiple"
    assert close_event.fn is None


def test_details_show_the_record_and_offer_what_can_be_done(tab, history, services):
    changes = describe(tab, history[1])
    record = changes.record

    assert changes.panel["visible"]
    assert "lora_alpha: 32" in record
    assert "transformers" in record
    assert "Checkpoint" in record
    assert history[1] in changes.details
    assert changes.continuing["visible"]
    assert changes.delete["visible"]
    assert not tab.one.describe(history[1])[tab.one.confirm.panel]["visible"]
    waiting = describe(tab, history[0])
    assert not waiting.continuing["visible"]
    assert not waiting.delete["visible"]


def test_a_run_on_a_version_of_a_set_says_that_the_set_is_another_now(tab, services, tmp_path):
    home = services.home
    make_set(home, tmp_path)
    version = newest(home)
    run = write_run(services.runs, a_config(dataset__source=f"set:faq@{version}"), InventedRun())
    assert "is now at" not in describe(tab, run.id).details

    apply(home, {"kind": "exclude", "rows": "2"})
    assert f"The set is now at version {newest(home)}." in describe(tab, run.id).details

    apply(home, {"kind": "undo", "id": 1})
    assert newest(home) == version
    assert "is now at" not in describe(tab, run.id).details
    delete_set(set_folder(home, "faq"))
    assert f"set:faq@{version}" in describe(tab, run.id).details


def test_a_copy_has_the_settings_but_not_the_name_and_may_begin_with_the_adapter(tab, history):
    mapping = tab.one.follow.configuration(history[1])

    assert mapping["run"]["name"] == ""
    assert mapping["dataset"]["source"] == "sample:loratory-faq"
    assert mapping["adapter"]["warm_start"] is None
    assert tab.one.continuation(history[1])["adapter"]["warm_start"] == history[1]


def test_name_note_and_tags_are_kept_next_to_the_configuration(tab, history, services):
    tab.one.save_notes(history[1], "", "paper, draft ,", "rank 8 was enough <i>")
    tab.one.follow.edit(f"name:{history[1]}:The good: one ")

    html = table_of(tab, search="good paper")
    assert html.count("<tr data-pick") == 1
    assert f"The good: one · {history[1][-4:]}" in html
    facts = describe(tab, history[1]).details
    assert "rank 8 was enough &lt;i&gt;" in facts
    assert services.runs.get(history[1]).folder.read_config().run.name == "faq, rank 16"
    assert "The good: one" in tab.one.follow.refresh(history[1], 0.9, False, False)[tab.one.follow.heading]
    tab.one.follow.edit(f"name:{history[1]}:")
    assert tab.page.reader.observe(history[1]).title == "faq, rank 16", "without a name, the first one is back"
    with pytest.raises(EngineError, match="120"):
        tab.one.follow.edit(f"name:{history[1]}:{'x' * 200}")


@pytest.mark.parametrize(
    "pick_text", ["name:../../etc:x", "star:", "star", "delete:{}", "tags:{}:x", "name:{}x:y", "star:ann/{}", ""]
)
def test_an_edit_that_is_not_offered_changes_nothing(tab, history, services, pick_text):
    tab.one.follow.edit(pick_text.format(history[1]))

    assert not list(services.runs.folder.glob("*/notes.json"))


def test_a_star_is_given_and_removed_in_the_table_and_in_the_heading(tab, history, services):
    def take_star(run_shown: str = ""):
        return tab.take(pick(f"star:{history[1]}"), [], False, 100, *QUERY, 0.9, False, False, run_shown)

    assert take_star() == gr.skip()
    assert read_notes(services.runs.get(history[1]).folder).star
    assert re.findall('aria-pressed="true" *data-pick="([^"]+)|data-pick="([^"]+)"[^>]*aria-pressed="true"', table_of(tab)) == [
        ("", f"star:{history[1]}")
    ]  # fmt: skip
    assert table_of(tab, state="With a star").count("<tr data-pick") == 1
    assert 'aria-pressed="true"' in tab.one.follow.refresh(history[1], 0.9, False, False)[tab.one.follow.heading]

    updates = take_star(run_shown=history[1])
    assert 'aria-pressed="false"' in updates[tab.one.follow.heading], "the run that is shown is drawn again"
    assert "No matching runs" in table_of(tab, state="With a star")
    assert tab.page.chosen_run not in updates


def test_a_run_moves_to_a_project_which_the_table_can_be_restricted_to(tab, history, services):
    assert not [choice for choice in list_runs(tab).state["choices"] if choice.startswith("Project")]
    tab.one.save_notes(history[1], "Paper <1>", "", "")
    tab.one.save_notes(history[2], "Paper <1>", "", "")
    tab.one.follow.edit(f"star:{history[2]}")

    choices = list_runs(tab).state["choices"]
    assert choices[-2:] == ["With a star", "Project: Paper <1>"]
    html = table_of(tab, state="Project: Paper <1>")
    assert html.count("<tr data-pick") == html.count("<b>Paper &lt;1&gt;</b>") == 2
    assert "Paper &lt;1&gt;" in describe(tab, history[1]).details
    offers = describe(tab, history[3]).project
    assert (offers["value"], offers["choices"]) == ("", ["Paper <1>"])
    assert describe(tab, history[1]).project["value"] == "Paper <1>"

    tab.one.save_notes(history[1], None, "", "")
    tab.one.save_notes(history[2], "", "", "")
    listing = list_runs(tab, state="Project: Paper <1>")
    assert "No matching runs" in listing.table
    assert listing.state["choices"][-1] == "Project: Paper <1>", "what is chosen stays a choice"
    assert read_notes(services.runs.get(history[2]).folder).star, "a move leaves the star"


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


def test_a_price_of_electricity_lets_runs_say_their_cost(tab, history):
    assert "kWh" not in describe(tab, history[1]).details
    tab.electricity.save_values("0.3", "€", " 200 ")

    assert "at the stated 200 W" in describe(tab, history[1]).details
    changes = Changes(tab, tab.compare([history[1], history[4]], False))
    assert "kWh" in changes.differences
    assert all("cost, €" in scale for scale in json.loads(changes.overlay)["scales"])
    assert tab.electricity.read_values() == ["0.3", "€", "200"]


def test_losses_on_other_held_out_rows_are_not_ranked(tab, history):
    differences = tab.compare([history[1], history[5]], False)[tab.differences]

    assert "★" not in differences
    assert "not comparable" in differences


def test_deleting_says_its_size_first_and_then_frees_it(tab, history, services):
    victim = history[1]

    question = " ".join(tab.one.deletion_question(victim))
    assert "kB in all" in question
    assert "faq, rank 16" in question
    updates = tab.one.delete_run(victim, victim, [victim, history[2]])

    assert (updates[tab.page.chosen_run], updates[tab.one.follow.run_shown]) == ("", "")
    assert updates[tab.ticked_runs] == [history[2]]
    assert victim not in services.runs.ids()
    assert describe(tab, victim).panel["visible"] is False
    assert tab.one.delete_run(history[2], history[3], [])[tab.page.chosen_run] == gr.skip(), "another one is chosen"


def test_a_run_that_is_picked_again_keeps_what_is_typed(tab, history):
    first, second = history[1], history[3]
    note, panel, confirm = tab.one.note, tab.one.panel, tab.one.confirm.panel

    updates = tab.one.show(first, 0.9, False, False, "")
    assert updates[tab.one.follow.run_shown] == first
    assert updates[panel]["visible"]
    again = tab.one.show(first, 0.9, False, False, first)
    assert again[panel] == gr.update(visible=True)
    assert note not in again
    another = tab.one.show(second, 0.9, False, False, first)
    assert another[note] == ""
    assert another[confirm] == gr.update(visible=False)


def test_a_question_goes_when_what_it_asks_about_cannot_be_done_any_more(tab, history, services):
    assert tab.one.redraw(history[1])[tab.one.confirm.panel] == gr.skip()
    running = write_run(services.runs, a_config(), InventedRun(state="running", steps=3))
    assert tab.one.redraw(running.id)[tab.one.confirm.panel] == gr.update(visible=False)


def test_times_are_formatted_for_people():
    now = 1_764_000_000.0

    assert ":" in when(now - 60, now)
    assert when(now - 86_400, now).startswith("yesterday")
    assert when(now - 400 * 86_400, now).endswith("2024")
    assert when(0.0, now) == "–"
