"""The draft in a real browser, on fakes: what fills the form leaves a page that works, and nothing changes by being shown."""

import re
import threading

import pytest
from playwright.sync_api import Page, expect

from loratory.ui.services import Services
from loratory.ui.views.draft import render_plan
from tests.browser.chromium import barriers, let_layout_settle, open_tab, reload, set_up
from tests.fake_services import fake_services
from tests.invented_runs import InventedRun, a_config, write_run
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("no_run_is_left")]


_OWN_MODEL = "somebody/own-model"
_MAY_STAY_EMPTY = ("(eval_steps)", "(save_steps)")


@pytest.fixture(scope="module")
def services(tmp_path_factory) -> Services:
    services = fake_services(tmp_path_factory.mktemp("home"), seconds_per_step=0.1)
    write_run(services.runs, a_config(run__name="faq, rank 8", adapter__r=8), InventedRun())
    return services


def test_a_reload_brings_the_draft_back_at_once_however_long_its_model_is_looked_up(page, services, monkeypatch):
    """A model of its own: those of the catalogue are looked up in the background."""
    goes_on, look_up = threading.Event(), services.inspector.module_inventory

    def slowly(model):
        assert model.id != _OWN_MODEL or goes_on.wait(3600)
        return look_up(model)

    open_tab(page, "Model")
    page.locator("#model-own input, #model-own textarea").fill(_OWN_MODEL)
    page.locator("#model-own input, #model-own textarea").press("Enter")
    expect(page.locator("#panel")).to_contain_text("Memory on CPU")
    open_tab(page, "Method")
    page.locator("#targets label", has_text="q_proj").click()
    page.locator("#rank input[type=number]").fill("24")
    expect(page.locator("#panel")).to_contain_text("r 24")
    services.shapes._own.clear()
    monkeypatch.setattr(services.inspector, "module_inventory", slowly)

    for rank in (40, 48):  # a second reload finds what was changed while the model was still looked up
        reload(page)
        expect(page.locator("#panel")).to_contain_text("own-model")
        expect(page.locator("#panel")).not_to_contain_text("Choose a model")
        expect(page.locator("#model-details")).to_contain_text("Looking up somebody/own-model")
        open_tab(page, "Method")
        expect(page.locator("#trainable")).not_to_contain_text("Choose a model")
        page.locator("#rank input[type=number]").fill(str(rank))
        expect(page.locator("#panel")).to_contain_text(f"r {rank}")
    goes_on.set()

    expect(page.locator("#panel")).to_contain_text("Memory on CPU")
    expect(page.locator("#panel")).to_contain_text("r 48")
    expect(page.locator("#targets label", has_text="q_proj").locator("input")).not_to_be_checked()
    expect(page.locator("#targets label", has_text="v_proj").locator("input")).to_be_checked()
    open_tab(page, "Model")
    expect(page.locator("#model-details .facts")).to_be_visible()


def test_a_name_is_answered_next_to_its_box_and_an_upload_empties_the_box_of_paths(page, tmp_path):
    open_tab(page, "Model")
    box = page.locator("#model-own input, #model-own textarea")
    box.fill("nowhere/to-be-found")
    box.press("Enter")
    expect(page.locator("#hub-results")).to_contain_text("nowhere/to-be-found cannot be reached")
    expect(page.locator("#hub-results")).to_be_in_viewport()
    expect(page.locator("#model-details")).to_contain_text("No model chosen")
    box.fill(_OWN_MODEL)
    expect(page.locator("#hub-results [role=alert]")).to_be_hidden()
    box.press("Enter")
    expect(page.locator("#model-details .facts")).to_be_visible()

    open_tab(page, "Data")
    path = page.locator("#dataset-own input, #dataset-own textarea")
    path.fill(str(tmp_path / "gone.jsonl"))
    path.press("Enter")
    expect(page.locator("#panel")).to_contain_text("gone.jsonl")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "What is r?", "completion": "The rank."}\n', encoding="utf-8")
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files(rows)
    expect(path).to_have_value("")
    expect(page.locator("#dataset-summary")).to_contain_text("rows.jsonl")


def judge_for(page: Page, title: str) -> None:
    page.locator("#judge-for input").click()
    page.get_by_role("option", name=title, exact=True).click()


def test_panel_and_catalogue_follow_the_judged_device_also_after_a_reload(page):
    open_tab(page, "Model")
    page.locator("#catalog [data-pick]").first.click()
    expect(page.locator("#panel")).to_contain_text("Memory on CPU")
    expect(page.locator("#measure")).to_be_visible()

    judge_for(page, "RTX 4090 24 GB")

    expect(page.locator("#panel")).to_contain_text("Estimate for NVIDIA RTX 4090. A run still starts on this machine.")
    expect(page.locator("#catalog caption")).to_contain_text("on NVIDIA RTX 4090")
    expect(page.locator("#measure")).to_be_hidden()
    reload(page)
    expect(page.locator("#judge-for input")).to_have_value("RTX 4090 24 GB")
    expect(page.locator("#panel")).to_contain_text("Estimate for NVIDIA RTX 4090")
    expect(page.locator("#catalog caption")).to_contain_text("on NVIDIA RTX 4090")
    judge_for(page, "This machine")
    expect(page.locator("#panel")).to_contain_text("Memory on CPU")
    expect(page.locator("#catalog caption")).to_contain_text("on CPU")
    reload(page)
    expect(page.locator("#panel")).to_contain_text("Memory on CPU")


