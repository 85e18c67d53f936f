"""The conversation: questions, streamed answers, their settings, and the exact prompt."""

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.chat.contract import Branch, ChatRequest, ChatTarget
from loratory.engine.config.results import SamplingConfig
from loratory.engine.errors import EngineError, RunError
from loratory.engine.evaluation.votes import Votes
from loratory.ui.backend.background import as_engine_error
from loratory.ui.backend.conversation import (
    BRANCH_WORDS,
    LARGEST_FILE_BYTES,
    Answer,
    AnswerStream,
    HeldOutPrompts,
    QuestionSettings,
    RowPrompt,
    SavedConversation,
    Turn,
    ballot,
    choose,
    in_context,
    messages_of,
    read_conversation,
    turns_to_leave_out,
)
from loratory.ui.components import (
    HIDDEN,
    QUICK,
    SLOW,
    UNCHANGED,
    Updates,
    browser_state,
    clear_error_after,
    pick_list,
    picked_value,
    shown_as_message,
    shown_in_place,
)
from loratory.ui.gradio_internals import Radio
from loratory.ui.page import Page
from loratory.ui.tabs.chat_choice import ChatChoice, SamplingPart, read_sampling, with_seed
from loratory.ui.views import chat as view
from loratory.ui.views.html import error_box, plural, small

# Values of the choice of branches: the names of those that answer.
SIDE_BY_SIDE, TUNED, BASE, SECOND, RUNS = "base tuned second", "tuned", "base", "second", "tuned second"
BASE_AND_TUNED, BASE_AND_SECOND = "base tuned", "base second"
_OF_TUNED = [("Side by side", SIDE_BY_SIDE), ("Tuned only", TUNED), ("Base only", BASE)]
_IN_ORDER_OF_TRAINING: tuple[Branch, ...] = ("base", "second", "tuned")
_REDRAW_SECONDS = 0.08  # between two updates of the page while tokens come
_KEPT_CHARACTERS = 400_000  # of a conversation, in the browser


