"""The conversation: questions, streamed answers, their settings, versions and exact prompts."""

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency

from loratory.engine.chat.contract import Branch, ChatRequest
from loratory.engine.config.results import SamplingConfig
from loratory.engine.data.conversation import ImageRef, Message
from loratory.engine.errors import EngineError, RunError
from loratory.engine.evaluation.votes import Votes
from loratory.engine.runs.provenance import library_versions
from loratory.ui import components as ui
from loratory.ui.backend import conversation as talk
from loratory.ui.backend.background import as_engine_error
from loratory.ui.backend.turn_votes import ballot, choose
from loratory.ui.gradio_internals import Radio
from loratory.ui.page import Page
from loratory.ui.tabs.chat_choice import ChatChoice
from loratory.ui.tabs.question_images import QuestionImages
from loratory.ui.tabs.question_settings import (
    OF_TUNED,
    SIDE_BY_SIDE,
    PromptSetsPart,
    SamplingPart,
    read_sampling,
    with_seed,
)
from loratory.ui.views import chat as view
from loratory.ui.views.html import error_box, plural, small

_IN_ORDER_OF_TRAINING: tuple[Branch, ...] = ("base", "second", "tuned")
_REDRAW_SECONDS = 0.08  # between two updates of the page while tokens come
_KEPT_CHARACTERS = 400_000  # of a conversation, in the browser


