"""The Train tab: presets, the plan with its counts, and the run that it shows."""

import threading
from dataclasses import replace
from html import escape
from types import SimpleNamespace

import gradio as gr
import pytest

from loratory.engine.config.presets import find_preset, list_presets, save_preset
from loratory.engine.errors import ConfigError, DatasetError
from loratory.engine.hardware.devices import device_problems
from loratory.engine.hardware.processor import describe_processor
from loratory.ui.backend.models import Tokenizers
from loratory.ui.build import build_app
from loratory.ui.tabs.start import render_reason, why_not
from loratory.ui.tabs.train import TrainTab
from loratory.ui.views.memory import render_side_panel
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.drafts import values_of
from tests.ui.form_visitor import FormVisitor
from tests.waiting import PATIENCE_SECONDS, wait_until

PAGE = SimpleNamespace(session_hash="page-1")


@pytest.fixture
def tab(laid_out) -> TrainTab:
    return laid_out(TrainTab)


def arrive(tab: TrainTab, *before) -> tuple[str, str]:
    """Return the run that is chosen then, and whether it is followed."""
    updates, page = tab.arrive(*before), tab.page
    assert tab.view not in updates, "the browser switches, as a person may have chosen a view meanwhile"
    return updates.get(page.chosen_run, before[0]), updates[page.wants_run]


def count(tab: TrainTab, values) -> tuple:
    updates = tab.count(PAGE, *values)
    return updates[tab.plan], updates[tab.counting], updates.get(tab.page.data_trouble)


def use(tab: TrainTab, visitor: FormVisitor, preset: str) -> None:
    """Pick a preset."""
    visitor.fill(tab.use_preset(SimpleNamespace(_data={"pick": preset}), *visitor.form_values()))


def test_the_first_visit_shows_the_run_that_is_under_way(tab, services):
    assert arrive(tab, "") == ("", "")

    run = write_run(services.runs, a_config(), InventedRun(state="running", steps=5))

    assert arrive(tab, "") == (run.id, "follow")
    assert arrive(tab, "gone") == (run.id, "follow")
    assert arrive(tab, run.id) == (run.id, "follow")


def test_the_newest_run_is_followed_until_one_is_chosen(tab, services):
    run = write_run(services.runs, a_config(), InventedRun())

    assert arrive(tab, "") == (run.id, "")


def test_a_run_that_was_asked_for_is_shown_whatever_is_under_way(tab, services):
    past_run = write_run(services.runs, a_config(), InventedRun())
    write_run(services.runs, a_config(), InventedRun(state="running", steps=5))

    assert arrive(tab, past_run.id, "follow 1") == (past_run.id, "follow")
    assert arrive(tab, past_run.id, "look 1") == (past_run.id, "")


@pytest.mark.parametrize("preset", list_presets(), ids=lambda preset: preset.name)
def test_every_preset_fills_a_form_that_can_start_or_reports_what_keeps_it(tab, preset):
    config, visitor = preset.load(), FormVisitor(tab.page)
    use(tab, visitor, preset.name)

    draft = visitor.draft
    panel, problems = render_side_panel(draft), device_problems(config, describe_processor())
    assert draft.mapping["dataset"]["source"] == config.dataset.source
    assert config.model.id.rsplit("/", 1)[-1] in panel
    assert ("QLoRA" in panel) == (config.model.quantization != "none")
    assert "Memory on CPU" in panel
    assert "per step" in tab.render_draft_plan(draft)
    assert (why_not(draft) is None) == (not problems)
    for problem in problems:  # an optimizer of GPUs alone, in the presets for them
        assert escape(problem.message) in panel
        assert escape(problem.message) in render_reason(draft)


@pytest.mark.parametrize(
    ("dataset", "stays"),
    [
        ({"source": "rows.jsonl", "format": "alpaca", "column_map": {"output": "answer"}}, True),
        ({"source": "sample:lab-chats", "mix": {"rows.jsonl": 1.0}}, True),
        ({"source": "sample:loratory-faq", "eval_fraction": 0.2}, False),
        ({"source": "timdettmers/openassistant-guanaco", "format": "text"}, False),  # of another preset
        ({}, False),
    ],
)
def test_a_preset_keeps_the_dataset_that_a_person_chose_and_reports_it(tab, dataset, stays):
    visitor, preset = FormVisitor(tab.page), find_preset("qwen3-8b-qlora-12gb")
    visitor.change({"dataset": dataset} if dataset else {})
    before = visitor.mapping

    use(tab, visitor, preset.name)

    after = visitor.mapping
    assert after["model"]["id"] == preset.load().model.id
    assert (after["dataset"] == before["dataset"]) == stays
    assert after["dataset"]["source"] == (dataset["source"] if stays else "sample:lab-chats")
    assert ("Your dataset stays." in visitor.applied_notice) == stays
    visitor.undo()
    assert [visitor.mapping[name] for name in ("model", "dataset")] == [before[name] for name in ("model", "dataset")]


