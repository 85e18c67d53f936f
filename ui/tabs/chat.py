"""Chat: load a run or a model, and let base and tuned answer side by side."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.components.base import Component

from engine.chat.contract import ChatTarget, LoadedModel, LoadProgress
from engine.chat.target import list_checkpoints
from engine.config.model import ModelConfig
from engine.errors import EngineError, RunError
from ui.announced import Done, announced
from ui.errors import shown_in_place, trouble
from ui.page import Page
from ui.pick import pick_list, picked
from ui.run_reader import can_be_talked_to
from ui.tabs.talk import TalkPart
from ui.views.chat_state import render_chat_state, render_loading
from ui.views.run_choice import run_choices
from ui.views.suggestions import first_questions, render_suggestions

A_MODEL = "a-model"
FINAL = "final"
_LEAD = (
    '<h2>Talk to it</h2><p class="lead">Base and tuned answer the same question side by side, from one copy of the '
    "weights: what differs is what the run taught.</p>"
)
_REFRESH_SECONDS = 3.0
_SUGGESTIONS = 3
_SUGGESTION_ROWS = 40  # how far into the dataset a suggestion is looked for


class ChatTab:
    """Lays out the Chat tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        gr.HTML(_LEAD)
        with gr.Row(equal_height=False, elem_id="chat-choice"):
            self.run = gr.Dropdown(
                [("A model as it is", A_MODEL)],
                value=A_MODEL,
                label="Talk to",
                scale=3,
                min_width=260,
                elem_id="chat-run",
            )
            self.checkpoint = gr.Dropdown(
                [("the final result", FINAL)], value=FINAL, label="Which state of it", scale=2, min_width=180,
                visible=False, elem_id="chat-checkpoint",
            )  # fmt: skip
            self.model = gr.Textbox(
                label="Model", placeholder="smollm2-135m-instruct, owner/name, a folder …", scale=2, min_width=220,
                max_lines=1, elem_id="chat-model",
            )  # fmt: skip
        with gr.Row(elem_id="chat-load-row"):
            self.load = gr.Button(
                "Load", variant="primary", interactive=False, scale=0, min_width=130, elem_id="chat-load"
            )
            self.unload = gr.Button("Unload", scale=0, min_width=110, visible=False, elem_id="chat-unload")
        self.state = gr.HTML(render_chat_state(page.services.chat.state), elem_id="chat-state")
        self.suggestions = pick_list(elem_id="suggestions")
        self.talk = TalkPart(page)
        self._asked = gr.State([])
        self._last_state = gr.State("")
        self.timer = gr.Timer(_REFRESH_SECONDS, active=False)

    def wire(self) -> None:
        """Connect the events."""
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        gr.on(page.elsewhere(self._tab), lambda: gr.update(active=False), None, self.timer, **quick)
        listed = self._tab.select(
            self._list, [page.chosen_run, self.run, self.model], [self.run, self.checkpoint, self.model], **quick
        )
        awake = listed.then(lambda: (gr.update(active=True), ""), None, [self.timer, self._last_state], **quick)
        awake.then(self._look, self._last_state, self._looked, **quick)
        self.timer.tick(self._look, self._last_state, self._looked, trigger_mode="once", **quick)
        self.run.input(self._choose, self.run, [self.checkpoint, self.model, page.chosen_run], **quick)
        loaded = gr.on(
            [self.load.click, self.model.submit],
            self._load,
            [self.run, self.checkpoint, self.model],
            [self.state, self.load, self.unload],
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        looked = loaded.then(self._look, self._last_state, self._looked, **quick)
        looked.then(
            self._suggest, self.run, [self.suggestions, self._asked], show_progress="hidden", api_visibility="private"
        )
        unloaded = self.unload.click(
            shown_in_place(self._unload), None, self.state, show_progress="hidden", api_visibility="private"
        )
        unloaded.then(self._look, self._last_state, self._looked, **quick)
        self.suggestions.click(_question_of, self._asked, self.talk.question, **quick)
        asked, cleared = self.talk.wire()
        asked.then(lambda: "", None, self.suggestions, **quick)
        cleared.then(render_suggestions, self._asked, self.suggestions, **quick)

    @property
    def _looked(self) -> list[Component]:
        return [self.state, self._last_state, self.load, self.unload, self.talk.panel, self.talk.branches]

    def _list(self, chosen_run: str, current: str, typed: str | None) -> tuple[Any, Any, Any]:
        """Runs that can be talked to; the one that is being looked at is proposed."""
        reader = self._page.reader
        rows = reader.offered(can_be_talked_to)
        choices = [*run_choices(rows), ("A model as it is", A_MODEL)]
        ids = [value for _, value in choices]
        if current == A_MODEL and typed:
            return gr.update(choices=choices), gr.skip(), gr.skip()
        proposed = next((run for run in (chosen_run, current) if run in ids and run != A_MODEL), ids[0])
        checkpoint, model, _ = self._choose(proposed)
        return gr.update(choices=choices, value=proposed), checkpoint, model

    def _choose(self, run_id: str) -> tuple[Any, Any, Any]:
        if run_id == A_MODEL or not self._page.reader.exists(run_id):
            return gr.update(visible=False), gr.update(visible=True), gr.skip()
        observed = self._page.reader.observe(run_id)
        names = [(f"checkpoint {name}", name) for name in list_checkpoints(observed.run.folder.path)]
        choices = ([("the final result", FINAL)] if observed.has_adapter else []) + names
        value = choices[0][1] if choices else FINAL
        return gr.update(choices=choices, value=value, visible=len(choices) > 1), gr.update(visible=False), run_id

    def _target(self, run_id: str, checkpoint: str | None, model: str) -> ChatTarget:
        if run_id == A_MODEL:
            name = (model or "").strip()
            if not name or len(name) > 400:
                raise RunError("No model is named.", "Type a catalogue name, a Hub id or a folder.")
            return ChatTarget.of_model(ModelConfig(id=name))
        run = self._page.services.runs.get(run_id)
        return ChatTarget.of_run(run.folder.path, checkpoint if checkpoint not in (None, FINAL) else None)

    def _load(self, run_id: str, checkpoint: str | None, model: str) -> Iterator[tuple[Any, Any, Any]]:
        busy = gr.update(value="Loading …", interactive=False)
        session = self._page.services.chat
        try:
            target = self._target(run_id, checkpoint, model)
            yield render_loading(None), busy, gr.update(value="Stop loading", visible=True)

            def load(say: Callable[[LoadProgress], None]) -> LoadedModel:
                return session.load(target, say)

            for said in announced(load):
                if not isinstance(said, Done):
                    yield render_loading(said), busy, gr.skip()
            yield render_chat_state(session.state), gr.update(value="Load", interactive=True), gr.skip()
        except EngineError as error:
            yield trouble(error), gr.update(value="Load", interactive=True), gr.update(visible=False)

    def _unload(self) -> str:
        self._page.services.chat.unload()
        return render_chat_state(self._page.services.chat.state)

    def _look(self, last: str) -> tuple[Any, ...]:
        """What is loaded now, by whomever; nothing is sent where nothing has changed."""
        state = self._page.services.chat.state
        html = render_chat_state(state)
        if html == last:
            return (gr.skip(),) * len(self._looked)
        ready = state.model is not None
        loading = state.phase == "loading"
        several = ready and len(state.model.branches) > 1 if state.model is not None else False
        return (
            # An error of a load that failed stays until something is loaded.
            html if ready or loading or last else gr.skip(),
            html,
            gr.update(value="Loading …" if loading else "Load", interactive=not loading),
            gr.update(value="Stop loading" if loading else "Unload", visible=ready or loading),
            gr.update(visible=ready),
            gr.update(visible=several),
        )

    def _suggest(self, run_id: str) -> tuple[str, list[str]]:
        """Questions from the run's own data, to begin with."""
        if run_id == A_MODEL or not self._page.reader.exists(run_id):
            return "", []
        config = self._page.reader.observe(run_id).config
        if config is None or self._page.services.chat.state.model is None:
            return "", []
        try:
            page = self._page.services.inspector.preview(
                config.dataset, None, config.training.max_length, count=_SUGGESTION_ROWS
            )
        except EngineError:
            return "", []  # the data may be gone; talking goes without it
        questions = first_questions(page, _SUGGESTIONS)
        return render_suggestions(questions), questions


def _question_of(event: gr.EventData, asked: list[str]) -> Any:
    number = picked(event)
    return asked[int(number)] if number.isdigit() and int(number) < len(asked) else gr.skip()
