"""Runs that are ticked in the table: compared and deleted."""

import json

import gradio as gr
import pytest

from loratory.engine.errors import EngineError
from loratory.engine.runs.provenance import read_provenance
from loratory.ui.tabs.runs import RunsTab
from loratory.ui.views.run_table import (
    ANY_METHOD,
    ANY_MODEL,
    COMPARE_PREFIX,
    MORE,
)  # fmt: skip
from tests.chat.tiny_adapters import lora
from tests.export.test_merge_adapters import trained
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.changes import Changes
from tests.ui.runs_tab_visitor import QUERY, list_runs, pick, take


@pytest.fixture
def tab(laid_out) -> RunsTab:
    return laid_out(RunsTab)


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
    with pytest.raises(gr.Error, match="was not found"):
        copy(pick("../../etc/passwd"))


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


def test_ticked_runs_are_merged_into_a_run_that_is_chosen_and_measured(tab, services, tiny_model_folder):
    tests = [{"source": "/data/tests.jsonl", "scorers": [{"scorer": "equals"}]}]
    parts = [
        trained(services.runs, tiny_model_folder, lora(), seed, evaluation={"tests": tests[: 2 - seed]})
        for seed in (1, 2)
    ]
    ids = [part.id for part in parts]

    assert list_runs(tab, ticked_ids=ids[:1]).merge["visible"] is False
    assert list_runs(tab, ticked_ids=ids).merge["visible"] is True
    merged = services.runs.get(tab.merge_ticked([*ids, "../../etc"]))

    assert read_provenance(merged.folder).merged_from == dict.fromkeys(ids, 0.5)
    assert [test.title for test in merged.folder.read_config().evaluation.tests] == ["tests.jsonl"]
    assert all(services.results.measuring.find(run_id) is not None for run_id in (merged.id, *ids))
    for wrong in ([], ids[:1], ["../../etc", ids[0]]):
        with pytest.raises(EngineError, match="cannot be merged"):
            tab.merge_ticked(wrong)
