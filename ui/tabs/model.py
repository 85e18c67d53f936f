"""Model: pick one from the catalogue, the Hub or a folder, and see what it is made of."""

from html import escape
from typing import Any, NamedTuple

import gradio as gr

from engine.config.model import ModelConfig
from engine.errors import EngineError
from engine.models.catalog import search_catalog
from engine.models.hub import search_hub
from engine.models.shape import ModelDetails
from ui.backend.fit_table import FitTable
from ui.errors import explained, trouble
from ui.fields import changed_by_hand
from ui.form import model_of
from ui.live import asking, news
from ui.page import Page
from ui.pick import pick_list, picked
from ui.tabs.tokenizer_status import FetchingPart
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
_FITS_SECONDS = 1.0  # between two looks at the verdicts that are being worked out


class Found(NamedTuple):
    """What a look-up found out."""

    name: str  # of the model and its revision
    details: str


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
        self._fits_asking = asking(self._fits_news, _FITS_SECONDS, question="fits", elem_id="fits-live")
        form.register("model.id", gr.Textbox(visible=False))
        self.details = gr.HTML(elem_id="model-details")
        self.fetching = FetchingPart(page, "model")
        with gr.Accordion("Rarely needed", open=False, elem_id="model-rarely"):
            form.setting("model.revision", elem_id="model-revision")
        self._change = gr.State({})
        self._wanted = gr.State("")
        self._described = gr.State("")  # the model and revision whose details are shown, or are looked up
        self._sought = gr.State(None)  # the model that is to be looked up
        self._found = gr.State(None)

    def wire(self) -> None:
        """Connect the events."""
        page, form = self._page, self._page.form
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [changed_by_hand(self.search), self.search.submit],
            self._filter,
            [self.search, form["model.id"]],
            self.catalog,
            trigger_mode="always_last",
            queue=False,
            **quick,
        )
        new_verdicts: Any = self._fits_asking.submit
        new_verdicts(
            self._fill_fits,
            [self.search, form["model.id"]],
            [self.catalog, self._fits_asking],
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
        revision: Any = form["model.revision"]
        revised = gr.on(
            [revision.submit, revision.blur],
            self._revise,
            [form["model.id"], revision, self._described],
            [self.details, self._described],
            **quick,
        )
        self.fetch_after(page.refresh_after(revised))
        again = self.fetching.again.click(lambda: None, None, None, queue=False, **quick)
        self.fetch_after(again)
        ended = self.fetching.ended(self._describe_form, form.components, self.details, **quick)
        self.fetch_after(ended, again=False)
        self._follow_the_form()

    def _follow_the_form(self) -> None:
        """Describe a model that a preset, a run or the browser's draft has put into the form."""
        page, form = self._page, self._page.form
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        model = [form["model.id"], form["model.revision"]]
        # The change is told before what else was filled with it, such as the revision, is in its place.
        model_id: Any = form["model.id"]
        named = model_id.change(lambda: None, None, None, **quick)
        begun = named.then(
            self._begin,
            [*model, self._described, self.search],
            [self.catalog, self.details, self._described, self._sought],
            **quick,
        )
        found = begun.then(self._find, self._sought, self._found, show_progress="hidden", api_visibility="private")
        page.settle_targets_after(found.then(self._show, [self._found, *model], self.details, **quick))

    def fetch_after(self, event: Any, *, again: bool = True) -> None:
        """After an event, have the chosen model's tokenizer fetched where it is not here yet.

        Args:
            event: Something that settled which model it is.
            again: Also try anew what has failed before.
        """

        def fetch(*values: Any) -> list[Any]:
            return self.fetching.updates(model_of(self._page.form.mapping(values)), again=again)

        event.then(
            fetch,
            self._page.form.components,
            self.fetching.outputs,
            show_progress="hidden",
            api_visibility="private",
        )

    def _look_up_after(self, event: Any) -> None:
        """Show that it is being looked up, look it up, put it into the form, redraw."""
        page, form = self._page, self._page.form
        looked_up = event.then(
            self._choose,
            [self._wanted, form["model.id"], self._described],
            [self.details, self._change, self._described],
            api_visibility="private",
        )
        self.fetch_after(page.change_after(looked_up, self._change))

    def open_after(self, event: Any) -> None:
        """After an event that brought back the browser's draft: the catalogue, and what to do where no model is chosen."""
        event.then(
            lambda search, chosen: (self._filter(search, chosen), gr.skip() if chosen else _NOT_CHOSEN),
            [self.search, self._page.form["model.id"]],
            [self.catalog, self.details],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        self.fetch_after(event)

    def _begin(self, model_id: str | None, revision: str | None, described: str, search: str) -> tuple[Any, ...]:
        """Mark the model in the catalogue, and say that it is being looked up, unless its details stand there already."""
        model = _model(model_id, revision)
        catalog, wanted = self._filter(search, model_id), _name(model)
        if model is None or wanted == described:
            return catalog, gr.skip(), described, None
        return catalog, render_looking_up(model.id), wanted, model

    def _find(self, model: ModelConfig | None) -> Found | None:
        return Found(_name(model), self.describe(model)) if model is not None else None

    def _show(self, found: Found | None, model_id: str | None, revision: str | None) -> Any:
        """The details, unless another model was chosen while they were looked up."""
        return found.details if found is not None and found.name == _name(_model(model_id, revision)) else gr.skip()

    def describe(self, model: ModelConfig | None) -> str:
        """Details of the chosen model, or what kept us from reading it; its modules are known afterwards."""
        if model is None:
            return _NOT_CHOSEN
        try:
            self._page.services.shapes.learn(model)
            return render_details(self._page.services.inspector.model_details(model))
        except Exception as error:
            return trouble(explained(error))

    def _describe_form(self, *values: Any) -> str:
        return self.describe(model_of(self._page.form.mapping(values)))

    def _revise(self, model_id: str | None, revision: str | None, described: str) -> tuple[Any, str]:
        """Look the model up at another revision; a box that was only passed through asks nobody."""
        model = _model(model_id, revision)
        wanted = _name(model)
        if model is None or wanted == described:
            return gr.skip(), described
        return self.describe(model), wanted

    def _filter(self, query: str, chosen: str | None) -> str:
        return render_catalog(search_catalog(query or ""), chosen or "", self._fits)

    def _fits_news(self, _question: str, seen: str) -> str | None:
        stamp = "{}:{}".format(*self._fits.progress)
        return None if stamp == seen else news(stamp, {}, submit=True)

    def _fill_fits(self, query: str, chosen: str | None) -> tuple[str, str]:
        """The catalogue with the verdicts that are known now; once these are all, nothing is asked any more."""
        _, is_done = self._fits.progress
        return self._filter(query, chosen), "" if is_done else gr.skip()

    def _choose(self, wanted: str, current: str | None, described: str) -> tuple[str, dict[str, Any], str]:
        if not wanted or len(wanted) > 400:
            return gr.skip(), {}, described
        model = _model(wanted, None)
        details = self.describe(model)
        if self._page.services.shapes.get(wanted, None) is None:
            # It could not be read. The model from before would look like the one that was asked for.
            return details, {"model": {"id": "", "revision": None}}, ""
        # Targets of one model rarely exist in another, and an adapter never fits one.
        adapter = {"target_modules": "all-linear"} | ({} if wanted == current else {"warm_start": None})
        return details, {"model": {"id": wanted, "revision": None}, "adapter": adapter}, _name(model)


def _model(model_id: str | None, revision: str | None) -> ModelConfig | None:
    return model_of({"model": {"id": model_id or "", "revision": (revision or "").strip() or None}})


def _name(model: ModelConfig | None) -> str:
    """What tells one model and revision from another."""
    return model.model_dump_json(include={"id", "revision"}) if model is not None else ""


def _search_hub(query: str) -> str:
    if not query.strip():
        return ""
    try:
        return render_hub_results(query, search_hub(query.strip()))
    except EngineError as error:
        return trouble(error)


def render_looking_up(model_id: str) -> str:
    """What stands there until the details of a chosen model have come."""
    return (
        f'<div class="empty" role="status"><b>Looking {escape(model_id)} up …</b>Its configuration and its tokenizer say '
        "what it is made of.</div>"
    )


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
