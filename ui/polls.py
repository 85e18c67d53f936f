"""Polls: an open page asks for news every few seconds, without an event of Gradio; what follows background work with them.

An event costs the server milliseconds however little it sends, and twenty pages that follow a run ask ten times a second.
What only an event can change is polled by a `gr.Timer` whose handler returns nothing while its stamp is the same.
"""

import functools
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec

import anyio.to_thread
import gradio as gr
from gradio.components.base import Component
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from loratory.ui.backend.background import BackgroundWork, Work, as_engine_error, stamp
from loratory.ui.components import ONCE, QUICK, Updates, clear_error_after, live_html, shared_script
from loratory.ui.views.html import error_box, work_status

# Between two looks: of each page at the header and the bar, and at a run that is followed.
HEADER_SECONDS, RUN_SECONDS = 5.0, 3.0
_PATH = "/gradio_api/component_server"


def poll(
    answer: Callable[[str, str], str | None],
    seconds: float,
    *,
    question: str = "",
    elem_id: str,
    while_hidden: bool = False,
) -> gr.HTML:
    """Return an invisible part of the page that asks `answer` again and again, while what lies around it is in sight.

    Its value is the question; an empty value stops it. Its `submit` event fires if an answer requests it.

    Args:
        answer: Called in a thread with the question and the stamp of the newest answer, "" at first, both of which a
            client can forge; returns what `poll_answer` makes, or None while nothing is new.
        while_hidden: Whether it also asks, less often, while another tab of the browser is in front.
    """

    def query(values: list[Any]) -> str | None:
        question, last_stamp = values
        return answer(str(question), str(last_stamp))

    return gr.HTML(
        question, elem_id=elem_id, elem_classes="live", js_on_load=shared_script("live"), server_functions=[query],
        html_template=f'<i data-seconds="{seconds}"{" data-while-hidden=1" if while_hidden else ""}></i>',
    )  # fmt: skip


def poll_answer(stamp: str, values: Mapping[str, str], *, submit: bool = False) -> str:
    """Return the answer to a poll: new values by `elem_id`, of components made by `live_html` or `chart`.

    The stamp, which comes back with the next question, names what the page has seen. `submit` also fires that event, for
    what only an event can change.
    """
    return json.dumps({"stamp": stamp, "values": values, "submit": submit}, separators=(",", ":"))


def digest(value: object) -> str:
    """Return a short stamp of what a page shows."""
    return f"{zlib.crc32(str(value).encode()):x}"


class _Question(BaseModel):
    data: tuple[str, str]
    fn_name: Literal["query"]
    component_id: int
    session_hash: str


