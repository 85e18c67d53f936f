"""The conversation itself: questions, streamed answers, how they are drawn, and the exact prompt."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.events import Dependency
from pydantic import ValidationError

from engine.chat.contract import Branch, ChatChunk, ChatRequest
from engine.config.sampling import SamplingConfig
from engine.errors import ConfigError, EngineError, Problem, RunError
from ui.announced import Done, announced
from ui.errors import UNEXPECTED, shown_in_place, trouble
from ui.fields import component_of_field
from ui.page import Page
from ui.views.transcript import Answer, Turn, messages_of, render_transcript

_log = logging.getLogger(__name__)

SIDE_BY_SIDE, TUNED, BASE = "Side by side", "Tuned only", "Base only"
_SAMPLING = ("temperature", "top_p", "max_new_tokens", "seed", "top_k", "repetition_penalty")
_REDRAW_SECONDS = 0.08  # between two updates of the page while tokens come


class TalkPart:
    """Lays out the conversation; `wire` connects it."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._lock = threading.Lock()  # guards _under_way: stop comes from another thread than the answer
        self._under_way: dict[str, list[str]] = {}  # requests of each open page
        with gr.Column(visible=False, elem_id="talk") as self.panel:
            self.branches = gr.Radio(
                [SIDE_BY_SIDE, TUNED, BASE],
                value=SIDE_BY_SIDE,
                show_label=False,
                container=False,
                elem_id="chat-branches",
            )
            self.transcript = gr.HTML(elem_id="transcript", autoscroll=True)
            self.trouble = gr.HTML(elem_id="chat-trouble")
            self.question = gr.Textbox(
                label="Your question", lines=1, max_lines=8, placeholder="Ask something. Enter sends, Shift+Enter begins a new line.",
                elem_id="chat-question",
            )  # fmt: skip
            with gr.Row(elem_id="chat-buttons"):
                self.send = gr.Button("Send", variant="primary", scale=0, min_width=120, elem_id="chat-send")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="chat-stop")
                self.clear = gr.Button("Clear", scale=0, min_width=100, elem_id="chat-clear")
            with gr.Accordion("System prompt and sampling", open=False, elem_id="chat-settings"):
                self.system = gr.Textbox(
                    label="System prompt",
                    lines=2,
                    info="Stands before the conversation. Empty sends none.",
                    elem_id="chat-system",
                )
                fields = SamplingConfig.model_fields
                with gr.Row():
                    temperature = component_of_field(fields["temperature"], maximum=2.0, min_width=220)
                    top_p = component_of_field(fields["top_p"], maximum=1.0, min_width=220)
                with gr.Row():
                    longest = component_of_field(fields["max_new_tokens"], min_width=150)
                    seed = component_of_field(fields["seed"], min_width=150)
                    top_k = component_of_field(fields["top_k"], min_width=150)
                    penalty = component_of_field(fields["repetition_penalty"], min_width=150)
                self._sampling = [temperature, top_p, longest, seed, top_k, penalty]
            with gr.Accordion("The exact prompt", open=False, elem_id="chat-prompt") as self.prompt_fold:
                self.prompt = gr.HTML(elem_id="chat-prompt-text")
                self.again = gr.Button("Show it for what is typed now", size="sm", scale=0, min_width=240)
        self.turns = gr.State([])

    def wire(self) -> tuple[Dependency, Dependency]:
        """Connect the events; returns those of a question that was answered, and of a conversation that was cleared."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        asked = gr.on(
            [self.send.click, self.question.submit],
            self.ask,
            [self.question, self.turns, self.branches, self.system, *self._sampling],
            [self.transcript, self.turns, self.question, self.trouble, self.send, self.stop],
            trigger_mode="once",
            concurrency_limit=None,
            show_progress="hidden",
            api_visibility="private",
        )
        self.stop.click(self._stop, None, None, **quick)
        cleared = self.clear.click(lambda: ("", [], ""), None, [self.transcript, self.turns, self.trouble], **quick)
        gr.on(
            [self.prompt_fold.expand, self.again.click],
            shown_in_place(self._prompt),
            [self.question, self.turns, self.branches, self.system],
            self.prompt,
            show_progress="hidden",
            api_visibility="private",
        )
        return asked, cleared

    def ask(
        self, question: str, turns: list[Turn], branches: str, system: str, request: gr.Request, *sampling: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the answers of every branch that was asked; a chat answer is short work and lives with the page."""
        question, system = (question or "").strip(), system or ""
        if not question:
            yield (gr.skip(),) * 6
            return
        before, drawn, problem = list(turns), 0.0, ""
        try:
            asked = self._branches(branches)
            turns = [*before, Turn(question, tuple(Answer(branch) for branch in asked))]
            requests = _requests(turns, asked, system, read_sampling(sampling))
            yield render_transcript(turns), turns, "", "", gr.update(interactive=False), gr.update(visible=True)
            for chunk in self._chunks(requests, request.session_hash or ""):
                turns = [*before, turns[-1].with_chunk(chunk)]
                if chunk.done or time.monotonic() - drawn > _REDRAW_SECONDS:
                    drawn = time.monotonic()
                    yield render_transcript(turns), gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        except EngineError as error:
            problem = trouble(error)
        except Exception:
            _log.exception("an answer failed")
            problem = trouble(UNEXPECTED)
        answered = len(turns) > len(before) and any(answer.text or answer.done for answer in turns[-1].answers)
        # Where nothing was answered, the question goes back to where it was typed.
        turns = [*before, turns[-1].ended()] if answered else before
        typed = gr.skip() if answered else question
        yield render_transcript(turns), turns, typed, problem, gr.update(interactive=True), gr.update(visible=False)

    def _branches(self, choice: str) -> tuple[Branch, ...]:
        model = self._page.services.chat.state.model
        if model is None:
            raise RunError("No model is loaded.", "Load a run or a model first.")
        wanted: dict[str, tuple[Branch, ...]] = {TUNED: ("tuned",), BASE: ("base",)}
        found = tuple(branch for branch in wanted.get(choice, model.branches) if branch in model.branches)
        return found or model.branches

    def _chunks(self, requests: Sequence[ChatRequest], page_id: str) -> Iterator[ChatChunk]:
        """Chunks of all requests as they come; leaving early stops the answers."""
        session = self._page.services.chat
        with self._lock:
            self._under_way[page_id] = [request.id for request in requests]
        try:
            if len(requests) == 1:
                yield from session.stream(requests[0])
                return
            streams = [session.stream(one) for one in requests]

            def drain(say: Callable[[ChatChunk], None]) -> None:
                _drain_together(streams, say)

            for said in announced(drain):
                if not isinstance(said, Done):
                    yield said
        finally:
            with self._lock:
                self._under_way.pop(page_id, None)
            for request in requests:
                session.stop(request.id)

    def _stop(self, request: gr.Request) -> None:
        with self._lock:
            ids = list(self._under_way.get(request.session_hash or "", ()))
        for request_id in ids:
            self._page.services.chat.stop(request_id)

    def _prompt(self, question: str, turns: list[Turn], branches: str, system: str) -> str:
        branch = self._branches(branches)[-1]
        typed = (question or "").strip()
        # With nothing typed: what the newest answer was an answer to.
        asked = [*turns, Turn(typed)] if typed else [*turns[:-1], *(Turn(turn.question) for turn in turns[-1:])]
        messages = messages_of(asked, branch, system or "")
        if not messages:
            return '<p class="small">Type a question, and see here what the model would read.</p>'
        view = self._page.services.chat.prompt(messages)
        ids = " ".join(str(number) for number in view.ids)
        return (
            f'<p class="small">{len(view.ids):,} tokens, exactly as the model reads them.</p>'
            f'<pre class="log" tabindex="0" aria-label="Prompt text">{escape(view.text)}</pre>'
            f'<p class="small">As ids:</p><pre class="log" tabindex="0" aria-label="Prompt ids">{ids}</pre>'
        )


def read_sampling(values: Sequence[Any]) -> SamplingConfig:
    """What the folded settings say; what is left empty has its default.

    Raises:
        ConfigError: Lists every setting that is out of bounds.
    """
    given = {name: value for name, value in zip(_SAMPLING, values, strict=True) if value is not None}
    try:
        return SamplingConfig.model_validate(given)
    except ValidationError as error:
        problems = [Problem(str(item["loc"][0]), f"{item['input']!r}: {item['msg']}.") for item in error.errors()]
        raise ConfigError(problems) from None


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


def _drain_together(streams: Sequence[Iterator[ChatChunk]], say: Callable[[ChatChunk], None]) -> None:
    """Follow several iterators at once, each in a thread; the first error ends it, after all have ended."""
    errors: list[BaseException] = []

    def drain(stream: Iterator[ChatChunk]) -> None:
        try:
            for chunk in stream:
                say(chunk)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=drain, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