class TalkPart:
    """Lays out the conversation; `wire` connects it."""

    def __init__(self, page: Page, choice: ChatChoice, prompts: talk.HeldOutPrompts) -> None:
        self.page = page
        self._choice = choice
        self._prompts = prompts
        self._stream = talk.AnswerStream(page.services.chat)
        self._votes = Votes(page.services.home)
        self._images = QuestionImages(page.services)
        self._pages_with_set: set[str] = set()  # that stream a prompt set, until its end or a stop
        with gr.Column(visible=False, elem_id="talk") as self.panel:
            self.sampling = SamplingPart()
        with gr.Row(elem_id="chat-files"):
            self.links = gr.HTML(elem_id="chat-links")
            self.open = gr.UploadButton(
                "Open a saved .json", file_types=[".json", "image"], file_count="multiple", size="sm", scale=0,
                min_width=160, elem_id="chat-open",
                visible=not page.services.home.is_guest,
            )  # fmt: skip
        self.transcript = ui.pick_list(more=("newest", "copy", "pictures"), elem_id="transcript")
        self.suggestions = ui.pick_list(elem_id="suggestions")
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
                    OF_TUNED, value=SIDE_BY_SIDE, show_label=False, container=False,
                    elem_id="chat-branches",
                )  # fmt: skip
                self.cancel_button = gr.Button("Cancel", size="sm", scale=0, visible=False, elem_id="chat-cancel-edit")
                self.clear = gr.Button("Clear", size="sm", scale=0, visible=False, elem_id="chat-clear")
            self.turns = gr.State([])
            self.sets = PromptSetsPart(page.services.home, self.turns)
        self.before_edit = gr.State([])  # the whole conversation, until another version of it is asked for
        self.suggested_prompts = gr.State([])  # row prompts that are suggested
        self.row = gr.State(None)  # the row prompt that was picked, until it is asked; has the images of the question
        # A reload restores the conversation; it never leaves this browser.
        self.browser_copy = ui.browser_state("", "conversation")
        # What the handlers of the conversation change.
        self._outputs = [
            self.transcript, self.turns, self.question, self.trouble, self.send, self.stop, self.clear, self.suggestions,
            self.row, self.browser_copy, self.links, self.cancel_button, self.before_edit, self.sampling.system,
        ]  # fmt: skip

    def wire(self, load_events: Sequence[Dependency]) -> None:
        """Connect the events; after a load, prompts of the loaded run are suggested."""
        system = self.sampling.system
        settings = [self.branches, system, *self.sampling.inputs]
        conversation = [self.turns, self.before_edit]
        asking = {"outputs": self._outputs, "concurrency_limit": None, **ui.ONCE}
        inputs = [self.question, *conversation, self.row, *settings]
        for answer_event in (
            gr.on([self.send.click, self.question.submit], self.stream_answers, inputs, **asking),
            self.transcript.click(self.act, [*conversation, *settings], **asking),
            self.sets.list.click(self.stream_set, [*conversation, *settings], **asking),
        ):
            # Not with the last answer: until the event is over, Gradio ignores a click.
            answer_event.then(lambda: gr.update(interactive=True), None, self.send, **ui.QUICK)
        self.stop.click(self.stop_answers, None, None, **ui.QUICK)
        clear_event = self.clear.click(
            lambda: {**self._turn_updates([]), **self.save([], ""), self.trouble: "", **self._end_edit()}, None,
            self._outputs, **ui.QUICK,
        )  # fmt: skip
        clear_event.then(self.render_suggestions, [self.suggested_prompts, self.row], self.suggestions, **ui.QUICK)
        self.cancel_button.click(self.cancel_edit, self.before_edit, self._outputs, **ui.QUICK)
        for load_event in load_events:
            load_event.then(self.suggest, self.row, [self.suggestions, self.suggested_prompts], **ui.SLOW)
        suggestion_outputs = [self.question, self.row, system, self.suggestions, self.suggested_prompts]
        suggestion_inputs = [self.suggested_prompts, self.row]
        self.suggestions.click(self.take_suggestion, suggestion_inputs, suggestion_outputs, **ui.QUICK)
        self.open.upload(ui.shown_as_message(self.open_file), [self.open, self.row], self._outputs, **ui.SLOW)
        self.sampling.wire()
        ui.clear_error_after(self.trouble, [system, *self.sampling.inputs], typed_box=self.question)

    def restore_after(self, event: Dependency) -> None:
        """Restore this browser's conversation after an event."""
        event.then(self.restore, [self.browser_copy, self.turns, self.sampling.system], self._outputs, **ui.QUICK)

    def stream_answers(
        self, question: str, turns: list[talk.Turn], before_edit: list[talk.Turn], row: talk.RowPrompt | None, branches: str,
        system: str, request: gr.Request, *sampling: Any,
    ) -> Iterator[ui.Updates]:  # fmt: skip
        """Stream the answers of the chosen branches; closing the page stops them.

        After the first turns of `before_edit`, the question begins another version of it.
        """
        question, system, page_id = (question or "").strip(), system or "", request.session_hash or ""
        images = row.images if row is not None else ()
        row = row if row is not None and talk.without_marks(row.question) == question else None
        is_alone, reference = (row.is_alone, row.reference) if row is not None else (False, "")
        if not question or self._stream.is_busy(page_id) or (page_id in self._pages_with_set and not is_alone):
            yield ui.UNCHANGED
            return
        before, redrawn, problem = list(turns), 0.0, ""
        versions = talk.versions_of(before_edit, len(before))
        try:
            chosen_branches, settings = self._branches(branches), with_seed(read_sampling(sampling))
            models = self._choice.answer_models()
            left_out = () if is_alone else talk.turns_to_leave_out(before, chosen_branches, models)
            question_settings = talk.QuestionSettings(models, settings, system, left_out, is_alone)
            answers = tuple(talk.Answer(branch) for branch in chosen_branches)
            with_marks = row.question if row is not None else question
            new_turn = talk.Turn(with_marks, answers, reference, question_settings, versions, len(versions), images)
            turns = [*before, new_turn]
            requests = _requests(turns, chosen_branches, system, settings)
            with self._stream.chunks(requests, page_id, request.headers) as chunks:
                yield {
                    **dict.fromkeys((self.question, self.trouble, self.links), ""),
                    self.suggestions: self._images.render(()),
                    self.clear: ui.HIDDEN,
                    self.transcript: self.render(turns, writing=True),
                    self.turns: turns,
                    self.send: gr.update(interactive=False),
                    self.stop: gr.update(visible=True),
                    self.row: None,
                    **self._end_edit(),
                }
                for chunk in chunks:
                    turns = [*before, turns[-1].with_chunk(chunk)]
                    if chunk.done or time.monotonic() - redrawn > _REDRAW_SECONDS:
                        redrawn = time.monotonic()
                        yield {self.transcript: self.render(turns, writing=True)}
        except Exception as error:
            problem = error_box(as_engine_error(error))
        has_answer = len(turns) > len(before) and any(answer.text or answer.done for answer in turns[-1].answers)
        # Without an answer, the question returns to its box, and what it was to replace can be restored.
        turns = [*before, turns[-1].end()] if has_answer else before
        if has_answer and (loaded := self._choice.loaded_run(self.page.services.chat.state.target)) is not None:
            with contextlib.suppress(OSError):
                loaded.run.folder.chat_mark.touch()
        is_edit = bool(before_edit) and not has_answer
        # In one answer, so the next action or a reload finds the conversation saved.
        yield {
            **self._turn_updates(turns),
            **self.save(turns, system),
            **({} if has_answer else {self.question: question, **self._attach(images, row)}),
            **({self.before_edit: before_edit, self.cancel_button: gr.update(visible=True)} if is_edit else {}),
            self.trouble: problem,
            self.stop: ui.HIDDEN,
        }

    def stream_set(
        self, event: gr.EventData, turns: list[talk.Turn], before_edit: list[talk.Turn], branches: str, system: str,
        request: gr.Request, *sampling: Any,
    ) -> Iterator[ui.Updates]:  # fmt: skip
        """Stream the answers to each prompt of the picked set, until one fails or is stopped."""
        page_id, prompts = request.session_hash or "", self.sets.prompts_to_ask(event)
        if not prompts or page_id in self._pages_with_set or self._stream.is_busy(page_id):
            yield ui.UNCHANGED
            return
        self._pages_with_set.add(page_id)
        try:
            for number, row in enumerate(prompts, 1):
                count, inputs = len(turns), (before_edit, row, branches, system, request, *sampling)
                progress = small(f"Prompt {number} of {len(prompts)}", role="status")
                for updates in self.stream_answers(talk.without_marks(row.question), turns, *inputs):
                    turns, before_edit = updates.get(self.turns, turns), updates.get(self.before_edit, before_edit)
                    updates = {**updates, self.stop: ui.visible_if(True), self.clear: ui.HIDDEN}
                    yield {**updates, self.trouble: updates.get(self.trouble) or progress}
                has_failed = len(turns) == count or any(a.finish_reason == "stopped" for a in turns[-1].answers)
                if has_failed or page_id not in self._pages_with_set:
                    break
        finally:
            self._pages_with_set.discard(page_id)
        yield {**self._turn_updates(turns), self.stop: ui.HIDDEN}

    def _turn_updates(self, turns: list[talk.Turn]) -> ui.Updates:
        return {self.turns: turns, self.transcript: self.render(turns), self.clear: ui.visible_if(bool(turns))}

    def render(
        self, turns: Sequence[talk.Turn], below: Mapping[int, str] | None = None, *, writing: bool = False
    ) -> str:
        state = self.page.services.chat.state
        context = state.model.context_length if state.model is not None else None
        can_vote = not writing and self._votes.may_save
        ballots = {number: ballot(self._votes, turns, number) for number in range(len(turns) if can_vote else 0)}
        names = self._choice.names(state.target)
        return view.render_transcript(
            turns,
            names,
            context,
            can_edit=not writing,
            ballots=ballots,
            below=below or {},
            picture=self._images.picture,
        )

    def _branches(self, choice: str) -> tuple[Branch, ...]:
        model = self.page.services.chat.state.model
        if model is None:
            raise RunError("No model is loaded.", "Load a run or a model first.")
        available = tuple(branch for branch in model.branches if branch in (choice or "").split())
        if self._choice.compares_with_start(self.page.services.chat.state.target):
            available = tuple(sorted(available, key=_IN_ORDER_OF_TRAINING.index))
        return available or model.branches

    def stop_answers(self, request: gr.Request) -> None:
        self._pages_with_set.discard(request.session_hash or "")
        self._stream.stop(request.session_hash or "")

    def _end_edit(self) -> ui.Updates:
        return {self.cancel_button: ui.HIDDEN, self.before_edit: []}

    def cancel_edit(self, before_edit: list[talk.Turn]) -> ui.Updates:
        """Restore the conversation from before the edit of a question."""
        if not before_edit:
            return self._end_edit()
        return {**self._turn_updates(before_edit), self.question: "", **self._attach(()), **self._end_edit()}

    def act(
        self, event: gr.EventData, turns: list[talk.Turn], before_edit: list[talk.Turn], branches: str, system: str,
        request: gr.Request, *sampling: Any,
    ) -> Iterator[ui.Updates]:  # fmt: skip
        """Do what was picked in a turn."""
        kind, _, rest = ui.picked_value(event).partition(":")
        digits, _, value = rest.partition(":")
        number, whole = next((n for n in range(len(turns)) if str(n) == digits), -1), before_edit or turns
        if number < 0:
            yield ui.UNCHANGED
            return
        turn, versions = turns[number], talk.versions_of(whole, number)
        if kind == "retry":
            inputs = (turns[:number], whole, _row_of(turn), branches, system, request, *sampling)
            yield from self.stream_answers(talk.without_marks(turn.question), *inputs)
        elif kind == "edit":
            question = {self.question: talk.without_marks(turn.question), **self._attach(turn.images, _row_of(turn))}
            yield {**self._rewind(turns[:number], whole), **question}
        elif kind == "branch":
            yield self._rewind(turns[: number + 1], whole)
        elif kind == "version" and value in map(str, range(len(versions))):
            turns = talk.with_version(whole, number, int(value))
            yield {**self._turn_updates(turns), **self.save(turns, system), **self._end_edit()}
        elif kind == "prompt":
            prompt = ui.shown_in_place(self.exact_prompt)(turns, number, system)
            fold = f'<details class="exact" open><summary>Exact prompt</summary>{prompt}</details>'
            yield {self.transcript: self.render(turns, {number: fold})}
        else:
            yield self._vote(turns, number, value) if kind == "vote" else ui.UNCHANGED

    def _rewind(self, turns: list[talk.Turn], whole: list[talk.Turn]) -> ui.Updates:
        """Return the updates that show the first turns of a conversation, which the next question continues."""
        edit_updates = {self.before_edit: whole, self.cancel_button: gr.update(visible=True)}
        return {**self._turn_updates(turns), **edit_updates, self.question: "", **self._attach(())}

    def _vote(self, turns: list[talk.Turn], number: int, branch: str) -> ui.Updates:
        choice = next((candidate for candidate in ballot(self._votes, turns, number) if candidate == branch), None)
        if choice is None:
            return ui.UNCHANGED
        try:
            choose(self._votes, turns, number, choice, self.page.services.runs.owner)
            count = plural(len(self._votes.read()), "vote")
            where = "See “Votes” above to review them or use them as a dataset."
            message = small(f"{count} in total. {where}", role="status")
        except EngineError as error:
            message = error_box(error)
        return {self.transcript: self.render(turns), self.trouble: message}

    def _attach(self, images: Sequence[ImageRef], row: talk.RowPrompt | None = None) -> ui.Updates:
        """Return the updates that make images those of the next question, which a row may have."""
        html = self._images.render(images)
        return {self.row: talk.with_images(row, images), **({self.suggestions: html} if html else {})}

    def render_suggestions(self, prompts: Sequence[talk.RowPrompt], row: talk.RowPrompt | None) -> str:
        own = self._images.render(row.images if row is not None else ())
        return own + view.render_suggestions(prompts, self._images.picture)

    def suggest(self, row: talk.RowPrompt | None = None, draw: random.Random | None = None) -> ui.Updates:
        config = self._choice.config_of(self.page.services.chat.state.target)
        prompts: list[talk.RowPrompt] = []
        with contextlib.suppress(EngineError):  # the data may be gone; chat works without it
            prompts = view.some_prompts(self._prompts.of_run(config), 3, draw) if config is not None else []
        return {self.suggestions: self.render_suggestions(prompts, row), self.suggested_prompts: prompts}

    def take_suggestion(
        self, event: gr.EventData, prompts: list[talk.RowPrompt], row: talk.RowPrompt | None = None
    ) -> ui.Updates:
        number = ui.picked_value(event)
        if number == "others":
            return self.suggest(row, random.SystemRandom())
        images = row.images if row is not None else ()
        if number.startswith("remove:"):
            remaining = tuple(image for index, image in enumerate(images) if f"remove:{index}" != number)
            row = row._replace(images=remaining) if row is not None else None
            return {self.row: row, self.suggestions: self.render_suggestions(prompts, row)}
        if not number.isdigit() or int(number) >= len(prompts):
            return ui.UNCHANGED
        prompt = prompts[int(number)]
        system = {self.sampling.system: prompt.system} if prompt.system else {}
        updates = {self.question: talk.without_marks(prompt.question), self.row: prompt, **system}
        if prompt.images or images:
            updates[self.suggestions] = self.render_suggestions(prompts, prompt)
        return updates

    def exact_prompt(self, turns: list[talk.Turn], number: int, system: str) -> str:
        """Return the prompts of a turn as its models read them; models with equal histories have one.

        Raises:
            RunError: If another model is loaded by now, which may have another chat template.
        """
        turn, loaded = turns[number], self._choice.answer_models()
        names = turn.names(talk.BRANCH_WORDS)
        for model in turn.models:
            if not any(model.has_weights_of(other) for other in loaded.values()):
                raise RunError(f"{model.name} of this answer is not loaded.", "Load it again to see its prompt.")
        read = [*turns[:number], replace(turn, answers=())]
        readers: dict[tuple[Message, ...], list[str]] = {}
        for answer in turn.answers:
            messages = talk.messages_of(
                read, answer.branch, turn.settings.system if turn.settings is not None else system
            )
            readers.setdefault(messages, []).append(names[answer.branch])
        prompt_of = self.page.services.chat.prompt
        return "".join(view.render_prompt(prompt_of(messages), models) for messages, models in readers.items())

    def save(self, turns: list[talk.Turn], system: str) -> ui.Updates:
        state = self.page.services.chat.state
        model = view.loaded_words(state.model) if state.model is not None else ""
        run = next((author.run for turn in reversed(turns) for author in turn.models if author.run), "")
        conversation = talk.SavedConversation(
            model=model, names=self._choice.names(state.target), system=system or "", turns=tuple(turns),
            title=self._choice.title_of(run), libraries=library_versions(),
        )  # fmt: skip
        text = conversation.model_dump_json(indent=2)
        browser_copy = text if turns and len(text) <= _KEPT_CHARACTERS else ""
        return {self.browser_copy: browser_copy, self.links: view.render_links(conversation)}

    def restore(self, browser_copy: str, turns: list[talk.Turn], system: str) -> ui.Updates:
        if turns or not browser_copy:
            return ui.UNCHANGED
        with contextlib.suppress(EngineError):  # of another version
            return self._show_conversation(talk.read_conversation(str(browser_copy).encode()), system)
        return ui.UNCHANGED

    def open_file(self, paths: str | Sequence[str], row: talk.RowPrompt | None = None) -> ui.Updates:
        """Open a saved conversation, or add images to the next question."""
        paths = [paths] if isinstance(paths, str) else paths
        path = Path(paths[0])
        if path.suffix.lower() != ".json":
            return self._attach(self._images.add(row.images if row is not None else (), paths), row)
        with self.page.services.transfers.require_uploaded(path).open("rb") as file:
            return self._show_conversation(talk.read_conversation(file.read(talk.LARGEST_FILE_BYTES + 1)))

    def _show_conversation(self, conversation: talk.SavedConversation, system: str = "") -> ui.Updates:
        turns, system = [turn.end() for turn in conversation.turns], system or conversation.system
        return {**self._turn_updates(turns), **self.save(turns, system), self.sampling.system: system}


def _row_of(turn: talk.Turn) -> talk.RowPrompt | None:
    is_alone = turn.settings is not None and turn.settings.is_alone
    if not (turn.reference or is_alone or turn.images):
        return None
    return talk.RowPrompt(-1, turn.question, turn.reference, is_alone=is_alone, images=turn.images)


def _requests(
    turns: Sequence[talk.Turn], branches: tuple[Branch, ...], system: str, sampling: SamplingConfig
) -> list[ChatRequest]:
    """Return one request for all branches while their histories are equal, else one for each."""
    histories = {branch: talk.messages_of(turns, branch, system) for branch in branches}
    groups = [branches] if len(set(histories.values())) == 1 else [(branch,) for branch in branches]
    return [
        ChatRequest(messages=histories[group[0]], branches=group, sampling=sampling, id=uuid.uuid4().hex)
        for group in groups
    ]
