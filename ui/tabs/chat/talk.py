"""The conversation itself: questions, streamed answers, how they are drawn, and the exact prompt."""

import logging
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.chat.contract import Branch, ChatRequest, ChatTarget
from engine.config.sampling import SamplingConfig
from engine.errors import EngineError, RunError
from ui.backend.answering import Answering
from ui.backend.held_out import HeldOutPrompts, RowPrompt
from ui.components import Radio
from ui.errors import UNEXPECTED, shown_as_message, shown_in_place, trouble
from ui.page import STORAGE_KEY, Page
from ui.pick import pick_list, picked
from ui.tabs.chat.choice import ChatChoice
from ui.tabs.chat.sampling import SamplingPart, read_sampling
from ui.views.chat_state import loaded_words
from ui.views.conversation_file import as_json, open_conversation, read_conversation, render_links, save, turns_of
from ui.views.prompt import render_prompt
from ui.views.suggestions import render_suggestions, some_prompts
from ui.views.transcript import Answer, Turn, messages_of, render_transcript

_log = logging.getLogger(__name__)

SIDE_BY_SIDE, TUNED, BASE, SECOND, RUNS = "Side by side", "Tuned only", "Base only", "second", "runs"
_ASKED: dict[str, tuple[Branch, ...]] = {
    TUNED: ("tuned",),
    BASE: ("base",),
    SECOND: ("second",),
    RUNS: ("tuned", "second"),
}
_REDRAW_SECONDS = 0.08  # between two updates of the page while tokens come
_SUGGESTIONS = 3
_KEPT_CHARACTERS = 400_000  # of a conversation, in the browser