def test_a_preset_whose_model_cannot_be_read_leaves_the_form_unchanged(services):
    app = build_app(services)
    services.inspector.unreachable.add(find_preset("quickstart-cpu").load().model.id)
    (chosen,) = [function for function in app.fns.values() if getattr(function.fn, "__name__", "") == "use_preset" and function.targets[0][1] == "click" and app.blocks[function.targets[0][0]].elem_id == "presets"]  # fmt: skip

    with pytest.raises(gr.Error, match="cannot be reached"):
        chosen.fn(SimpleNamespace(_data={"pick": "quickstart-cpu"}))
    assert [
        function.trigger_only_on_success for function in app.fns.values() if function.trigger_after == chosen._id
    ] == [True]


def test_tokens_are_counted_once_the_tokenizer_is_here(tab, services):
    config = a_config(model__id="some/model")
    goes_on, fails = threading.Event(), [True]

    def resolve(model, on_progress):
        assert goes_on.wait(300)
        if fails:
            fails.pop()
            raise DatasetError("No connection.", "Try again.")

    tab.page.services = replace(services, tokenizers=Tokenizers(resolve))
    services.shapes.learn(config.model)
    values = values_of(tab, config)
    plan, clock, _ = count(tab, values)
    assert "counted once the tokenizer is here" in plan
    assert clock["active"]

    goes_on.set()
    wait_until(lambda: count(tab, values)[2] == "No connection.")
    assert [field for field, _ in tab.page.draft(values).problems] == ["model.id"]
    tab.page.services.tokenizers.download(config.model, again=True)
    wait_until(lambda: count(tab, values)[2] == "")
    assert tab.page.draft(values).problems == ()


def test_tokens_are_counted_once_and_the_plan_fills_itself(tab, services, monkeypatch):
    config, check, goes_on = a_config(training__max_steps=-1), services.inspector.check, threading.Event()

    def check_later(*of_what, **settings):
        assert goes_on.wait(PATIENCE_SECONDS)
        return check(*of_what, **settings)

    monkeypatch.setattr(services.inspector, "check", check_later)
    assert services.tokenizers.download(config.model).done.wait(PATIENCE_SECONDS)
    values = values_of(tab, config)

    assert "Counting tokens" in count(tab, values)[0]
    goes_on.set()
    wait_until(lambda: not count(tab, values)[1]["active"])

    plan, clock, _ = count(tab, values)
    assert "<b>117</b>" in plan
    assert count(tab, values) == (plan, clock, "")


def test_every_count_may_change_all_that_it_counts_for(services):
    counts = [
        function
        for function in build_app(services).fns.values()
        if getattr(function.fn, "__func__", None) is TrainTab.count
    ]

    assert len(counts) > 3
    assert all(function.outputs == function.fn.__self__._count_outputs for function in counts)


def test_rows_that_cannot_be_read_keep_the_draft_from_starting_and_are_reported_once(tab, services, monkeypatch):
    def refuse(*_args, **_rest):
        raise DatasetError("rows.jsonl cannot be read.", "Check the file.")

    monkeypatch.setattr(services.inspector, "check", refuse)
    values = values_of(tab, a_config(dataset__source="rows.jsonl"))
    assert why_not(tab.page.draft(values)) is None

    wait_until(lambda: count(tab, values)[2] == "rows.jsonl cannot be read.")

    draft = tab.page.draft(values)
    assert why_not(draft) == "One setting needs your attention."
    reason, panel, plan = render_reason(draft), render_side_panel(draft), count(tab, values)[0]
    message = "rows.jsonl cannot be read. Check the file."
    assert [html.count(message) for html in (reason, panel, plan)] == [1, 1, 0]
    assert why_not(tab.page.draft(values_of(tab, a_config(dataset__source="good.jsonl")))) is None


def test_an_earlier_run_like_this_one_gives_the_time(tab, services):
    config = a_config(run__name="faq before")
    services.shapes.learn(config.model)
    draft = tab.page.draft(values_of(tab, config))
    assert tab.similar_run(draft) is None

    write_run(services.runs, config, InventedRun())
    write_run(services.runs, a_config(model__quantization="nf4"), InventedRun())
    write_run(services.runs, a_config(run__name="under way"), InventedRun(state="running", steps=20))

    similar = tab.similar_run(draft)
    assert similar is not None
    assert similar.name == "faq before"
    around = tab.around_seconds(similar)  # loading, evaluation and saving took a part of it
    assert around is not None
    assert 0 <= around < similar.seconds
    assert tab.around_seconds(similar.model_copy(update={"state": "running"})) is None


def test_no_event_that_follows_another_or_a_value_is_left_out_while_it_runs(services):
    events = [
        function
        for function in build_app(services).fns.values()
        if function.trigger_after is not None or function.targets[0][1] == "input"
    ]
    left_out = [function.fn for function in events if function.trigger_mode == "once"]

    assert len(events) > 100
    # A second answer, or a second archive, is not wanted.
    assert sorted(getattr(fn, "__name__", "") for fn in left_out) == ["archive", "generate_next_pair"]


