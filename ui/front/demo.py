"""The page of people without an account in a Space: a finished run to read, and a short question to its model.

It works without JavaScript and without cookies, in a tab and in a frame. Nothing of it depends on who asks, so it is made
once and answered from memory until the run changes.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from loratory.engine.accounts.throttle import DemoThrottle, ThrottledError
from loratory.engine.errors import EngineError
from loratory.engine.inspector.session import InspectorSlots
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import duration
from loratory.engine.space.demo import Demo
from loratory.engine.space.demo_chat import LONGEST_PROMPT, DemoAnswers, DemoBusyError
from loratory.engine.space.environment import SpaceEnvironment
from loratory.ui.backend.run_reader import RunReader, RunSnapshot
from loratory.ui.front.forms import address_of, hash_of, read_form
from loratory.ui.front.gate import SIGN_IN
from loratory.ui.theme import ICON
from loratory.ui.views.demo import ASK, DemoView, render_demo, render_masthead, render_question_form

DEMO = "/demo"
_REFRESH_SECONDS = 2.0  # between two reads of the run
_MOST_WAITING = 4  # questions, besides the one that is answered
_WAITS_SECONDS = 45.0  # a question, for its turn
_RELOAD_SECONDS = 10  # of the page, while the run trains
_FRONT = Path(__file__).parent
_STYLE = "".join((_FRONT / name).read_text(encoding="utf-8") for name in ("front.css", "demo.css"))
_POLICY = f"default-src 'none'; style-src {hash_of(_STYLE)}; img-src data:; form-action 'self'; base-uri 'none'"
_ALLOWED_CONTROLS = "\n\t\u200c\u200d"  # also the joiners of Persian, Hindi and emoji
_FORM = "application/x-www-form-urlencoded"


@contextmanager
def open_demo(home: LoratoryHome, environment: SpaceEnvironment, slots: InspectorSlots) -> Iterator["DemoPages"]:
    """Run the demo of a Space while it is served, and return its pages; call it after saved runs are restored."""
    demo = Demo.on_this_machine(home, slots)
    demo.start()
    try:
        yield DemoPages(demo, environment.duplicate_url, f"{environment.address.origin}{SIGN_IN}")
    finally:
        demo.close()


@dataclass(eq=False)
class DemoPages:
    """Answers people who have no account, or whose account is not admitted."""

    demo: Demo  # the run, and what may be asked of it
    duplicate_url: str  # where a person makes a Space of their own from this one
    sign_in: str  # address of the sign-in page, on the Space's own host
    throttle: DemoThrottle = field(default_factory=DemoThrottle)
    waits_seconds: float = _WAITS_SECONDS  # how long a question waits for its turn

    def __post_init__(self) -> None:
        self._masthead = render_masthead(self.duplicate_url, self.sign_in)
        self._reader = RunReader(self.demo.runs)
        self._turn = asyncio.Lock()  # held by the question that is being answered
        self._waiting = 0
        self._refreshing = asyncio.Lock()  # one read of the run at a time
        self._last_refresh = float("-inf")  # monotonic seconds
        self._stamp = ""
        self._view = DemoView()
        self._body = ""
        self._whole = b""  # the page of a person without a notice and without a question

    def routes(self) -> list[Route]:
        """Return the pages."""
        return [
            Route(DEMO, self.welcome, methods=["GET"]),
            Route(ASK, self._answer_question, methods=["POST"]),
            Route(ASK, self.welcome, methods=["GET"]),  # the address of an answer, opened again
        ]

    async def welcome(self, _request: Request, why: str = "") -> Response:
        """Return the page; with `why` a signed-in person is not admitted."""
        await self._refresh()
        if not why:
            return _answer(self._whole)
        return _answer(self._page(render_question_form(self._view), why), 403)

    async def _answer_question(self, request: Request) -> Response:
        await self._refresh()
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            return self._refuse("", "Send the question with the form of this page.", 415)
        prompt = _clean((await read_form(request)).get("prompt", ""))
        if not prompt:
            return self._refuse("", "The question is empty. Type one.", 400)
        if len(prompt) > LONGEST_PROMPT:
            problem = f"The question has {len(prompt):,} characters. Use at most {LONGEST_PROMPT}."
            return self._refuse(prompt[:LONGEST_PROMPT], problem, 400)
        try:
            if not self._view.can_ask:
                raise DemoBusyError("The model is not ready.", "Ask again when the run has completed.")
            self.throttle.begin(address_of(request))
            answers = await self._in_turn(request, prompt)
        except ThrottledError as error:
            return self._refuse(prompt, f"{error.what} Try again in {duration(error.seconds)}.", 429, error.seconds)
        except EngineError as error:
            return self._refuse(prompt, str(error), 503, 30)
        return _answer(self._page(render_question_form(self._view, answers=answers)))

    async def _in_turn(self, request: Request, prompt: str) -> DemoAnswers:
        run = self._view.run
        if run is None or self._waiting >= _MOST_WAITING:
            raise DemoBusyError("Several visitors are asking at the moment.", "Try again in a minute.")
        self._waiting += 1
        try:
            async with asyncio.timeout(self.waits_seconds):
                await self._turn.acquire()
        except TimeoutError as error:
            raise DemoBusyError("The questions of other visitors took too long.", "Try again in a minute.") from error
        finally:
            self._waiting -= 1
        try:
            if await request.is_disconnected():
                raise DemoBusyError("The page was closed.", "Ask again.")
            return await asyncio.to_thread(self.demo.chat.answer, run.run, prompt)
        finally:
            self._turn.release()

    def _refuse(self, prompt: str, problem: str, status: int, seconds: int = 0) -> Response:
        answer = _answer(self._page(render_question_form(self._view, prompt=prompt, problem=problem)), status)
        if seconds:
            answer.headers["Retry-After"] = str(seconds)
        return answer

    async def _refresh(self) -> None:
        """Render the page again if the run has changed; concurrent visitors get the previous page."""
        if time.monotonic() - self._last_refresh < _REFRESH_SECONDS or (self._whole and self._refreshing.locked()):
            return
        async with self._refreshing:
            if time.monotonic() - self._last_refresh >= _REFRESH_SECONDS:
                await asyncio.to_thread(self._render)
                self._last_refresh = time.monotonic()

    def _render(self) -> None:
        view = self._read()
        stamp = view.stamp
        if stamp != self._stamp or not self._whole:
            self._view, self._body, self._stamp = view, render_demo(view), stamp
            self._whole = self._page(render_question_form(view), refresh=_RELOAD_SECONDS if view.is_changing else None)

    def _read(self) -> DemoView:
        run = self.demo.run
        with suppress(EngineError):  # it was deleted meanwhile
            if run is not None:
                snapshot = self._reader.observe(run.id)
                return DemoView(snapshot, self.demo.sample_of(run), self._failure_text(snapshot))
        return DemoView(problem=self.demo.problem)

    def _failure_text(self, snapshot: RunSnapshot) -> str:
        failure, state = snapshot.history.failed, snapshot.state
        if state.state != "failed":
            return ""
        text = failure.what if failure is not None else state.cause
        return self.demo.without_paths(text or "It failed for an unknown reason.")

    def _page(self, form: str, why: str = "", refresh: int | None = None) -> bytes:
        notice = f'<p class="notice" role="alert">{escape(why)}</p>' if why else ""
        head = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Demo · Loratory</title>{ICON}'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">{head}'
            f'<meta name="color-scheme" content="light dark"><style>{_STYLE}</style></head>'
            f'<body class="demo"><main>{self._masthead}{notice}{self._body}{form}</main></body></html>'
        ).encode()


def _answer(page: bytes, status: int = 200) -> HTMLResponse:
    return HTMLResponse(page, status, headers={"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"})


def _clean(prompt: str) -> str:
    """Return typed text without invisible characters."""
    lines = prompt.replace("\r\n", "\n")
    return "".join(char for char in lines if char in _ALLOWED_CONTROLS or char.isprintable()).strip()