class TalkPart:
    """Lays out the conversation; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice, prompts: HeldOutPrompts) -> None:
        self._page = page
        self._choice = choice
        self._prompts = prompts
        self._answering = Answering(page.services.chat)
        self.transcript = pick_list(elem_id="transcript", autoscroll=True)
        with gr.Column(visible=False, elem_id="talk") as self.panel:
            self.branches = Radio(
                [SIDE_BY_SIDE, TUNED, BASE], value=SIDE_BY_SIDE, show_label=False, container=False,
                elem_id="chat-branches",
            )  # fmt: skip
            self.trouble = gr.HTML(elem_id="chat-trouble")
            self.suggestions = pick_list(elem_id="suggestions")
            self.question = gr.Textbox(
                label="Your question", lines=1, max_lines=8, placeholder="Ask something. Enter sends, Shift+Enter begins a new line.",
                elem_id="chat-question",
            )  # fmt: skip
            with gr.Row(elem_id="chat-buttons"):
                self.send = gr.Button("Send", variant="primary", scale=0, min_width=120, elem_id="chat-send")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="chat-stop")
                self.again = gr.Button("Answer again", scale=0, min_width=130, visible=False, elem_id="chat-again")
                self.clear = gr.Button("Clear", scale=0, min_width=100, visible=False, elem_id="chat-clear")
            self.sampling = SamplingPart()
            with gr.Accordion("The exact prompt", open=False, elem_id="chat-prompt") as self.prompt_fold:
                self.prompt = gr.HTML(elem_id="chat-prompt-text")
                self.show_prompt = gr.Button("Show it for what is typed now", size="sm", scale=0, min_width=240)
        with gr.Accordion("Keep or open a conversation", open=False, elem_id="chat-keep") as self.keep_fold:
            self.links = gr.HTML(elem_id="chat-links")
            self.open = gr.UploadButton(
                "Open a saved .json", file_types=[".json"], size="sm", scale=0, min_width=200, elem_id="chat-open"
            )
        self.turns = gr.State([])
        self._offered = gr.State([])  # row prompts that are suggested
        self._row = gr.State(None)  # the row prompt that was taken, until it is asked
        # A reload brings the conversation back; it never leaves this browser.
        self._kept = gr.BrowserState("", storage_key="loratory-conversation", secret=STORAGE_KEY)

    @property
    def _drawn(self) -> list[Any]:
        """What `ask` yields."""
        return [
            self.transcript, self.turns, self.question, self.trouble, self.send, self.stop, self.again, self.clear,
            self.suggestions, self._row, self._kept, self.links,
        ]  # fmt: skip

    def wire(self, loaded: Dependency) -> None:
        """Connect the events; `loaded` has just loaded something, which prompts are looked for."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        slow: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asking: dict[str, Any] = {
            "fn": self.ask,
            "inputs": [
                self.question, self.turns, self.branches, self._row, self.sampling.system, *self.sampling.inputs,
            ],
            "outputs": self._drawn,
            "concurrency_limit": None,
            **slow,
        }  # fmt: skip
        gr.on([self.send.click, self.question.submit], trigger_mode="once", **asking)
        taken_back = self.again.click(_take_back, self.turns, [self.turns, self.question, self._row], **quick)
        taken_back.then(**asking)
        self.stop.click(self._stop, None, None, **quick)
        cleared = self.clear.click(
            lambda: ("", [], "", gr.update(visible=False), gr.update(visible=False), "", ""),
            None,
            [self.transcript, self.turns, self.trouble, self.again, self.clear, self._kept, self.links],
            **quick,
        )
        cleared.then(render_suggestions, self._offered, self.suggestions, **quick)
        self.transcript.click(self._edit, self.turns, [self.turns, self.question, self._row, self.transcript], **quick)
        loaded.then(self._suggest, None, [self.suggestions, self._offered], **slow)
        self.suggestions.click(
            self._take, self._offered,
            [self.question, self._row, self.sampling.system, self.suggestions, self._offered], **quick,
        )  # fmt: skip
        gr.on(
            [self.prompt_fold.expand, self.show_prompt.click],
            shown_in_place(self._prompt),
            [self.question, self.turns, self.branches, self.sampling.system],
            self.prompt,
            **slow,
        )
        self.keep_fold.expand(self._links, [self.turns, self.sampling.system], self.links, **quick)
        opened = self.open.upload(
            shown_as_message(self._open), self.open, [self.turns, self.sampling.system, self.transcript], **slow
        )
        opened.then(self._keep, [self.turns, self.sampling.system], [self._kept, self.links], **quick).then(
            _shown_buttons, self.turns, [self.again, self.clear], **quick
        )
        self.sampling.wire()

    def restore_after(self, event: Dependency) -> None:
        """Bring back the conversation that this browser had, once a page is looked at anew."""
        event.then(
            self._restore,
            [self._kept, self.turns, self.sampling.system],
            [self.turns, self.sampling.system, self.transcript, self.again, self.clear],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    def branch_choices(self, branches: Sequence[Branch], target: ChatTarget | None) -> Any:
        """Who can be asked, once something is loaded."""
        if len(branches) < 2:
            return gr.update(visible=False)
        if "second" not in branches:
            return gr.update(choices=[SIDE_BY_SIDE, TUNED, BASE], value=SIDE_BY_SIDE, visible=True)
        names = self._choice.names(target)
        choices = [("Both runs", RUNS), ("All three", SIDE_BY_SIDE)]
        choices += [(f"{names['tuned']} only", TUNED), (f"{names['second']} only", SECOND), ("Base only", BASE)]
        return gr.update(choices=choices, value=RUNS, visible=True)

    def ask(
        self,
        question: str,
        turns: list[Turn],
        branches: str,
        row: RowPrompt | None,
        system: str,
        request: gr.Request,
        *sampling: Any,
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the answers of every branch that was asked; a chat answer is short work and lives with the page."""
        question, system = (question or "").strip(), system or ""
        if not question:
            yield (gr.skip(),) * len(self._drawn)
            return
        reference = row.reference if row is not None and row.question == question else ""
        before, drawn, problem = list(turns), 0.0, ""
        off, gone = gr.update(interactive=False), gr.update(visible=False)
        try:
            asked = self._branches(branches)
            turns = [*before, Turn(question, tuple(Answer(branch) for branch in asked), reference)]
            requests = _requests(turns, asked, system, read_sampling(sampling))
            begun = self._render(turns, writing=True), turns, "", "", off, gr.update(visible=True), gone, gone
            yield *begun, "", None, gr.skip(), gr.skip()
            for chunk in self._answering.chunks(requests, request.session_hash or ""):
                turns = [*before, turns[-1].with_chunk(chunk)]
                if chunk.done or time.monotonic() - drawn > _REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield self._render(turns, writing=True), *(gr.skip(),) * (len(self._drawn) - 1)
        except EngineError as error:
            problem = trouble(error)
        except Exception:
            _log.exception("an answer failed")
            problem = trouble(UNEXPECTED)
        answered = len(turns) > len(before) and any(answer.text or answer.done for answer in turns[-1].answers)
        # Where nothing was answered, the question goes back to where it was typed.
        turns = [*before, turns[-1].ended()] if answered else before
        typed, asked_row = (gr.skip(), gr.skip()) if answered else (question, row)
        on = gr.update(interactive=True)
        ended = self._render(turns), turns, typed, problem, on, gone, *_shown_buttons(turns)
        # All in one answer: whatever is pressed next, or a reload, finds the conversation kept.
        yield *ended, gr.skip(), asked_row, *self._keep(turns, system)

    def _render(self, turns: Sequence[Turn], *, writing: bool = False) -> str:
        state = self._page.services.chat.state
        context = state.model.context_length if state.model is not None else None
        return render_transcript(turns, self._choice.names(state.target), context, can_edit=not writing)

    def _branches(self, choice: str) -> tuple[Branch, ...]:
        model = self._page.services.chat.state.model
        if model is None:
            raise RunError("No model is loaded.", "Load a run or a model first.")
        found = tuple(branch for branch in _ASKED.get(choice, model.branches) if branch in model.branches)
        return found or model.branches

    def _stop(self, request: gr.Request) -> None:
        self._answering.stop(request.session_hash or "")

    def _edit(self, event: gr.EventData, turns: list[Turn]) -> tuple[Any, ...]:
        kind, _, number = picked(event).partition(":")
        if kind != "edit" or not number.isdigit() or int(number) >= len(turns):
            return (gr.skip(),) * 4
        turn, before = turns[int(number)], turns[: int(number)]
        return before, turn.question, _row_of(turn), self._render(before)

    def _suggest(self) -> tuple[str, list[RowPrompt]]:
        """Questions from the loaded run's own data, to begin with."""
        target = self._page.services.chat.state.target
        if target is None or target.tuned is None or not self._page.reader.exists(target.tuned.folder.name):
            return "", []
        config = self._page.reader.observe(target.tuned.folder.name).config
        if config is None:
            return "", []
        try:
            prompts = some_prompts(self._prompts.of_run(config), _SUGGESTIONS)
        except EngineError:
            return "", []  # the data may be gone; talking goes without it
        return render_suggestions(prompts), prompts

    def _take(self, event: gr.EventData, offered: list[RowPrompt]) -> tuple[Any, ...]:
        number = picked(event)
        if number == "others":
            others = self._other_prompts()
            return gr.skip(), gr.skip(), gr.skip(), render_suggestions(others), others
        if not number.isdigit() or int(number) >= len(offered):
            return (gr.skip(),) * 5
        prompt = offered[int(number)]
        return prompt.question, prompt, prompt.system or gr.skip(), gr.skip(), gr.skip()

    def _other_prompts(self) -> list[RowPrompt]:
        target = self._page.services.chat.state.target
        assert target is not None
        assert target.tuned is not None
        config = self._page.reader.observe(target.tuned.folder.name).config
        assert config is not None
        return some_prompts(self._prompts.of_run(config), _SUGGESTIONS, random.SystemRandom())

    def _prompt(self, question: str, turns: list[Turn], branches: str, system: str) -> str:
        branch = self._branches(branches)[-1]
        typed = (question or "").strip()
        # With nothing typed: what the newest answer was an answer to.
        asked = [*turns, Turn(typed)] if typed else [*turns[:-1], *(Turn(turn.question) for turn in turns[-1:])]
        messages = messages_of(asked, branch, system or "")
        if not messages:
            return '<p class="small">Type a question, and see here what the model would read.</p>'
        return render_prompt(self._page.services.chat.prompt(messages))

    def _saved(self, turns: list[Turn], system: str) -> Any:
        state = self._page.services.chat.state
        model = loaded_words(state.model) if state.model is not None else ""
        return save(turns, system or "", model, self._choice.names(state.target))

    def _links(self, turns: list[Turn], system: str) -> str:
        return render_links(self._saved(turns, system))

    def _keep(self, turns: list[Turn], system: str) -> tuple[Any, str]:
        saved = self._saved(turns, system)
        text = as_json(saved)
        return (text if turns and len(text) <= _KEPT_CHARACTERS else ""), render_links(saved)

    def _restore(self, kept: str, turns: list[Turn], system: str) -> tuple[Any, ...]:
        if turns or not kept:
            return (gr.skip(),) * 5
        try:
            saved = read_conversation(str(kept).encode())
        except EngineError:
            return (gr.skip(),) * 5  # another version's
        found = turns_of(saved)
        return found, system or saved.system, self._render(found), *_shown_buttons(found)

    def _open(self, path: str) -> tuple[Any, ...]:
        saved = open_conversation(Path(path))
        turns = turns_of(saved)
        return turns, saved.system, self._render(turns)


def _row_of(turn: Turn) -> RowPrompt | None:
    return RowPrompt(-1, turn.question, turn.reference) if turn.reference else None


def _take_back(turns: list[Turn]) -> tuple[Any, ...]:
    """The newest question, to be asked once more."""
    return (turns[:-1], turns[-1].question, _row_of(turns[-1])) if turns else ([], "", None)


def _shown_buttons(turns: Sequence[Turn]) -> tuple[Any, Any]:
    return gr.update(visible=bool(turns)), gr.update(visible=bool(turns))


def _requests(
    turns: Sequence[Turn], asked: tuple[Branch, ...], system: str, sampling: SamplingConfig
) -> list[ChatRequest]:
    """One request for all branches while they remember the same; afterwards each has a conversation of its own."""
    remembered = {branch: messages_of(turns, branch, system) for branch in asked}
    if len(set(remembered.values())) == 1:
        return [ChatRequest(messages=remembered[asked[0]], branches=asked, sampling=sampling, id=uuid.uuid4().hex)]
    return [
        ChatRequest(messages=messages, branches=(branch,), sampling=sampling, id=uuid.uuid4().hex)
        for branch, messages in remembered.items()
    ]