class TalkPart:
    """Lays out the conversation; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice, prompts: HeldOutPrompts) -> None:
        self.page = page
        self._choice = choice
        self._prompts = prompts
        self._stream = AnswerStream(page.services.chat)
        self._votes = Votes(page.services.home)
        self.transcript = pick_list(more="newest", elem_id="transcript")
        self.suggestions = pick_list(elem_id="suggestions")
        with gr.Column(visible=False, elem_id="composer", elem_classes="stays") as self.composer:
            self.trouble = gr.HTML(elem_id="chat-trouble")
            with gr.Row(equal_height=True, elem_id="ask-row"):
                self.question = gr.Textbox(
                    label="Your question", lines=1, max_lines=8, placeholder="Ask a question. Shift+Enter adds a line.",
                    elem_id="chat-question", container=False, min_width=180,
                )  # fmt: skip
                self.send = gr.Button("Send", variant="primary", scale=0, min_width=90, elem_id="chat-send")
                self.stop = gr.Button("Stop", scale=0, min_width=90, visible=False, elem_id="chat-stop")
            with gr.Row(elem_id="chat-buttons"):
                self.branches = Radio(
                    _OF_TUNED, value=SIDE_BY_SIDE, show_label=False, container=False,
                    elem_id="chat-branches",
                )  # fmt: skip
                self.again = gr.Button("Regenerate", size="sm", scale=0, visible=False, elem_id="chat-again")
                self.cancel_button = gr.Button(
                    "Cancel edit", size="sm", scale=0, visible=False, elem_id="chat-cancel-edit"
                )
                self.clear = gr.Button("Clear", size="sm", scale=0, visible=False, elem_id="chat-clear")
        with gr.Column(visible=False, elem_id="talk") as self.panel:
            self.sampling = SamplingPart()
            with gr.Accordion("Exact prompt", open=False, elem_id="chat-prompt") as self.prompt_fold:
                self.prompt = gr.HTML(elem_id="chat-prompt-text")
                self.show_prompt = gr.Button("Show current prompt", size="sm", scale=0, min_width=240)
        with gr.Accordion("Save or open conversation", open=False, elem_id="chat-keep") as self.keep_fold:
            self.links = gr.HTML(elem_id="chat-links")
            self.open = gr.UploadButton(
                "Open a saved .json", file_types=[".json"], size="sm", scale=0, min_width=200, elem_id="chat-open",
                visible=not page.services.home.is_guest,
            )  # fmt: skip
        self.turns = gr.State([])
        self.before_edit = gr.State([])  # the whole conversation, while one of its questions is edited
        self.suggested_prompts = gr.State([])  # row prompts that are suggested
        self.row = gr.State(None)  # the row prompt that was picked, until it is asked
        # A reload restores the conversation; it never leaves this browser.
        self.browser_copy = browser_state("", "conversation")
        self._conversation = [self.turns, self.sampling.system, self.transcript, self.again, self.clear]
        # What `stream_answers` changes.
        self._answer_outputs = [
            self.transcript, self.turns, self.question, self.trouble, self.send, self.stop, self.again, self.clear,
            self.suggestions, self.row, self.browser_copy, self.links, self.cancel_button, self.before_edit,
        ]  # fmt: skip

    def wire(self, load_event: Dependency) -> None:
        """Connect the events; after `load_event`, prompts of the loaded run are suggested."""
        system = self.sampling.system
        asking: dict[str, Any] = {
            "fn": self.stream_answers,
            "inputs": [self.question, self.turns, self.branches, self.row, system, *self.sampling.inputs],
            "outputs": self._answer_outputs,
            "concurrency_limit": None,
            **SLOW,
        }
        question_outputs = [self.turns, self.question, self.row]
        prompting: dict[str, Any] = {
            "fn": shown_in_place(self.exact_prompt),
            "inputs": [self.question, self.turns, self.branches, system],
            "outputs": self.prompt,
            **SLOW,
        }
        renewing = {**prompting, "fn": shown_in_place(self.renew_prompt), "inputs": [self.prompt, *prompting["inputs"]]}
        again = self.again.click(_take_back, self.turns, question_outputs, **QUICK)
        for answer_event in (
            gr.on([self.send.click, self.question.submit], trigger_mode="once", **asking),
            again.then(trigger_mode="once", **asking),
        ):
            # Not with the last answer: until the event is over, Gradio ignores a click.
            answer_event.then(lambda: gr.update(interactive=True), None, self.send, **QUICK).then(**renewing)
        self.stop.click(self.stop_answers, None, None, **QUICK)
        clear_event = self.clear.click(
            lambda: {
                **self._turn_updates([]), **dict.fromkeys((self.trouble, self.browser_copy, self.links), ""), **self._end_edit(),
            }, None,
            [self.cancel_button, self.before_edit, self.transcript, self.turns, self.trouble, self.again, self.clear, self.browser_copy, self.links], **QUICK,
        )  # fmt: skip
        clear_event.then(view.render_suggestions, self.suggested_prompts, self.suggestions, **QUICK)
        clear_event.then(**renewing)
        editing = [*question_outputs, self.transcript, self.again, self.clear, self.cancel_button, self.before_edit]
        self.transcript.click(self.edit, [self.turns, self.before_edit], editing, **QUICK).then(**renewing)
        self.transcript.click(self.vote, self.turns, [self.transcript, self.trouble], **QUICK)
        self.cancel_button.click(self.cancel_edit, self.before_edit, editing, **QUICK).then(**renewing)
        self.branches.input(**renewing)
        load_event.then(self.suggest, None, [self.suggestions, self.suggested_prompts], **SLOW)
        self.suggestions.click(
            self.take_suggestion,
            self.suggested_prompts,
            [self.question, self.row, system, self.suggestions, self.suggested_prompts],
            **QUICK,
        )
        gr.on([self.prompt_fold.expand, self.show_prompt.click], **prompting)
        self.prompt_fold.collapse(None, None, self.prompt, js="() => ''", **QUICK)
        self.keep_fold.expand(
            lambda *args: view.render_links(self._conversation_of(*args)), [self.turns, system], self.links, **QUICK
        )
        open_event = self.open.upload(shown_as_message(self.open_file), self.open, self._conversation, **SLOW)
        open_event.then(self.save, [self.turns, system], [self.browser_copy, self.links], **QUICK)
        self.sampling.wire()
        clear_error_after(self.trouble, [system, *self.sampling.inputs], typed_box=self.question)

    def restore_after(self, event: Dependency) -> None:
        """Restore this browser's conversation after an event."""
        event.then(self.restore, [self.browser_copy, self.turns, self.sampling.system], self._conversation, **QUICK)

    def branch_choices(self, branches: Sequence[Branch], target: ChatTarget | None) -> Any:
        """Return the choice of branches for the loaded target."""
        if len(branches) < 2:
            return HIDDEN
        if "second" not in branches:
            return gr.update(choices=_OF_TUNED, value=SIDE_BY_SIDE, visible=True)
        names = self._choice.names(target)
        if self._choice.compares_with_start(target):
            second, tuned = (names[branch].partition(":")[0] for branch in ("second", "tuned"))
            choices = [("All three", SIDE_BY_SIDE), (f"{second} and {tuned.lower()}", RUNS)]
            choices += [(f"Base and {tuned.lower()}", BASE_AND_TUNED), (f"Base and {second.lower()}", BASE_AND_SECOND)]
            choices += [(f"{tuned} only", TUNED)]
            return gr.update(choices=choices, value=SIDE_BY_SIDE, visible=True)
        choices = [("Both runs", RUNS), ("All three", SIDE_BY_SIDE)]
        choices += [(f"{names['tuned']} only", TUNED), (f"{names['second']} only", SECOND), ("Base only", BASE)]
        return gr.update(choices=choices, value=RUNS, visible=True)

    def stream_answers(
        self, question: str, turns: list[Turn], branches: str, row: RowPrompt | None, system: str,
        request: gr.Request, *sampling: Any,
    ) -> Iterator[Updates]:  # fmt: skip
        """Stream the answers of the chosen branches; closing the page stops them."""
        question, system = (question or "").strip(), system or ""
        if not question:
            yield UNCHANGED
            return
        reference = row.reference if row is not None and row.question == question else ""
        before, redrawn, problem = list(turns), 0.0, ""
        try:
            chosen_branches, settings = self._branches(branches), with_seed(read_sampling(sampling))
            models = self._choice.answer_models()
            left_out = turns_to_leave_out(before, chosen_branches, models)
            question_settings = QuestionSettings(models, settings, system, left_out)
            answers = tuple(Answer(branch) for branch in chosen_branches)
            turns = [*before, Turn(question, answers, reference, question_settings)]
            requests = _requests(turns, chosen_branches, system, settings)
            yield {
                **dict.fromkeys((self.question, self.trouble, self.suggestions), ""),
                **dict.fromkeys((self.again, self.clear), HIDDEN),
                self.transcript: self.render(turns, writing=True),
                self.turns: turns,
                self.send: gr.update(interactive=False),
                self.stop: gr.update(visible=True),
                self.row: None,
                **self._end_edit(),
            }
            for chunk in self._stream.chunks(requests, request.session_hash or "", request.headers):
                turns = [*before, turns[-1].with_chunk(chunk)]
                if chunk.done or time.monotonic() - redrawn > _REDRAW_SECONDS:
                    redrawn = time.monotonic()
                    yield {self.transcript: self.render(turns, writing=True)}
        except Exception as error:
            problem = error_box(as_engine_error(error))
        has_answer = len(turns) > len(before) and any(answer.text or answer.done for answer in turns[-1].answers)
        # Without an answer, the question returns to its box.
        turns = [*before, turns[-1].end()] if has_answer else before
        if has_answer and (loaded := self._choice.loaded_run(self.page.services.chat.state.target)) is not None:
            with contextlib.suppress(OSError):
                loaded.run.folder.chat_mark.touch()
        # In one answer, so the next action or a reload finds the conversation saved.
        yield {
            **self._turn_updates(turns),
            **self.save(turns, system),
            **({} if has_answer else {self.question: question, self.row: row}),
            self.trouble: problem,
            self.stop: HIDDEN,
        }

    def _turn_updates(self, turns: list[Turn]) -> Updates:
        button = gr.update(visible=bool(turns))
        return {self.turns: turns, self.transcript: self.render(turns), self.again: button, self.clear: button}

    def render(self, turns: Sequence[Turn], *, writing: bool = False) -> str:
        state = self.page.services.chat.state
        context = state.model.context_length if state.model is not None else None
        can_vote = not writing and self._votes.may_save
        ballots = {number: ballot(self._votes, turns, number) for number in range(len(turns) if can_vote else 0)}
        names = self._choice.names(state.target)
        return view.render_transcript(turns, names, context, can_edit=not writing, ballots=ballots)

    def _branches(self, choice: str) -> tuple[Branch, ...]:
        model = self.page.services.chat.state.model
        if model is None:
            raise RunError("No model is loaded.", "Load a run or a model first.")
        available = tuple(branch for branch in model.branches if branch in (choice or "").split())
        if self._choice.compares_with_start(self.page.services.chat.state.target):
            available = tuple(sorted(available, key=_IN_ORDER_OF_TRAINING.index))
        return available or model.branches

    def stop_answers(self, request: gr.Request) -> None:
        self._stream.stop(request.session_hash or "")

    def _end_edit(self) -> Updates:
        return {self.cancel_button: HIDDEN, self.before_edit: []}

    def cancel_edit(self, before_edit: list[Turn]) -> Updates:
        """Restore the conversation from before the edit of a question."""
        if not before_edit:
            return self._end_edit()
        return {**self._turn_updates(before_edit), self.question: "", self.row: None, **self._end_edit()}

    def edit(self, event: gr.EventData, turns: list[Turn], before_edit: list[Turn]) -> Updates:
        kind, _, number = picked_value(event).partition(":")
        if kind != "edit" or not number.isdigit() or int(number) >= len(turns):
            return UNCHANGED
        turn, before = turns[int(number)], turns[: int(number)]
        question_updates = {self.turns: before, self.question: turn.question, self.row: _row_of(turn)}
        edit_updates = {self.cancel_button: gr.update(visible=True), self.before_edit: before_edit or turns}
        return {**question_updates, **self._turn_updates(before), **edit_updates}

    def vote(self, event: gr.EventData, turns: list[Turn]) -> Updates:
        kind, _, rest = picked_value(event).partition(":")
        number, _, branch = rest.partition(":")
        if kind != "vote" or not number.isdecimal() or int(number) >= len(turns):
            return UNCHANGED
        choice = next((candidate for candidate in ballot(self._votes, turns, int(number)) if candidate == branch), None)
        if choice is None:
            return UNCHANGED
        try:
            choose(self._votes, turns, int(number), choice, self.page.services.runs.owner)
            count = plural(len(self._votes.read()), "vote")
            message = small(
                f"{count} in total. See “Votes” above to review them or use them as a dataset.", role="status"
            )
        except EngineError as error:
            message = error_box(error)
        return {self.transcript: self.render(turns), self.trouble: message}

    def suggest(self, draw: random.Random | None = None) -> Updates:
        config = self._choice.config_of(self.page.services.chat.state.target)
        prompts: list[RowPrompt] = []
        with contextlib.suppress(EngineError):  # the data may be gone; chat works without it
            prompts = view.some_prompts(self._prompts.of_run(config), 3, draw) if config is not None else []
        return {self.suggestions: view.render_suggestions(prompts), self.suggested_prompts: prompts}

    def take_suggestion(self, event: gr.EventData, prompts: list[RowPrompt]) -> Updates:
        number = picked_value(event)
        if number == "others":
            return self.suggest(random.SystemRandom())
        if not number.isdigit() or int(number) >= len(prompts):
            return UNCHANGED
        prompt = prompts[int(number)]
        system = {self.sampling.system: prompt.system} if prompt.system else {}
        return {self.question: prompt.question, self.row: prompt, **system}

    def renew_prompt(self, current: str, *inputs: Any) -> str:
        """Return the prompt as it is now, if one is shown."""
        return self.exact_prompt(*inputs) if current else ""

    def exact_prompt(self, question: str, turns: list[Turn], branches: str, system: str) -> str:
        chosen = self._branches(branches)
        text = (question or "").strip()
        if text:
            left_out = turns_to_leave_out(turns, chosen, self._choice.answer_models())
            next_turns = [*(turn for number, turn in enumerate(turns) if number not in left_out), Turn(text)]
        else:  # the prompt of the newest answer
            next_turns = [*in_context(turns)[:-1], *(Turn(turn.question) for turn in turns[-1:])]
        messages = messages_of(next_turns, chosen[-1], system or "")
        if not next_turns:
            return small("Type a question to see its prompt.")
        names = {**BRANCH_WORDS, **self._choice.names(self.page.services.chat.state.target)}
        return view.render_prompt(self.page.services.chat.prompt(messages), names[chosen[-1]])

    def _conversation_of(self, turns: list[Turn], system: str) -> SavedConversation:
        state = self.page.services.chat.state
        model = view.loaded_words(state.model) if state.model is not None else ""
        names = self._choice.names(state.target)
        return SavedConversation(model=model, names=names, system=system or "", turns=tuple(turns))

    def save(self, turns: list[Turn], system: str) -> Updates:
        conversation = self._conversation_of(turns, system)
        text = conversation.model_dump_json(indent=2)
        browser_copy = text if turns and len(text) <= _KEPT_CHARACTERS else ""
        return {self.browser_copy: browser_copy, self.links: view.render_links(conversation)}

    def restore(self, browser_copy: str, turns: list[Turn], system: str) -> Updates:
        if turns or not browser_copy:
            return UNCHANGED
        try:
            conversation = read_conversation(str(browser_copy).encode())
        except EngineError:
            return UNCHANGED  # of another version
        return self._show_conversation(conversation, system)

    def open_file(self, path: str) -> Updates:
        with self.page.services.transfers.require_uploaded(Path(path)).open("rb") as file:
            return self._show_conversation(read_conversation(file.read(LARGEST_FILE_BYTES + 1)))

    def _show_conversation(self, conversation: SavedConversation, system: str = "") -> Updates:
        return {
            **self._turn_updates([turn.end() for turn in conversation.turns]),
            self.sampling.system: system or conversation.system,
        }


def _row_of(turn: Turn) -> RowPrompt | None:
    return RowPrompt(-1, turn.question, turn.reference) if turn.reference else None


def _take_back(turns: list[Turn]) -> tuple[Any, ...]:
    return (turns[:-1], turns[-1].question, _row_of(turns[-1])) if turns else ([], "", None)


def _requests(
    turns: Sequence[Turn], branches: tuple[Branch, ...], system: str, sampling: SamplingConfig
) -> list[ChatRequest]:
    """Return one request for all branches while their histories are equal, else one for each."""
    histories = {branch: messages_of(turns, branch, system) for branch in branches}
    groups = [branches] if len(set(histories.values())) == 1 else [(branch,) for branch in branches]
    return [
        ChatRequest(messages=histories[group[0]], branches=group, sampling=sampling, id=uuid.uuid4().hex)
        for group in groups
    ]
