"""What fills the form: a preset, a run, a draft that the browser remembers."""

import gradio as gr
import pytest

from loratory.ui.page import Page
from loratory.ui.tabs.method import MethodTab, render_warm_start
from loratory.ui.views.memory import render_side_panel
from tests.invented_runs import InventedRun, a_config, write_run
from tests.ui.drafts import form_values


@pytest.fixture
def tab(laid_out) -> MethodTab:
    return laid_out(MethodTab)


@pytest.fixture
def page(tab) -> Page:
    return tab.page


def settings_in(page: Page, updates: dict) -> dict:
    return {name: updates[page.form[name]] for name in page.form.names if page.form[name] in updates}


def fill(page: Page, config) -> dict:
    return settings_in(page, page.fill(config.model_dump(mode="json")))


def restore(page: Page, saved) -> dict:
    return settings_in(page, page.restore_draft(saved))


def test_a_draft_comes_back_before_its_model_is_known(page):
    values = restore(page, a_config(adapter__target_modules=["q_proj"], adapter__r=24).model_dump(mode="json"))

    assert values["model.id"] == "smollm2-135m-instruct"
    assert values["adapter.r"] == 24
    assert values["adapter.target_modules"]["value"] == ["q_proj"]


def test_all_linear_stays_all_linear_before_and_after_the_layers_are_known(page, services):
    config = a_config()
    form = page.form
    waiting = restore(page, config.model_dump(mode="json"))["adapter.target_modules"]
    values = [
        waiting["value"] if name == "adapter.target_modules" else value
        for name, value in zip(form.names, form.updates(config.model_dump(mode="json")), strict=True)
    ]

    assert page.draft(values).config.adapter.target_modules == "all-linear"
    assert page.offer_targets(*values) == gr.skip()
    shape = services.shapes.learn(config.model)  # by another page, for instance
    assert page.draft(values).config.adapter.target_modules == "all-linear"
    assert page.offer_targets(*values)["value"] == list(shape.linear_names())


def test_targets_that_are_ticked_already_may_be_unticked_while_they_are_offered(page, services):
    config = a_config()
    names = list(services.shapes.learn(config.model).linear_names())
    values = form_values(page.form, config.model_dump(mode="json"), adapter__target_modules=names)

    offer = page.offer_targets(*values)

    assert offer["choices"] == names
    assert "value" not in offer


@pytest.mark.parametrize("saved", [None, {}, [], "{}", {"model": "of another version", "gone": {}}])
def test_a_browser_without_a_draft_of_ours_begins_with_an_empty_form(page, saved):
    values = restore(page, saved)

    assert values.get("model.id") is None
    assert page.restore_draft(saved)[page.is_restored] is True


def test_a_draft_is_kept_only_once_the_browsers_own_was_brought_back(page):
    values = page.form.updates(a_config().model_dump(mode="json"))

    assert page.redraw(False, None, *values) == gr.skip()
    assert page.redraw(True, None, *values)[page.saved_draft]["model"]["id"] == "smollm2-135m-instruct"


def test_a_value_beyond_the_end_of_its_slider_takes_the_end_along(page):
    values = fill(page, a_config(adapter__r=512, adapter__lora_alpha=64))

    assert values["adapter.r"] == gr.update(value=512, maximum=512)
    assert values["adapter.lora_alpha"] == 64


@pytest.mark.parametrize(
    ("start", "label"),
    [
        (None, ""),
        ("/somewhere/my <adapter>", "the adapter in my <adapter>"),
        ("20250101-000000-000-abcd", "the adapter of 20250101-000000-000-abcd, a deleted run"),
    ],
)
def test_the_adapter_that_a_draft_begins_with_is_reported(page, start, label):
    assert page.start_label(page.draft(page.form.updates({"adapter": {"warm_start": start}}))) == label


def test_the_run_that_a_draft_continues_from_is_named_next_to_every_tab(page, services):
    run = write_run(services.runs, a_config(run__name="<i>faq"), InventedRun())
    draft = page.draft(page.form.updates({"adapter": {"warm_start": run.id}}))
    label = page.start_label(draft)

    assert label == "the adapter of <i>faq"
    for html in (render_side_panel(draft, label), render_warm_start(label)):
        assert "ontinues from" in html
        assert "the adapter of &lt;i&gt;faq" in html
    assert "Start a new adapter" in render_warm_start(label)
    assert render_warm_start("") == ""
    assert "Continues" not in render_side_panel(draft)


@pytest.mark.parametrize(
    ("settings", "is_linked"),
    [({}, True), ({"adapter__r": 8}, False), ({"adapter__r": 8, "adapter__lora_alpha": 16}, True)],
)
def test_what_fills_the_form_says_whether_alpha_is_twice_the_rank(tab, page, settings, is_linked):
    mapping = a_config(**settings).model_dump(mode="json")

    assert page.fill(mapping)[tab.link_alpha] is is_linked
    assert page.restore_draft(mapping)[tab.link_alpha] is is_linked
    assert list(page.change({"adapter": {"r": 4}}, *page.form.updates(mapping))) == [page.form["adapter.r"]]


def test_the_device_that_is_judged_for_stays_in_the_browser_and_through_a_preset(page):
    mapping = a_config().model_dump(mode="json")
    values = page.form.updates({**mapping, "page": {"judge_for": "rtx-4090"}})
    draft = page.redraw(True, None, *values)[page.saved_draft]

    assert draft["page"]["judge_for"] == "RTX 4090"
    assert page.restore_draft(draft)[page.judge_for] == "RTX 4090"
    assert page.judge_for not in page.fill(mapping)  # the choice stays
    assert "judge_for" not in page.redraw(True, None, *page.form.updates(mapping))[page.saved_draft]["page"]


@pytest.mark.parametrize("page_choices", ["RTX 4090", 7, {"judge_for": ["T4"]}, {"judge_for": "no such GPU"}])
def test_a_choice_of_ours_that_the_browser_damaged_is_this_machine(page, page_choices):
    stored_config = {**a_config().model_dump(mode="json"), "page": page_choices}
    restored = page.restore_draft(stored_config).get(page.judge_for, "")

    assert page.form.judged_device(form_values(page.form, page__judge_for=restored)) is None
