"""The Model tab on fakes: a revision is looked up, and the tokenizer is on its way once a model is picked."""

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from loratory.engine.config.run import ModelConfig
from loratory.engine.errors import ModelError
from loratory.engine.hardware.device import THIS_MACHINE, known_device
from loratory.engine.memory.compare import MethodNeed
from loratory.engine.memory.estimate import judge
from loratory.engine.models.catalog import find_in_catalog, list_catalog, search_catalog
from loratory.engine.private_hub import PrivateCopy
from loratory.ui.backend.background import FunctionJob
from loratory.ui.backend.dataset_checks import lengths_stamp
from loratory.ui.backend.models import DOWNLOAD, METHODS_JUDGED, Fits, FitTable, OwnDownloads, Tokenizers
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page
from loratory.ui.tabs.model import _JUDGED_TOGETHER, ModelTab
from loratory.ui.tabs.own_models import OwnPart
from loratory.ui.views.model import SMALLEST, render_catalog
from tests.invented_runs import a_config
from tests.ui.changes import Changes
from tests.ui.data_tab_visitor import PATIENCE_SECONDS, question_on
from tests.waiting import wait_until

MODEL = "some/model"


@pytest.fixture
def tab(laid_out, services):
    return laid_out(lambda page: ModelTab(page, FitTable(services.shapes.learn, services.devices)))


def values(tab, **settings):
    return tab.page.form.updates(a_config(model__id=MODEL, **settings).model_dump(mode="json"))


def test_a_revision_is_looked_up_so_its_memory_can_be_estimated(tab, services):
    assert tab.page.draft(values(tab, model__revision="v2")).shape is None

    changes = Changes(tab, tab.revise(MODEL, " v2 ", ""))

    assert "hidden size" in changes.details
    assert services.shapes.get(MODEL, "v2") is not None
    assert tab.page.draft(values(tab, model__revision="v2")).shape is not None
    assert tab.revise(MODEL, "v2", changes.described_name) == gr.skip()  # a box that is only passed through
    assert tab.revise("", "v2", "") == gr.skip()


def test_another_model_takes_out_the_adapter_that_the_draft_began_with(tab):
    page = tab.page
    form_values = [
        *page.form.updates(a_config(model__id=MODEL, adapter__warm_start="some-adapter").model_dump(mode="json"))
    ]

    def warm_start_after(model_id):
        updates = page.change(tab.choose(model_id, MODEL)[tab.model_change], *form_values)
        return updates.get(page.form["adapter.warm_start"], gr.skip())

    assert warm_start_after("another/model") is None
    assert warm_start_after(MODEL) == gr.skip()
    assert warm_start_after("nowhere/to-be-found") == gr.skip()


def test_after_a_model_that_cannot_be_read_none_is_chosen(tab):
    page = tab.page
    chosen = tab.choose("nowhere/to-be-found", MODEL)

    updates = page.change(chosen[tab.model_change], *values(tab))
    draft = page.draft([updates.get(component, value) for component, value in zip(page.form.components, values(tab), strict=True)])  # fmt: skip
    assert "cannot be reached" in chosen[tab.details]
    assert chosen[tab.described_name] == ""
    assert draft.missing == ("Choose a model.",)
    assert draft.config is None


def test_a_name_that_is_too_long_is_refused_and_leaves_no_model_chosen(tab):
    chosen = tab.choose("a" * 401, MODEL)

    assert "at most 400 characters" in chosen[tab.details]
    assert chosen[tab.model_change]["model"]["id"] == ""


def test_a_model_is_announced_while_it_is_looked_up_unless_it_is_known(tab):
    assert "Looking up another/model" in tab.announce("another/model")
    tab.describe(ModelConfig(id="another/model"))
    assert tab.announce("another/model") == gr.skip()
    assert tab.announce("") == gr.skip()