def test_a_preset_changes_what_it_names_and_lists_it(tab):
    visitor = FormVisitor(tab.page)
    visitor.set_by_hand(training__weight_decay=0.5, training__seed=7, run__name="mine", adapter__lora_dropout=0.25)
    before = visitor.mapping

    use(tab, visitor, "quickstart-cpu")

    after, notice = visitor.mapping, visitor.applied_notice
    assert (after["training"]["weight_decay"], after["training"]["seed"]) == (0.5, 7)
    assert (after["run"]["name"], after["adapter"]["lora_dropout"]) == ("mine", 0.25)
    assert after["training"]["learning_rate"] == 2e-3
    changes = [name for name in visitor.values[tab.page.last_change].names if not name.startswith("run.")]
    assert f"Preset: changed {len(changes)} settings: model empty → smollm2-135m-instruct" in notice
    assert f"<summary>{len(changes) - 2} more</summary>" in notice
    assert "Learning rate 0.0002 → 0.002" in notice
    visitor.undo()
    assert [visitor.mapping[name] for name in ("training", "run")] == [before[name] for name in ("training", "run")]


@pytest.mark.parametrize("first", list_presets(), ids=lambda preset: preset.name)
def test_a_preset_replaces_what_another_one_set_and_no_setting_of_a_persons_own(tab, first):
    for second in list_presets():
        alone, after_another = FormVisitor(tab.page), FormVisitor(tab.page)
        for visitor in (alone, after_another):
            visitor.set_by_hand(training__weight_decay=0.5)
        use(tab, after_another, first.name)
        for visitor in (alone, after_another):
            use(tab, visitor, second.name)

        assert after_another.mapping == alone.mapping
        assert alone.mapping["training"]["weight_decay"] == 0.5


def test_a_preset_of_ones_own_changes_neither_model_nor_data_unless_it_names_them(tab, services):
    visitor = FormVisitor(tab.page)
    visitor.change({"model": {"id": "smollm2-135m-instruct"}, "dataset": {"source": "rows.jsonl"}})
    save_preset(services.home, "longer", "training:\n  max_steps: 900\n")
    save_preset(services.home, "other-data", "dataset:\n  source: others.jsonl\n")

    use(tab, visitor, "longer")

    assert visitor.mapping["training"]["max_steps"] == 900
    assert visitor.mapping["model"]["id"] == "smollm2-135m-instruct"
    assert visitor.mapping["dataset"]["source"] == "rows.jsonl"
    assert "Preset: Max steps" in visitor.applied_notice
    use(tab, visitor, "other-data")
    assert visitor.mapping["dataset"]["source"] == "others.jsonl"
    assert visitor.mapping["training"]["max_steps"] == 900


def test_a_preset_of_ones_own_that_is_no_longer_valid_is_reported(tab, services):
    save_preset(services.home, "old", "training:\n  gone_since: 9\n")

    with pytest.raises(ConfigError, match="gone_since: there is no such setting"):
        use(tab, FormVisitor(tab.page), "old")


def test_only_presets_of_ones_own_can_be_deleted(tab, services):
    save_preset(services.home.for_person("bea"), "hers", "{}\n")
    save_preset(services.home, "mine", "{}\n")
    assert 'data-pick="mine" data-event="delete"' in tab.render_presets()
    assert 'data-pick="quickstart-cpu" data-event' not in tab.render_presets()
    assert tab.page.restore_draft({})[tab.presets] == tab.render_presets()

    assert "mine" not in tab.delete_preset(SimpleNamespace(_data={"pick": "mine"}))

    assert not (services.home.presets / "mine.yaml").exists()
    for name in ("mine", "bea/hers", "../presets/bea/hers", "hers", ""):
        with pytest.raises(ConfigError, match="no preset is called"):
            tab.delete_preset(SimpleNamespace(_data={"pick": name}))
    tab.delete_preset(SimpleNamespace(_data={"pick": "quickstart-cpu"}))
    assert find_preset("quickstart-cpu").path.is_file()
    assert find_preset("hers", services.home.for_person("bea")).path.is_file()


def test_what_belongs_to_a_model_or_dataset_that_a_preset_replaces_goes_with_it(tab, services):
    visitor = FormVisitor(tab.page)
    visitor.fill(
        a_config(
            model__id="some/model", model__revision="abc", adapter__method="vera", adapter__r=256, adapter__warm_start="x",
            adapter__target_modules=["q_proj"], dataset__source="sample:loratory-preferences", training__objective="dpo",
            training__loss_type=["hinge"],
        ).model_dump(mode="json")
    )  # fmt: skip

    use(tab, visitor, "quickstart-cpu")

    after = visitor.mapping
    assert "revision" not in after["model"]
    assert (after["adapter"]["method"], after["adapter"]["target_modules"]) == ("lora", "all-linear")
    assert "warm_start" not in after["adapter"]
    assert after["training"]["objective"] == "sft"
    assert not after["training"].get("loss_type")
