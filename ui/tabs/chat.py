"""Chat: choose a run or a model; chat with it, judge it blindly, or measure it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gradio as gr
from gradio.components.base import Component
from gradio.events import Dependency

from loratory.engine.chat.contract import ChatState, JobProgress
from loratory.engine.errors import EngineError
from loratory.ui import components as ui
from loratory.ui.backend.conversation import HeldOutPrompts, run_streaming
from loratory.ui.gradio_internals import Radio, enclosing_tab
from loratory.ui.page import Page
from loratory.ui.tabs.blind_test import BlindTestPart, Judging
from loratory.ui.tabs.chat_choice import ChatChoice, Chosen
from loratory.ui.tabs.conversation import TalkPart
from loratory.ui.tabs.evaluate import EvaluatePart, VotesPart
from loratory.ui.tabs.question_settings import branch_choices
from loratory.ui.views.chat import render_chat_state, render_loading
from loratory.ui.views.html import error_box

CHOOSE = "Choose a model"
TALK, BLIND_TEST, MEASURE, VOTES = "Chat", "Blind test", "Measure", "Votes"
_MODES = {"chat": TALK, "look": TALK, "blind": BLIND_TEST, "measure": MEASURE}  # by what is wanted of a result


class ChatTab:
    """Lays out the Chat tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._tab = enclosing_tab()
        prompts = HeldOutPrompts(page.services.inspector)
        gr.HTML('<h2 class="unseen">Chat and evaluation</h2>')
        self.mode = Radio(
            [TALK, BLIND_TEST, MEASURE, VOTES], value=TALK, show_label=False, container=False, elem_id="chat-mode"
        )
        with gr.Accordion(CHOOSE, elem_id="chat-model-fold") as self.fold:
            self.choice = ChatChoice(page)
            with gr.Row(elem_id="chat-load-row") as self.load_row:
                self.load = gr.Button(
                    "Load", variant="primary", interactive=False, scale=0, min_width=130, elem_id="chat-load"
                )
                self.unload = gr.Button("Unload", scale=0, min_width=150, visible=False, elem_id="chat-unload")
        self.state = gr.HTML(self._render_state(page.services.chat.state), elem_id="chat-state")
        with gr.Column(elem_id="chat-talk") as self.talk_mode:
            self.talk = TalkPart(page, self.choice, prompts)
        with gr.Column(visible=False, elem_id="chat-blind") as self.blind_mode:
            self.blind = BlindTestPart(page, self.choice, prompts)
        with gr.Column(visible=False, elem_id="chat-measure") as self.measure_mode:
            self.evaluate = EvaluatePart(page, self.choice)
        with gr.Column(visible=False, elem_id="chat-votes") as self.votes_mode:
            self.votes = VotesPart(page)
        self._modes = [
            self.fold, self.load_row, self.state, self.choice.comparing, self.talk_mode, self.blind_mode, self.measure_mode,
            self.votes_mode,
        ]  # fmt: skip
        self.last_state = gr.State("")  # the loaded target, a line break, and the state line on the page
        self.timer = gr.Timer(3.0, active=False)
        self._refresh_outputs: list[Component] = [
            self.state, self.last_state, self.fold, self.load, self.unload, self.talk.composer, self.talk.panel,
            self.talk.suggestions, self.talk.branches, self.blind.panel, self.blind.absent, self.blind.sides, self.talk.trouble, *self.blind.clear_outputs,
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the events."""
        page, choice = self.page, self.choice
        refreshing: dict[str, Any] = {
            "fn": self.refresh, "inputs": [self.last_state, self.blind.judging], "outputs": self._refresh_outputs, **ui.QUICK,
        }  # fmt: skip
        page.pause_timers(self._tab, self.timer)
        offering = [page.chosen_run, choice.run, choice.model]
        offer_event = self._tab.select(choice.offer, offering, choice.outputs, **ui.QUICK)
        wakes, last = [self.timer, self.last_state], self.last_state
        awake = offer_event.then(lambda state: (gr.update(active=True), _target_of(state)), last, wakes, **ui.QUICK)
        self.talk.restore_after(awake.then(**refreshing))
        self.timer.tick(**refreshing, trigger_mode="once")
        chosen = choice.run.input(self.choose, choice.run, [*choice.outputs, page.chosen_run], **ui.QUICK)
        ui.clear_error_after(self.state, choice.inputs)
        load_event = gr.on(
            [self.load.click, choice.model.submit, choice.folder.submit], self.load_chosen, choice.inputs,
            [self.state, self.load, self.unload, self.fold], trigger_mode="once", **ui.SLOW,
        )  # fmt: skip
        propose_event, wanted_event = self._open_after(page.wants_result.change, refreshing)
        self.unload.click(ui.shown_in_place(self.unload_model), None, self.state, **ui.SLOW).then(**refreshing)
        self.talk.wire([load_event.then(**refreshing), wanted_event])
        self.blind.wire(self.talk)
        mode_event = self.mode.input(self.switch_mode, self.mode, self._modes, **ui.QUICK)
        for event in (mode_event, propose_event):
            event.then(self.leave_blind_test, self.mode, None, **ui.QUICK)
        self.evaluate.wire([awake.then, mode_event.then, propose_event.then], chosen)
        self.votes.wire(mode_event)
        self.blind.show_tally_after(mode_event)

    def _open_after(self, trigger: Any, refreshing: Mapping[str, Any]) -> tuple[Dependency, Dependency]:
        """Choose and load a run that another tab opens here, and focus the question; return the events of choice and load."""
        page, choice, modes = self.page, self.choice, [self.mode, *self._modes]
        load_inputs, load_outputs = [page.wants_result, *choice.inputs], [self.state, self.load, self.unload, self.fold]
        outputs = [*choice.outputs, *modes]
        proposal: Dependency = trigger(self.propose, [page.wants_result, page.chosen_run], outputs, **ui.QUICK)
        load_event = proposal.then(self.load_wanted, load_inputs, load_outputs, **ui.SLOW).then(**refreshing)
        load_event.then(None, page.wants_result, None, js=ui.script("to_question"), **ui.QUICK)
        return proposal, load_event

    def propose(self, wants_result: str, run_id: str) -> ui.Updates:
        mode = _MODES.get(wants_result.partition(" ")[0])
        if mode is None:
            return ui.UNCHANGED
        return {**self.choice.offer(run_id, "", "", wants_result.split()[1]), self.mode: mode, **self.switch_mode(mode)}

    def load_wanted(self, wants_result: str, *chosen: Any) -> Iterator[ui.Updates]:
        if wants_result.startswith(("chat", "blind")):
            yield from self.load_chosen(*chosen)
        else:  # a generator without a yield would clear its outputs
            yield ui.UNCHANGED

    def choose(self, run_id: str) -> ui.Updates:
        run_update = {self.page.chosen_run: run_id} if self.page.reader.exists(run_id) else {}
        return {**self.choice.choose(run_id), **run_update}

    def load_chosen(self, *chosen: Any) -> Iterator[ui.Updates]:
        busy = gr.update(value="Loading …", interactive=False)
        session = self.page.services.chat
        try:
            target = self.choice.target(Chosen(*chosen))
            stop = gr.update(value="Stop loading", visible=True)
            yield {self.state: render_loading(None), self.load: busy, self.unload: stop}

            def load(report: Callable[[JobProgress], None]) -> None:
                session.load(target, report)

            for progress in run_streaming(load):
                yield {self.state: render_loading(progress)}
            state, fold = self._render_state(session.state), gr.update(open=False)  # also of the same model as before
        except EngineError as error:
            now = session.state
            state, fold = self._render_state(now) if now.failure is error else error_box(error), ui.UNCHANGED
        unload = gr.update(value="Unload", visible=session.state.model is not None)
        load_button = gr.update(value="Load", interactive=True)
        yield {self.state: state, self.load: load_button, self.unload: unload, self.fold: fold}

    def unload_model(self) -> str:
        self.page.services.chat.unload()
        return self._render_state(self.page.services.chat.state)

    def _render_state(self, state: ChatState) -> str:
        return render_chat_state(state, self.choice.results(state.target))

    def refresh(self, last_state: str, judging: Judging) -> ui.Updates:
        """Return the loaded model, from any page; no updates if nothing changed."""
        state = self.page.services.chat.state
        html = self._render_state(state)
        ready, loading = state.model is not None, state.phase == "loading"
        # Two runs may have one name.
        target = state.target.model_dump_json() if ready and state.target is not None else ""
        now = f"{target}\n{html}"
        if now == last_state:
            return ui.UNCHANGED
        branches = state.model.branches if state.model is not None else ()
        updates: ui.Updates = {
            self.last_state: now,
            self.load: gr.update(value="Loading …" if loading else "Load", interactive=not loading),
            self.unload: gr.update(value="Stop loading" if loading else "Unload", visible=ready or loading),
            self.talk.composer: ui.visible_if(ready),
            self.talk.panel: ui.visible_if(ready),
            self.blind.panel: ui.visible_if(len(branches) > 1),
            self.blind.absent: self.blind.why_absent(branches),
            **self.blind.clear_outdated(judging),
        }
        # A failed load is not part of the session's state: its error stays until the next load.
        if ready or loading or last_state:
            updates[self.state] = html
        # The chosen branches stay while the same is loaded.
        if not target or target != _target_of(last_state):
            # What is loaded needs no choice: its conversation gets the room.
            updates[self.fold] = gr.update(open=not ready, label=self.choice.line(state) or CHOOSE)
            updates[self.talk.trouble] = ""
            if not ready:
                updates[self.talk.suggestions] = ""
            updates[self.talk.branches] = branch_choices(self.choice, branches, state.target)
            updates[self.blind.sides] = self.blind.sides_to_choose(state.target, branches)
        return updates

    def switch_mode(self, mode: str) -> ui.Updates:
        """Show the parts of a mode; Measure loads its own copy and Votes needs no model, so they hide loading."""
        chatting = ui.visible_if(mode in (TALK, BLIND_TEST))
        line = self.choice.line(self.page.services.chat.state) if mode != MEASURE else ""
        return {
            self.fold: gr.update(visible=mode != VOTES, open=not line, label=line or CHOOSE),
            self.load_row: chatting,
            self.state: chatting,
            self.choice.comparing: chatting,
            self.talk_mode: ui.visible_if(mode == TALK),
            self.blind_mode: ui.visible_if(mode == BLIND_TEST),
            self.measure_mode: ui.visible_if(mode == MEASURE),
            self.votes_mode: ui.visible_if(mode == VOTES),
        }

    def leave_blind_test(self, mode: str, request: gr.Request) -> None:
        """Stop the pair that a verdict began once another mode is in front: it would hold the device unseen."""
        if mode != BLIND_TEST:
            self.blind.stop_answers(request)


def _target_of(last_state: str) -> str:
    """Return the target that was loaded when the tab was last drawn."""
    return last_state.partition("\n")[0]
