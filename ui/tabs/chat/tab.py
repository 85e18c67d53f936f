"""Chat: choose a run or a model; talk to it, judge it blindly, or measure it."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.components.base import Component

from engine.chat.contract import ChatState, LoadedModel, LoadProgress
from engine.errors import EngineError
from ui.backend.held_out import HeldOutPrompts
from ui.backend.streaming import Done, announced
from ui.components import Radio
from ui.errors import shown_in_place, trouble
from ui.page import Page
from ui.tabs.chat.blind_test import BlindTestPart
from ui.tabs.chat.choice import ChatChoice, Chosen
from ui.tabs.chat.evaluate import EvaluatePart
from ui.tabs.chat.judging import Judging
from ui.tabs.chat.talk import TalkPart
from ui.views.chat_state import render_chat_state, render_loading

TALK, BLIND_TEST, MEASURE = "Talk", "Blind test", "Measure"
_LEAD = (
    '<h2>Talk to it, judge it, measure it</h2><p class="lead">Base and tuned answer the same question side by side, from '
    "one copy of the weights: what differs is what the run taught.</p>"
)
_REFRESH_SECONDS = 3.0


class ChatTab:
    """Lays out the Chat tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        prompts = HeldOutPrompts(page.services.inspector)
        gr.HTML(_LEAD)
        self.mode = Radio(
            [TALK, BLIND_TEST, MEASURE], value=TALK, show_label=False, container=False, elem_id="chat-mode"
        )
        self.choice = ChatChoice(page)
        with gr.Column(elem_id="chat-loading") as self.loading:
            with gr.Row(elem_id="chat-load-row"):
                self.load = gr.Button(
                    "Load", variant="primary", interactive=False, scale=0, min_width=130, elem_id="chat-load"
                )
                self.unload = gr.Button("Unload", scale=0, min_width=110, visible=False, elem_id="chat-unload")
            self.state = gr.HTML(self._render_state(page.services.chat.state), elem_id="chat-state")
        with gr.Column(elem_id="chat-talk") as self.talk_mode:
            self.talk = TalkPart(page, self.choice, prompts)
        with gr.Column(visible=False, elem_id="chat-blind") as self.blind_mode:
            self.blind = BlindTestPart(page, self.choice, prompts)
        with gr.Column(visible=False, elem_id="chat-measure") as self.measure_mode:
            self.evaluate = EvaluatePart(page, self.choice)
        self._last_state = gr.State("")
        self.timer = gr.Timer(_REFRESH_SECONDS, active=False)

    def wire(self) -> None:
        """Connect the events."""
        page, choice = self._page, self.choice
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        left = gr.on(page.elsewhere(self._tab), lambda: gr.update(active=False), None, self.timer, **quick)
        self.evaluate.rest_after(left)
        listed = self._tab.select(
            choice.offer, [page.chosen_run, choice.run, choice.model], [choice.run, *choice.depending], **quick
        )
        awake = listed.then(
            lambda last: (gr.update(active=True), _loaded(last)),
            self._last_state,
            [self.timer, self._last_state],
            **quick,
        )
        seen = awake.then(self._look, self._looking, self._looked, **quick)
        self.talk.restore_after(seen)
        self.timer.tick(self._look, self._looking, self._looked, trigger_mode="once", **quick)
        chosen = choice.run.input(
            lambda run_id: (*choice.choose(run_id), run_id if page.reader.exists(run_id) else gr.skip()),
            choice.run,
            [*choice.depending, page.chosen_run],
            **quick,
        )
        loaded = gr.on(
            [self.load.click, choice.model.submit, choice.folder.submit],
            self._load,
            choice.inputs,
            [self.state, self.load, self.unload],
            trigger_mode="once",
            show_progress="hidden",
            api_visibility="private",
        )
        looked = loaded.then(self._look, self._looking, self._looked, **quick)
        unloaded = self.unload.click(
            shown_in_place(self._unload), None, self.state, show_progress="hidden", api_visibility="private"
        )
        unloaded.then(self._look, self._looking, self._looked, **quick)
        self.talk.wire(looked)
        self.blind.wire(self.talk)
        modes = [self.loading, choice.beside, self.talk_mode, self.blind_mode, self.measure_mode]
        switched = self.mode.input(_switch, self.mode, modes, **quick)
        self.evaluate.wire(awake, switched, chosen, self.mode)
        self.blind.show_count_after(switched)

    @property
    def _looking(self) -> list[Component]:
        return [self._last_state, self.blind.judging]

    @property
    def _looked(self) -> list[Component]:
        talk, blind = self.talk, self.blind
        return [
            self.state,
            self._last_state,
            self.load,
            self.unload,
            talk.panel,
            talk.branches,
            blind.panel,
            blind.absent,
            *blind.kept,
        ]

    def _load(self, *chosen: Any) -> Iterator[tuple[Any, Any, Any]]:
        busy = gr.update(value="Loading …", interactive=False)
        session = self._page.services.chat
        try:
            target = self.choice.target(Chosen(*chosen))
            yield render_loading(None), busy, gr.update(value="Stop loading", visible=True)

            def load(say: Callable[[LoadProgress], None]) -> LoadedModel:
                return session.load(target, say)

            for said in announced(load):
                if not isinstance(said, Done):
                    yield render_loading(said), busy, gr.skip()
            loaded = gr.update(value="Load", interactive=True), gr.update(value="Unload", visible=True)
            yield self._render_state(session.state), *loaded
        except EngineError as error:
            yield trouble(error), gr.update(value="Load", interactive=True), gr.update(visible=False)

    def _unload(self) -> str:
        self._page.services.chat.unload()
        return self._render_state(self._page.services.chat.state)

    def _render_state(self, state: ChatState) -> str:
        return render_chat_state(state, self.choice.results(state.target))

    def _look(self, last: str, judging: Judging) -> tuple[Any, ...]:
        """What is loaded now, by whomever; nothing is sent where nothing has changed."""
        state = self._page.services.chat.state
        html = self._render_state(state)
        ready = state.model is not None
        # Two runs may have one name.
        loaded = state.target.model_dump_json() if ready and state.target is not None else ""
        seen = f"{loaded}\n{html}"
        if seen == last:
            return (gr.skip(),) * len(self._looked)
        loading = state.phase == "loading"
        branches = state.model.branches if state.model is not None else ()
        return (
            # An error of a load that failed stays until something is loaded.
            html if ready or loading or last else gr.skip(),
            seen,
            gr.update(value="Loading …" if loading else "Load", interactive=not loading),
            gr.update(value="Stop loading" if loading else "Unload", visible=ready or loading),
            gr.update(visible=ready),
            # Who is asked stays as it was chosen while the same is loaded.
            gr.skip() if loaded and loaded == _loaded(last) else self.talk.branch_choices(branches, state.target),
            gr.update(visible=len(branches) > 1),
            self.blind.why_absent(branches),
            *self.blind.keep(judging),
        )


def _loaded(seen: str) -> str:
    """What was loaded when the tab was last drawn; all but that is drawn anew when the tab is opened."""
    return seen.partition("\n")[0]


def _switch(mode: str) -> tuple[Any, ...]:
    """What belongs to each of the three; measuring loads its own copy, so nothing of loading is shown there."""
    talking = mode != MEASURE
    shown = (talking, talking, mode == TALK, mode == BLIND_TEST, mode == MEASURE)
    return tuple(gr.update(visible=visible) for visible in shown)
