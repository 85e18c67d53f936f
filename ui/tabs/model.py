"""Model: pick one from the catalogue, the Hub or a folder, and see what it is made of."""

from html import escape
from typing import Any

import gradio as gr

from engine.config.model import ModelConfig
from engine.errors import EngineError
from engine.models.catalog import search_catalog
from engine.models.details import ModelDetails
from engine.models.hub_search import search_hub
from ui.errors import trouble
from ui.fit import FitTable
from ui.page import Page
from ui.pick import pick_list, picked
from ui.views.model_table import render_catalog, render_hub_results
from ui.views.quantities import count, size

_LEAD = (
    '<h2>Choose a model</h2><p class="lead">The smaller the model, the sooner you know whether your data teaches what '
    "you want. Start small, then repeat with the one you will use.</p>"
)
_NOT_CHOSEN = (
    '<div class="empty"><b>Nothing chosen yet</b>Pick a row above. If you are new here, take '
    "SmolLM2-135M-Instruct: it trains on any computer in a few minutes.</div>"
)


class ModelTab:
    """Lays out the Model tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page, fits: FitTable) -> None:
        self._page = page
        self._fits = fits
        form = page.form
        gr.HTML(_LEAD)
        with gr.Row(equal_height=True):
            self.search = gr.Textbox(
                label="Search",
                placeholder="qwen, 8b, apache …",
                info="Filters as you type; Enter searches the Hub.",
                scale=3,
                elem_id="model-search",
            )
            self.own = gr.Textbox(
                label="Or any other model",
                placeholder="owner/name, a folder, or a .gguf file",
                info="A Hub id or a path on this computer. Press Enter.",
                scale=3,
                elem_id="model-own",
            )
        self.hub = pick_list(elem_id="hub-results")
        self.catalog = pick_list(elem_id="catalog", elem_classes="scroll tall")
        form.register("model.id", gr.Textbox(visible=False))
        self.details = gr.HTML(_NOT_CHOSEN, elem_id="model-details")
        with gr.Accordion("Rarely needed", open=False):
            form.setting("model.revision")
        self._change = gr.State({})
        self._wanted = gr.State("")

    def wire(self) -> None:
        """Connect the events."""
        form = self._page.form
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [self.search.input, self.search.submit],
            self._filter,
            [self.search, form["model.id"]],
            self.catalog,
            trigger_mode="always_last",
            queue=False,
            **quick,
        )
        self.search.submit(_search_hub, self.search, self.hub, api_visibility="private")
        for trigger in (self.catalog.click, self.hub.click):
            chosen = trigger(picked, None, self._wanted, queue=False, **quick)
            self._look_up_after(chosen)
        typed = self.own.submit(lambda text: text.strip(), self.own, self._wanted, queue=False, **quick)
        self._look_up_after(typed)

    def _look_up_after(self, event: Any) -> None:
        """Show that it is being looked up, look it up, put it into the form, redraw."""
        page, form = self._page, self._page.form
        looked_up = event.then(self._choose, self._wanted, [self.details, self._change], api_visibility="private")
        filled = page.change_after(looked_up, self._change)
        filled.then(
            self._filter,
            [self.search, form["model.id"]],
            self.catalog,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    def show_known(self, model_id: str, query: str = "") -> tuple[str, str]:
        """Catalogue and details for a model that the page was opened with."""
        return self._filter(query, model_id), self.describe(model_id)

    def describe(self, model_id: str | None) -> str:
        """Details of the chosen model, or what kept us from reading it."""
        if not model_id:
            return _NOT_CHOSEN
        try:
            model = ModelConfig(id=model_id)
            self._page.services.shapes.learn(model)
            return render_details(self._page.services.inspector.model_details(model))
        except EngineError as error:
            return trouble(error)

    def _filter(self, query: str, chosen: str | None) -> str:
        return render_catalog(search_catalog(query or ""), chosen or "", self._fits)

    def _choose(self, wanted: str) -> tuple[str, dict[str, Any]]:
        if not wanted or len(wanted) > 400:
            return gr.skip(), {}
        described = self.describe(wanted)
        if self._page.services.shapes.get(wanted, None) is None:
            return described, {}  # it could not be read: the form keeps what it had
        # Targets of one model rarely exist in another.
        return described, {"model": {"id": wanted, "revision": None}, "adapter": {"target_modules": "all-linear"}}


def _search_hub(query: str) -> str:
    if not query.strip():
        return ""
    try:
        return render_hub_results(query, search_hub(query.strip()))
    except EngineError as error:
        return trouble(error)


def render_details(details: ModelDetails) -> str:
    """What a model is made of, and how it is spoken to."""
    facts = [
        (count(details.parameters), "parameters"),
        (f"{details.num_hidden_layers}", "layers"),
        (f"{details.hidden_size:,}", "hidden size"),
        (f"{details.vocab_size:,}", "tokens in the vocabulary"),
    ]
    if details.max_position_embeddings:
        facts.append((f"{details.max_position_embeddings:,}", "tokens of context"))
    if details.size_bytes:
        facts.append((size(details.size_bytes), "on disk"))
    figures = "".join(f"<div><b>{figure}</b>{words}</div>" for figure, words in facts)
    return (
        f"<h3>{escape(details.name)}</h3>"
        f'<p class="lead">{escape(", ".join(filter(None, (details.architecture, details.dtype, details.license))))}</p>'
        f'<div class="facts">{figures}</div>{_spoken_to(details)}'
    )


def _spoken_to(details: ModelDetails) -> str:
    if details.tokenizer_missing:
        return f'<p class="notice">{escape(details.tokenizer_missing)}</p>'
    tokens = " ".join(f"<code>{escape(name)} {escape(token)}</code>" for name, token in details.special_tokens.items())
    if not details.chat_template:
        return (
            f'<p class="small">Special tokens: {tokens}</p><p class="notice">It brings no chat template: this is a base '
            "model. Loratory uses a plain documented one, and saves it with what you train.</p>"
        )
    return (
        f'<p class="small">Special tokens: {tokens}</p>'
        f'<details><summary class="small">Its chat template, {len(details.chat_template):,} characters</summary>'
        f'<pre class="log">{escape(details.chat_template)}</pre></details>'
    )