def test_verdicts_are_filled_in_as_they_become_known_and_then_nothing_is_asked(services, laid_out):
    goes_on = threading.Semaphore(0)
    trainable = [entry for entry in list_catalog() if not entry.untrainable]
    others = len(list_catalog()) - len(trainable)

    def learn(model):
        assert goes_on.acquire(timeout=PATIENCE_SECONDS)
        if model.id == trainable[-1].id:
            raise ModelError("It cannot be reached.", "Check the connection.")
        return services.shapes.learn(model)

    fits = FitTable(learn, services.devices)
    tab = laid_out(lambda page: ModelTab(page, fits))
    count = len(trainable)
    assert tab.redraw_catalog("", "")[tab.catalog].count("…</span>") == count
    assert tab.catalog.value.count("…</span>") == count
    assert tab.fits_news("fits", "") is None

    goes_on.release(_JUDGED_TOGETHER)
    wait_until(lambda: tab.fits_news("fits", "") is not None)
    first = json.loads(tab.fits_news("fits", ""))
    assert first["submit"]
    assert tab.fits_news("fits", first["stamp"]) is None
    wait_until(lambda: tab.redraw_catalog("", "")[tab.catalog].count("…</span>") == count - _JUDGED_TOGETHER)
    html, question = tab.redraw_catalog("", "").values()
    assert f" of {count + others} models estimated" in html
    assert question == THIS_MACHINE
    goes_on.release(count - _JUDGED_TOGETHER)
    wait_until(lambda: fits.on(None).progress == (count + others, True))
    html, question = tab.redraw_catalog("", "").values()
    assert "…</span>" not in html
    assert "models estimated" not in html
    assert html.count("–</span>") == 1 + others
    assert question == ""


def test_a_model_that_cannot_be_trained_reports_why_and_cannot_be_picked(tab):
    rows = tab.redraw_catalog("gpt-oss-20b", "")[tab.catalog]

    assert 'data-pick="unsloth/gpt-oss-20b-BF16"' in rows
    assert 'data-pick="openai/gpt-oss-20b"' not in rows
    assert "Cannot be trained as published." in rows


def test_the_catalogue_is_judged_for_another_device_and_the_chosen_rows(services, laid_out):
    fits = FitTable(services.shapes.learn, services.devices)
    tab = laid_out(lambda page: ModelTab(page, fits))
    check = services.checks.read(question_on("rows.jsonl"))
    wait_until(lambda: check.is_done)

    html, question = tab.redraw_catalog("", "", "RTX 4090", lengths_stamp(check)).values()
    wait_until(lambda: tab.fits_for("RTX 4090", lengths_stamp(check)).progress == (len(list_catalog()), True))

    assert "Memory: your rows at batch 2 on NVIDIA RTX 4090." in html
    assert question.startswith("RTX 4090")
    assert tab.fits_news(question, "") is not None
    assert "NVIDIA" not in tab.redraw_catalog("", "", "<b>no such device</b>")[tab.catalog]
    assert tab.fits_for("RTX 4090", lengths_stamp(check)) is fits.on(known_device("RTX 4090"), check.report.row_lengths)
    html = tab.redraw_catalog("", "", "RTX 4090", "1-2-forged")[tab.catalog]
    assert "Memory: rows of 1,024 tokens at batch 2 on NVIDIA RTX 4090, until your rows are counted." in html


def test_a_revision_that_cannot_be_read_reports_it_next_to_the_model(tab, services, monkeypatch):
    def refuse(model):
        raise KeyError(model.revision)

    monkeypatch.setattr(services.inspector, "module_inventory", refuse)

    details = tab.revise(MODEL, "nowhere", "")[tab.details]

    assert "Something unexpected happened." in details


def test_details_are_those_of_the_revision_in_the_form(tab, services):
    assert "hidden size" in tab.describe_form(*values(tab, model__revision="v3"))
    assert services.shapes.get(MODEL, "v3") is not None


def test_a_picked_model_has_its_tokenizer_fetched(tab, services):
    changes, key, again = tab.tokenizer.updates(ModelConfig(id=MODEL)).values()

    assert services.tokenizers.is_ready(ModelConfig(id=MODEL))
    assert (changes, again["visible"], key) == ("", False, "")


def test_the_box_for_other_models_shows_what_filled_the_form_and_nothing_of_before(tab):
    page = tab.page

    assert page.fill(a_config(model__id=MODEL).model_dump(mode="json"))[tab.own] == MODEL
    assert page.fill(a_config().model_dump(mode="json"))[tab.own] == ""