def test_boxes_stay_empty_when_shown_again_and_advice_is_applied_and_undone(page):
    open_tab(page, "Model")
    page.locator("#catalog [data-pick]").first.click()
    expect(page.locator("#panel")).to_contain_text("Memory on CPU")
    set_up(page)
    page.locator("#more-training button").first.click()
    let_layout_settle(page)
    boxes = [page.locator("#more-training").get_by_label(name) for name in _MAY_STAY_EMPTY]

    for box in boxes:
        expect(box).to_have_value("")
    page.locator("#train-view label", has_text="Follow").click()
    expect(page.locator("#train-setup")).to_be_hidden()
    page.locator("#train-view label", has_text="Set up").click()
    for box in boxes:
        expect(box).to_have_value("")

    length = page.locator("#max-length input")
    row = page.locator("#advice tr[data-pick^='training.max_length=']")
    new_length, old_length = row.get_attribute("data-pick").removeprefix("training.max_length="), length.input_value()
    row.click()
    expect(page.locator("#applied")).to_contain_text(f"Max length {old_length} → {new_length} · undo")
    expect(length).to_have_value(new_length)
    page.locator("#applied button").click()
    expect(page.locator("#applied")).to_contain_text(f"Undone: Max length {new_length} → {old_length}")
    expect(length).to_have_value(old_length)
    for box in boxes:
        expect(box).to_have_value("")

    boxes[0].fill("many")
    expect(page.locator("#panel")).to_contain_text("'many' is not a whole number")
    boxes[0].fill("80")
    expect(page.locator("#panel")).not_to_contain_text("whole number")
    expect(page.locator("#panel")).to_contain_text("Choose a dataset.")
    expect(page.locator("#panel")).not_to_contain_text("out of range")
    reload(page)
    set_up(page)
    page.locator("#more-training button").first.click()
    let_layout_settle(page)
    expect(boxes[0]).to_have_value("80")
    expect(boxes[1]).to_have_value("")


def test_an_adapter_to_begin_with_is_seen_can_be_taken_out_and_goes_with_its_model(page, services):
    def train_on() -> None:
        open_tab(page, "Runs")
        page.locator("#runs-table tr[data-pick]", has_text="faq, rank 8").locator("td.name").last.click()
        page.locator("#run-train-on").click()
        # It would leave the next tab again.
        page.locator("#tabs button[role=tab].selected:has-text('Method')").wait_for()
        expect(page.locator("#begins-with")).to_contain_text("Continues from the adapter of faq, rank 8")
        expect(page.locator("#panel")).to_contain_text("the adapter of faq, rank 8")

    train_on()
    page.locator("#begins-with button").click()
    expect(page.locator("#panel")).not_to_contain_text("the adapter of")
    expect(page.locator("#begins-with")).not_to_contain_text("Continues from")

    train_on()
    open_tab(page, "Model")
    page.locator("#catalog [data-pick]").nth(2).click()
    expect(page.locator("#panel")).not_to_contain_text("the adapter of")
    expect(page.locator("#panel")).to_contain_text("r 8")
    set_up(page)
    page.locator("#start").click()
    expect(page.locator("#run-heading h2")).to_be_visible()
    assert services.launcher.started[-1].folder.read_config().adapter.warm_start is None


def test_alpha_is_linked_again_where_the_method_shows_no_rank(page):
    open_tab(page, "Method")
    page.locator("#method-choice label", has_text="AdaLoRA").click()
    alpha, link_box = (
        page.get_by_label("number input for Alpha (lora_alpha)"),
        page.get_by_label("Keep alpha at twice the rank"),
    )
    expect(alpha).to_have_value("8")
    expect(page.locator("#rank")).to_be_hidden()

    link_box.uncheck()
    link_box.check()

    expect(alpha).to_have_value("32")


