"""Model: pick one from the catalogue, the Hub or a folder, and see its details."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.config.run import ModelConfig, id_of_page
from loratory.engine.data.files.access import shown_name
from loratory.engine.errors import EngineError, ModelError
from loratory.engine.hardware.device import THIS_MACHINE, find_known_device
from loratory.engine.models.catalog import find_in_catalog, search_catalog
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.hub import search_hub
from loratory.ui import components as ui
from loratory.ui.backend.background import Work, as_engine_error, stamp
from loratory.ui.backend.dataset_checks import model_of
from loratory.ui.backend.models import Fits, FitTable, key_of
from loratory.ui.gradio_internals import Dropdown, changed_by_hand
from loratory.ui.page import Page
from loratory.ui.polls import WorkStatus, poll, poll_answer
from loratory.ui.tabs.own_models import OwnPart
from loratory.ui.views import model as views
from loratory.ui.views.html import error_box, small, work_status

_BLINK_SECONDS = 0.4  # a cached tokenizer is found in that time, without a flicker
_STOPPED = "The download was stopped."
_LONGEST_NAME = 400
_TOO_LONG = f"A model's name has at most {_LONGEST_NAME} characters."
_JUDGED_TOGETHER = 8  # models per redraw: each redraw sends the whole catalogue
_NONE_JUDGED = stamp(0, False)  # the initial catalogue
_AND = "|"  # between the device and the rows that the poll asks about


class ModelTab:
    """Lays out the Model tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page, fits: FitTable) -> None:
        self.page = page
        self._fits = fits
        form = page.form
        gr.HTML('<h2>Model</h2><p class="lead">Start small: a small model shows sooner whether your data works.</p>')
        with gr.Row(equal_height=True):
            self.search = gr.Textbox(
                label="Search", placeholder="qwen, 8b, apache …", info="Filters as you type. Enter searches the Hub.",
                scale=3, min_width=240, elem_id="model-search",
            )  # fmt: skip
            self.own = gr.Textbox(
                label="Other model", placeholder="owner/name, a folder, or a .gguf file",
                info="A Hub id, the address of its page, or a path on this computer. Press Enter.", scale=3, min_width=240, max_lines=3,
                elem_id="model-own",
            )  # fmt: skip
            self.order = Dropdown(
                list(views.ORDERS), value=views.SMALLEST, label="Show", info="What fits depends on the device and your rows.",
                scale=2, min_width=200, elem_id="model-order",
            )  # fmt: skip
        self.hub = ui.pick_list(elem_id="hub-results")  # of the search, and what became of a typed name
        laid_out = views.render_catalog(search_catalog(""), "", Fits("this machine"))
        self.catalog = ui.pick_list(laid_out, elem_id="catalog", elem_classes="scroll tall")
        self._fits_poll = poll(self.fits_news, 1.5, question=THIS_MACHINE, elem_id="fits-live")
        form.register("model.id", gr.Textbox("", visible=False))
        form.show_problems_of("model.id", self.own)
        self.details = gr.HTML(views.NOT_CHOSEN, elem_id="model-details")
        own = page.services.own_models
        self.own_models = OwnPart(page, own) if own is not None else None
        self.tokenizer = TokenizerStatus(page, "model")
        with gr.Accordion("Advanced", open=False, elem_id="model-advanced"):
            form.setting("model.revision", elem_id="model-revision")
        self._restored_model = gr.Textbox("", visible=False)  # the model of the browser's draft
        page.on_fill(self.own, _typed_in)
        self.model_change = gr.State({})
        self._name_to_find = gr.State("")
        self.described_name = gr.State("")  # the model and revision whose details are shown, or are looked up
        self.sought = gr.State(None)  # the model that is to be looked up
        self._lookup = gr.State(("", ""))  # name and details of the model

    def wire(self) -> None:
        """Connect the events."""
        page, model_id, revision = self.page, self.page.form["model.id"], self.page.form["model.revision"]
        filter_inputs = [self.search, model_id, page.judge_for, page.data_lengths, self.order]
        redraw_events: list[Any] = [changed_by_hand(self.search), self.search.submit, self._fits_poll.submit]
        redraw_events += [changed_by_hand(self.order), page.judge_for.change, page.data_lengths.change]
        gr.on(redraw_events, self.redraw_catalog, filter_inputs, [self.catalog, self._fits_poll], **ui.LATEST)
        self.search.submit(_search_hub, self.search, self.hub, api_visibility="private")
        ui.clear_error_after(self.hub, [self.search, self.own])
        for trigger in (self.catalog.click, self.hub.click):
            self._choose_after(trigger(ui.picked_value, None, self._name_to_find, **ui.QUICK))
            trigger(None, None, self.own, js="() => ''", **ui.QUICK)  # the typed name is not the model now
        submit_event = self.own.submit(lambda text: id_of_page(text.strip()), self.own, self._name_to_find, **ui.QUICK)
        # Next to the box, as the details are below the catalogue.
        name_event = self._choose_after(submit_event, self.hub)
        name_event.then(None, None, None, js=ui.script("scroll_to_answer"), **ui.QUICK)
        if self.own_models is not None:
            arrival = self.own_models.arrival
            self._choose_after(self.own_models.wire().then(lambda name: name, arrival, self._name_to_find, **ui.QUICK))
        revise_event = gr.on(
            [revision.submit, revision.blur], self.revise, [model_id, revision, self.described_name],
            [self.details, self.described_name], **ui.SLOW,
        )  # fmt: skip
        self._fetch_after(page.refresh_after(revise_event))
        self._fetch_after(self.tokenizer.again.click(ui.nothing, None, None, **ui.QUICK))
        tokenizer_event = self.tokenizer.changed(self.describe_form, page.form.components, self.details, **ui.SLOW)
        self._fetch_after(page.refresh_after(tokenizer_event), again=False)
        # A preset, a run or the browser's draft may put a model into the form. The change fires before the rest of the form,
        # such as the revision, is filled.
        model_event = model_id.change(ui.nothing, None, None, **ui.QUICK)
        begin_event = model_event.then(
            self.begin_lookup, [model_id, revision, self.described_name, self.search, page.judge_for, page.data_lengths, self.order],
            [self.catalog, self.details, self.described_name, self.sought], **ui.QUICK,
        )  # fmt: skip
        find_event = begin_event.then(self.find, self.sought, self._lookup, **ui.SLOW)
        show_event = find_event.then(self.show, [self._lookup, model_id, revision], self.details, **ui.QUICK)
        self._fetch_after(page.offer_targets_after(show_event), again=False)

    def open_restored(self, event: Any) -> None:
        """Download the tokenizer of the restored draft's model, if it has one.

        The catalogue is filled by its poll.
        """
        event.then(None, self.page.form["model.id"], self._restored_model, js="(chosen) => chosen", **ui.QUICK)
        self._fetch_after(self._restored_model.change(ui.nothing, None, None, **ui.QUICK))

    def _fetch_after(self, event: Any, *, again: bool = True) -> None:
        """Download the model's tokenizer after an event if it is missing, also `again` after a failure."""

        def fetch(*values: Any) -> ui.Updates:
            return self.tokenizer.updates(model_of(self.page.form.mapping(values)), again=again)

        event.then(fetch, self.page.form.components, self.tokenizer.outputs, **ui.SLOW)

    def _choose_after(self, event: Any, status: gr.HTML | None = None) -> Dependency:
        """Choose the named model after an event; `status` shows the look-up and its error, else the details do."""
        page, status = self.page, status or self.details
        own = [self.own_models.panel, self.own_models.model] if self.own_models is not None else []
        announce_event = event.then(self.announce, self._name_to_find, status, **ui.QUICK)
        choose_event = announce_event.then(
            lambda name, current: self.choose(name, current, status), [self._name_to_find, page.form["model.id"]],
            [*dict.fromkeys((self.details, status)), self.model_change, self.described_name, *own], api_visibility="private",
        )  # fmt: skip
        self._fetch_after(page.change_after(choose_event, self.model_change))
        return choose_event

    def begin_lookup(
        self, model_id: str | None, revision: str | None, described_name: str, search: str, *judge_values: str | None
    ) -> ui.Updates:
        """Mark the model in the catalogue, and show its look-up unless its details are shown."""
        model = _model(model_id, revision)
        catalog = self.redraw_catalog(search, model_id, *judge_values)[self.catalog]
        name = _name(model)
        if model is None or name == described_name:
            return {self.catalog: catalog, self.sought: None}
        looking_up = views.render_lookup(model.id)
        return {self.catalog: catalog, self.details: looking_up, self.described_name: name, self.sought: model}

    def find(self, model: ModelConfig | None) -> tuple[str, str]:
        return ("", "") if model is None else (_name(model), self.describe(model))

    def show(self, lookup: tuple[str, str], model_id: str | None, revision: str | None) -> Any:
        """Return the details, unless another model was chosen meanwhile."""
        name, details = lookup
        return details if name and name == _name(_model(model_id, revision)) else ui.UNCHANGED

    def describe(self, model: ModelConfig | None) -> str:
        """Return the details of a model, or why it cannot be read; learns its modules."""
        return self._describe_or_explain(model)[0]

    def _describe_or_explain(self, model: ModelConfig | None) -> tuple[str, EngineError | None]:
        if model is None:
            return views.NOT_CHOSEN, None
        try:
            services = self.page.services
            services.shapes.learn(model)
            tokenizer = services.tokenizers.download(model)
            tokenizer.done.wait(_BLINK_SECONDS)
            details = services.inspector.model_details(model)
            # The line below the details reports a tokenizer that is downloading or failed.
            has_line = tokenizer.is_under_way or tokenizer.error is not None
            has_tokenizer = details.tokenizer_missing is None or not has_line
            shape = services.shapes.get(model.id, model.revision)
            family = family_of({"model_type": shape.model_type}) if shape is not None else None
            seeing = small(f"Takes images, as models of the family {family.label} do.") if family is not None else ""
            return views.render_details(details, has_tokenizer=has_tokenizer) + seeing, None
        except Exception as error:
            problem = as_engine_error(error)
            return error_box(problem), problem

    def describe_form(self, *values: Any) -> Any:
        """Return the details of the form's model; no update without one: the request may be outdated."""
        model = model_of(self.page.form.mapping(values))
        return ui.UNCHANGED if model is None else self.describe(model)

    def revise(self, model_id: str | None, revision: str | None, described_name: str) -> ui.Updates:
        """Look the model up at another revision; leaving the box unchanged does nothing."""
        model = _model(model_id, revision)
        name = _name(model)
        if model is None or name == described_name:
            return ui.UNCHANGED
        return {self.details: self.describe(model), self.described_name: name}

    def fits_for(self, device: str | None, lengths: str | None) -> Fits:
        """Return the verdicts for a device and known rows, both by untrusted names."""
        rows = self.page.services.checks.lengths_of(lengths or "")
        return self._fits.on(find_known_device(device or ""), rows)

    def redraw_catalog(
        self,
        query: str,
        chosen: str | None,
        device: str | None = "",
        lengths: str | None = "",
        order: str | None = None,
    ) -> ui.Updates:
        """Return the catalogue with the verdicts so far; the poll ends once they are complete."""
        fits = self.fits_for(device, lengths)
        question = "" if fits.progress[1] else _AND.join(filter(None, (device or THIS_MACHINE, lengths)))
        return {
            self.catalog: views.render_catalog(search_catalog(query or ""), chosen or "", fits, order or ""),
            self._fits_poll: question,
        }

    def fits_news(self, question: str, last_stamp: str) -> str | None:
        device, _, lengths = question.partition(_AND)
        done_count, is_done = self.fits_for(device, lengths).progress
        now = stamp(done_count // _JUDGED_TOGETHER, is_done)
        return None if now in (last_stamp, _NONE_JUDGED) else poll_answer(now, {}, submit=True)

    def announce(self, model_id: str) -> Any:
        """Return that a model is looked up, which may take long; the details of the last one would look like its own."""
        is_known = not model_id or self.page.services.shapes.get(model_id, None) is not None
        return ui.UNCHANGED if is_known else views.render_lookup(shown_name(model_id))

    def choose(self, model_id: str, current: str | None, status: gr.HTML | None = None) -> ui.Updates:
        """Return the choice and the details of a model; where it cannot be read, `status` or else the details say why."""
        if not model_id:
            return {self.model_change: {}}
        model, details, error = _model(model_id, None), "", None
        if len(model_id) > _LONGEST_NAME:
            details = error_box(ModelError(_TOO_LONG, "Type a Hub id or a path."))
        else:
            details, error = self._describe_or_explain(model)
        if self.page.services.shapes.get(model_id, None) is None:
            # It could not be read: the previous model must not look like the requested one.
            change: dict[str, Any] = {"model": {"id": "", "revision": None}}
            own = self.own_models.offer(model_id, error) if self.own_models is not None else {}
            answer = {self.details: views.NOT_CHOSEN} | {status or self.details: details}
            return {**answer, self.model_change: change, self.described_name: "", **own}
        # Targets of one model rarely exist in another, and an adapter never fits one.
        adapter = {"target_modules": "all-linear"} | ({} if model_id == current else {"warm_start": None})
        change = {"model": {"id": model_id, "revision": None}, "adapter": adapter}
        answer = {status or self.details: ""} | {self.details: details}
        return {**answer, self.model_change: change, self.described_name: _name(model)}


def _model(model_id: str | None, revision: str | None) -> ModelConfig | None:
    return model_of({"model": {"id": model_id or "", "revision": (revision or "").strip() or None}})


def _typed_in(mapping: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of the box for other models in a filled form."""
    model_id = str(mapping.get("model", {}).get("id") or "")
    return "" if find_in_catalog(model_id) is not None else model_id


def _name(model: ModelConfig | None) -> str:
    """Return a name that is unique for model and revision."""
    return model.model_dump_json(include={"id", "revision"}) if model is not None else ""


def _search_hub(query: str) -> str:
    try:
        return views.render_hub_results(query, search_hub(query.strip())) if query.strip() else ""
    except EngineError as error:
        return error_box(error)


class TokenizerStatus(WorkStatus):
    """Lays out the line with the progress of a tokenizer, in the same words on each tab."""

    def __init__(self, page: Page, tab: str) -> None:
        self.page = page
        super().__init__(
            lambda key: page.services.tokenizers.works.find(key), _render_download, elem_id=f"{tab}-tokenizer",
            live_id=f"{tab}-tokenizer-live",
        )  # fmt: skip
        self.again = gr.Button("Try again", size="sm", visible=False, elem_id=f"{tab}-tokenizer-again")
        self.outputs.append(self.again)

    def updates(self, model: ModelConfig | None, *, again: bool = False) -> ui.Updates:
        """Download a tokenizer if it is missing, or `again` after a failure; return its status soon."""
        if model is None:
            return {**self.follow(), self.again: ui.HIDDEN}
        work = self.page.services.tokenizers.download(model, again=again)
        work.done.wait(_BLINK_SECONDS)
        return {**self.follow(key_of(model)), self.again: ui.visible_if(work.error is not None)}


def _render_download(work: Work[object] | None) -> str:
    """Return a line during the download, a box after a failure, else empty."""
    html = work_status(work, _STOPPED)
    if work is None or not work.is_under_way:
        return html
    return html + small("Rows are shown without tokens until the tokenizer is here.")