def test_why_there_is_no_tokenizer_is_reported_once(tab, services):
    def resolve(model, on_progress):
        raise ModelError("No connection to the Hub.", "Try again.")

    missing = services.inspector.model_details(ModelConfig(id=MODEL)).model_copy(update={"tokenizer_missing": "No connection to the Hub. Try again."})  # fmt: skip
    services.inspector.model_details = lambda model: missing
    tab.page.services = replace(services, tokenizers=Tokenizers(resolve))

    details = tab.describe(ModelConfig(id=MODEL))
    changes, _, again = tab.tokenizer.updates(ModelConfig(id=MODEL)).values()
    assert "hidden size" in details
    assert (details + changes).count("No connection to the Hub.") == 1
    assert again["visible"]


def test_a_model_of_a_draft_shows_that_it_is_looked_up(tab):
    start = tab.begin_lookup(MODEL, "v2", "", "")
    sought = start[tab.sought]

    assert f"Looking up {MODEL}" in start[tab.details]
    assert sought == ModelConfig(id=MODEL, revision="v2")
    result = tab.find(sought)
    assert "hidden size" in tab.show(result, MODEL, "v2")
    again = tab.begin_lookup(MODEL, "v2", start[tab.described_name], "")
    assert set(again) == {tab.catalog, tab.sought}
    assert again[tab.sought] is None


def test_details_that_come_late_leave_those_of_the_model_that_was_chosen_since(tab):
    result = tab.find(ModelConfig(id=MODEL))

    assert tab.show(result, "another/model", None) == gr.skip()
    assert tab.show(tab.find(None), MODEL, None) == gr.skip()


def test_a_picked_model_is_not_looked_up_once_more_when_it_is_in_the_form(tab):
    description = tab.choose(MODEL, "")[tab.described_name]

    assert tab.begin_lookup(MODEL, None, description, "")[tab.sought] is None


def test_a_private_model_is_chosen_once_its_download_ended_however_soon_that_is(services):
    own = OwnDownloads(
        services.runs,
        "model",
        lambda _home, _kind, hub_id, *_: FunctionJob(lambda _: PrivateCopy(hub_id, 0, Path(hub_id))),
    )
    with Blocks():
        part = OwnPart(Page(services), own)

    start = part.download("owner/gated", "", f"hf_{'x' * 32}")
    own.downloading.find(DOWNLOAD).done.wait(300)

    assert '"submit":true' in part.job.news(start[part.job.poll], "")
    end_updates = part.show_end()
    assert (end_updates[part.arrival], end_updates[part.job.poll]) == ("owner/gated", "")
    assert "owner/gated is downloaded." in end_updates[part.job.status]


def test_the_catalogue_recommends_a_method_and_filters_what_fits():
    """On a device with 8 GiB: by the size of each model alone, with four bits in the place of sixteen."""
    device = known_device("RTX 4060").device()
    fits = Fits(device.name)
    for entry in list_catalog():
        sizes = zip(METHODS_JUDGED, (2, 0.6, 16), strict=True)
        needs = [
            MethodNeed(method=method, needed_bytes=round(size * entry.parameters), expected_bytes=1)
            for method, size in sizes
        ]
        verdicts = (
            need.model_copy(update={"verdict": judge(need.needed_bytes, need.needed_bytes, device)}) for need in needs
        )
        fits.needs[entry.id] = () if entry.untrainable else tuple(verdicts)

    def rows_of(order, query=""):
        html = render_catalog(search_catalog(query), "", fits, order)
        return re.findall(r'data-pick="([^"]+)"', html), html

    everything, html = rows_of(SMALLEST)
    assert "≈ 269 MB" in html  # the demo model's weights in 16 bits
    assert '<span class="yes">LoRA</span><span class="under">16-bit weights fit</span>' in html
    assert re.search(r'<span class="yes">QLoRA</span><span class="under">LoRA needs [0-9.]+ GiB</span>', html)
    assert re.search(r'<span class="no">QLoRA</span><span class="under">LoRA needs [0-9.]+ GiB; choose a smaller', html)
    fitting, html = rows_of("Fits, largest first")
    assert 0 < len(fitting) < len(everything)
    assert '<span class="no">' not in html
    parameters = [find_in_catalog(model_id).parameters for model_id in fitting]
    assert parameters == sorted(parameters, reverse=True)
    assert everything[0] == "smollm2-135m-instruct"
    needed = [float(need) for need in re.findall(r'([0-9.]+)<span class="unseen">', rows_of("Least memory first")[1])]
    assert needed == sorted(needed)
    assert len(needed) > 10
    assert rows_of("<b>no such order</b>")[0] == everything
    assert "No matching model" in rows_of("Fits, largest first", "70b")[1]