def test_a_slider_may_be_emptied_and_alpha_follows_the_rank_while_ticked(page):
    link_box = page.get_by_label("Keep alpha at twice the rank")
    rank, alpha = (page.get_by_label(f"number input for {name}") for name in ("Rank (r)", "Alpha (lora_alpha)"))
    open_tab(page, "Method")
    for typed, text in (("", "r 16"), ("0", "out of range"), ("24", "r 24")):
        rank.fill(typed)
        expect(page.locator("#panel")).to_contain_text(text)
    expect(page.locator("#side .error, [data-testid=toast-body]")).to_have_count(0)

    rank.fill("20")
    expect(alpha).to_have_value("40")
    expect(page.locator("#panel")).to_contain_text("r 20")  # 24 comes once more below
    alpha.fill("16")
    expect(link_box).not_to_be_checked()
    rank.fill("24")
    expect(page.locator("#panel")).to_contain_text("r 24")

    reload(page)
    open_tab(page, "Method")
    expect(rank).to_have_value("24")
    expect(link_box).not_to_be_checked()
    expect(page.locator("#panel")).to_contain_text("r 24")
    rank.fill("28")
    expect(page.locator("#panel")).to_contain_text("r 28")
    expect(alpha).to_have_value("16")

    rank.fill("8")
    link_box.check()
    expect(alpha).to_have_value("16")
    link_box.uncheck()
    expect(page.locator("#panel")).to_contain_text("r 8")
    rank.fill("300")
    rank.press("Tab")
    expect(page.locator("#panel")).to_contain_text("r 256")
    expect(link_box).not_to_be_checked()

    open_tab(page, "Runs")
    page.locator("#runs-table tr[data-pick]", has_text="faq, rank 8").locator("td.name").last.click()
    page.locator("#run-duplicate").click()
    expect(rank).to_have_value("8")
    expect(alpha).to_have_value("32")
    expect(link_box).not_to_be_checked()


def test_a_length_is_counted_once_it_is_typed_and_not_at_each_figure(page, services, monkeypatch):
    lengths, check = [], services.inspector.check

    def check_and_note(dataset, model, max_length, **rest):
        lengths.append(max_length)
        return check(dataset, model, max_length, **rest)

    monkeypatch.setattr(services.inspector, "check", check_and_note)
    open_tab(page, "Model")
    page.locator("#catalog [data-pick]").first.click()
    expect(page.locator("#model-details .facts")).to_be_visible()
    open_tab(page, "Data")
    page.locator("#samples [data-pick]").last.click()
    expect(page.locator("#facts .facts")).to_be_visible()
    # Once all rows are read, memory, advice and catalogue are about them.
    expect(page.locator("#panel")).to_contain_text("For your rows, the longest of 240 tokens")
    expect(page.locator("#catalog")).to_contain_text("Memory: your rows")
    set_up(page)
    expect(page.locator("#plan")).to_contain_text("trained tokens")
    box = page.locator("#max-length input")
    expect(box).to_have_value("240")
    expect(page.locator("#train-setup")).to_contain_text("suited to the longest row, 240 tokens")
    lengths.clear()
    drawing, arrives = threading.Event(), threading.Event()

    def render_late(config, report, *rest):
        html = render_plan(config, report, *rest)
        if config is not None and config.training.max_length == 128 and not drawing.is_set():
            drawing.set()
            assert arrives.wait(60)
        return html

    monkeypatch.setattr("loratory.ui.tabs.train.render_plan", render_late)
    box.fill("")
    box.press_sequentially("128", delay=400)
    expect(page.locator("#panel")).to_contain_text("128 tokens")
    assert lengths == []
    assert drawing.wait(60)
    box.press("Tab")

    wait_until(lambda: lengths == [128])
    expect(page.locator("#plan")).to_contain_text("trained tokens")
    arrives.set()  # a drawing that began before the count
    page.wait_for_timeout(2000)
    expect(page.locator("#plan")).to_contain_text("trained tokens")


def test_numbers_step_and_a_link_leads_to_the_field_of_a_problem(page):
    set_up(page)
    rate, epochs = page.locator("#learning-rate input"), page.locator("#epochs input")

    for key, value in (("ArrowUp", "0.0005"), ("ArrowUp", "0.001"), ("ArrowDown", "0.0005"), ("ArrowDown", "0.0002")):
        rate.press(key)
        expect(rate).to_have_value(value)
    for box, value in ((rate, "0.0002"), (epochs, "3")):
        box.focus()
        box.hover()
        before = page.evaluate("scrollY")
        page.mouse.wheel(0, -100)
        page.wait_for_function("before => scrollY < before", arg=before)
        expect(box).to_have_value(value)
        expect(box).to_be_editable()
    epochs.fill("")
    expect(epochs).to_have_attribute("placeholder", "3")
    expect(page.locator("#panel")).to_contain_text("Learning rate")

    page.locator("#more-training button").first.click()
    let_layout_settle(page)
    norm = page.get_by_label("Max gradient norm")

    norm.fill("-1")

    problem = "-1 is out of range; it must be at least 0.0."
    expect(page.locator("#panel .wrong")).to_have_text(f"Max gradient norm: {problem}")
    expect(norm).to_have_attribute("aria-invalid", "true")
    expect(norm).to_have_accessible_description(re.compile(f"^{re.escape(problem)}"))
    assert barriers(page) == []
    page.locator("#more-training button").first.click()
    open_tab(page, "Model")
    page.locator("#panel .wrong button").press("Enter")
    expect(norm).to_be_focused()
    norm.fill("1")
    expect(norm).not_to_have_attribute("aria-invalid", "true")
    expect(page.locator(".field-problem")).to_have_count(0)