class PollAnswers:
    """Answers the polls of a page before Gradio does, in a third of the processor time.

    The route of Gradio 6.31 for questions to components looks for itself among 80, and goes to a thread three times.
    `app` answers every other request.
    """

    def __init__(self, app: ASGIApp, blocks: gr.Blocks) -> None:
        self._app = app
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a poll, or pass a request on."""
        is_poll = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].rstrip("/") == _PATH
        if is_poll and Headers(scope=scope).get("content-type", "") == "application/json":
            response = await self._answer(await Request(scope, receive).body())
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, body: bytes) -> Response:
        try:
            question = _Question.model_validate_json(body)
        except ValidationError:
            return PlainTextResponse("This is not a question of this page.", 422)
        query = getattr(self._blocks.blocks.get(question.component_id), "query", None)
        if query is None:
            return PlainTextResponse("Not found", 404)
        sessions = self._blocks.app.state_holder
        if question.session_hash in sessions:
            _ = sessions[question.session_hash]  # so it counts as used now
        answer = await anyio.to_thread.run_sync(query, question.data, limiter=self._blocks.limiter)
        return Response(json.dumps(answer), media_type="application/json")


P = ParamSpec("P")


class WorkStatus:
    """Lays out the status of background work, and a poll that follows it while it is in sight.

    The question of the poll has what the page shows, then the key of the work. Progress is redrawn without an event. `changed` fires
    when the page shows another state than the work has, so answers of handlers may arrive in any order.

    Args:
        find: Returns the work under a key, which a client can forge.
        watch: Returns a stamp of whatever else is shown of a key; with it, the poll continues after the end of the work.
        is_laid_out: Whether the status is laid out here; another part may do it with `render`.
    """

    def __init__(
        self,
        find: Callable[[str], Work[Any] | None],
        render: Callable[[Work[Any] | None], str],
        *,
        elem_id: str,
        live_id: str,
        seconds: float = 0.5,
        watch: Callable[[str], object] | None = None,
        is_laid_out: bool = True,
    ) -> None:
        self._find, self._render, self._watch = find, render, watch
        self.status = live_html(elem_id=elem_id, render=is_laid_out)
        self.poll = poll(self.news, seconds, elem_id=live_id)
        self.changed: Any = self.poll.submit
        self.outputs: list[Component] = [self.poll, self.status]  # drawn one by one, the poll is the first to look

    def follow(self, key: str | None = None) -> Updates:
        """Return the status of the work under a key, and what the poll asks from now on; nothing without a key."""
        if not key:
            return {self.status: "", self.poll: ""}
        state, work = self._state(key), self._find(key)  # first the state: what changes meanwhile is drawn again
        polls = self._watch is not None or (work is not None and work.is_under_way)
        return {self.status: self._render(work), self.poll: f"{state}\n{key}" if polls else ""}

    def news(self, question: str, last_stamp: str) -> str | None:
        """Return what is new of the work, as `loratory.ui.polls.poll` sends it; None where nothing is new."""
        last_state, _, key = question.partition("\n")
        state, work = self._state(key), self._find(key)
        now, is_outdated = stamp(state, work.stamp if work is not None else ""), state != last_state
        # Without progress to redraw, the status may have an error that its work does not know.
        if now == last_stamp or not (is_outdated or (work is not None and work.is_under_way)):
            return None
        values = {} if is_outdated else {str(self.status.elem_id): self._render(work)}
        return poll_answer(now, values, submit=is_outdated)

    def shown_in_status(self, handler: Callable[P, Updates]) -> Callable[P, Updates]:
        """Let a handler return the box of an error in the status instead of raising it."""

        @functools.wraps(handler)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Updates:
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                return {self.status: error_box(as_engine_error(error))}

        return wrapper

    def _state(self, key: str) -> str:
        work, extra = self._find(key), self._watch(key) if self._watch is not None else None
        return stamp(extra, *((work.started, work.is_under_way, work.stopping) if work is not None else ()))


class JobPanel(WorkStatus):
    """Lays out the two buttons of a job above its status; each `elem_id` begins with `name`."""

    def __init__(
        self,
        works: BackgroundWork[Any],
        start: str,
        stopped: str,
        *,
        name: str,
        start_id: str = "start",
        min_width: int = 150,
        seconds: float = 0.5,
        watch: Callable[[str], object] | None = None,
    ) -> None:
        self._works = works
        with gr.Row(elem_id=f"{name}-buttons") as self.buttons:
            self.start = gr.Button(start, variant="primary", scale=0, min_width=min_width, elem_id=f"{name}-{start_id}")
            self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id=f"{name}-stop")
        super().__init__(
            works.find, lambda work: work_status(work, stopped), elem_id=f"{name}-status", live_id=f"{name}-live",
            seconds=seconds, watch=watch,
        )  # fmt: skip
        self.outputs += [self.start, self.stop]

    def follow(self, key: str | None = None) -> Updates:
        """Return the buttons too; without a key nothing can be started."""
        work = self._works.find(key or "")
        runs = work is not None and work.is_under_way
        return {
            **super().follow(key),
            self.start: gr.update(interactive=bool(key) and not runs),
            self.stop: gr.update(visible=runs, interactive=work is not None and not work.stopping),
        }

    def end(self, key: str | None) -> Updates:
        """Stop the work under a key; `changed` draws the rest of the page."""
        self._works.stop(key or "")
        updates = self.follow(key)
        del updates[self.poll]
        return updates

    def start_by(
        self, start: Callable[..., Updates], inputs: list[Any], outputs: list[Any], secret: gr.Textbox | None = None
    ) -> None:
        """Let the button start work, which empties `secret`; errors are shown in the status until an input is edited."""
        clear_error_after(self.status, [component for component in inputs if component is not secret], typed_box=secret)
        event = self.start.click(self.shown_in_status(start), inputs, outputs, **ONCE)
        if secret is not None:
            event.then(lambda: "", None, secret, **QUICK)
