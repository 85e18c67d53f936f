"""Polling: an open page asks for news every few seconds, without an event of Gradio.

An event costs the server milliseconds however little it sends, and twenty pages that follow a run ask ten times a second.
What only an event can change is polled by a `gr.Timer` whose handler returns nothing while its stamp is the same.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import anyio.to_thread
import gradio as gr
from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.components import script

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
        seconds: Between two questions.
        question: What it asks from the start.
        elem_id: Its id on the page.
        while_hidden: Whether it also asks, less often, while another tab of the browser is in front.
    """

    def ask(values: list[Any]) -> str | None:
        question, last_stamp = values
        return answer(str(question), str(last_stamp))

    return gr.HTML(
        question, elem_id=elem_id, elem_classes="live", html_template="<i></i>",
        js_on_load=f"const seconds = {seconds};\nconst whileHidden = {json.dumps(while_hidden)};\n{script('live')}", server_functions=[ask],
    )  # fmt: skip


def poll_answer(stamp: str, places: Mapping[str, str], *, submit: bool = False) -> str:
    """Return the answer to a poll: new values by `elem_id`, of components made by `live_html` or `chart`.

    The stamp, which comes back with the next question, names what the page has seen. `submit` also fires that event, for
    what only an event can change.
    """
    return json.dumps({"stamp": stamp, "places": places, "submit": submit}, separators=(",", ":"))


class _Question(BaseModel):
    data: tuple[str, str]
    fn_name: Literal["ask"]
    component_id: int
    session_hash: str


class PollAnswers:
    """Answers the polls of a page before Gradio does, in a third of the processor time.

    The route of Gradio 6.31 for questions to components looks for itself among 80, and goes to a thread three times.

    Args:
        app: Answers every other request.
        blocks: The page, laid out.
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
        ask = getattr(self._blocks.blocks.get(question.component_id), "ask", None)
        if ask is None:
            return PlainTextResponse("Not found", 404)
        sessions = self._blocks.app.state_holder
        if question.session_hash in sessions:
            _ = sessions[question.session_hash]  # so it counts as used now
        answer = await anyio.to_thread.run_sync(ask, question.data, limiter=self._blocks.limiter)
        return Response(json.dumps(answer), media_type="application/json")
