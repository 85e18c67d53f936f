"""The page of each person of a lab: a Gradio app for each, so their events, files and states are apart."""

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from gradio.utils import is_static_file
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from loratory.engine.accounts.lab import PublicAddress
from loratory.engine.accounts.people import Person
from loratory.engine.errors import EngineError
from loratory.ui.build import SERVING, build_app
from loratory.ui.front.gate import is_offered
from loratory.ui.front.memory import close_queue, freeze_objects, reclaim, return_memory, trim_memory
from loratory.ui.gradio_internals import use_mounted
from loratory.ui.policy import PagePolicy
from loratory.ui.polls import PollAnswers
from loratory.ui.services import Services
from loratory.ui.theme import build_theme

_CLOSED_AFTER_SECONDS = 2 * 3600  # without a request; a page that is open asks every few seconds
_MOST_UPLOAD_IDS = 1_000


@dataclass
class _PersonPage:
    role: str
    services: Services
    app: FastAPI
    answers: ASGIApp  # to requests: the app behind what comes before it
    stack: AsyncExitStack
    last_use: float
    requests: int = 0
    upload_ids: OrderedDict[str, None] = field(default_factory=OrderedDict)


@dataclass(eq=False)
class PersonPages:
    """Builds a person's page at their first request, and closes it when it has not been used for two hours."""

    services_of: Callable[[Person], Services]
    address: PublicAddress
    close_services: Callable[[Services], None]  # ends what a page started for itself, such as a loaded model
    _theme: gr.themes.Base = field(default_factory=build_theme)
    _pages: dict[str, _PersonPage] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)  # one building at a time of a person's page
    _has_closed: bool = False  # a page, whose memory is still to be found
    # Guards os.environ, where Gradio reads the folder of an app, and its classes.
    _building: threading.Lock = field(default_factory=threading.Lock)

    async def app_for(self, person: Person) -> ASGIApp:
        """Return what answers a person's requests.

        Raises:
            StorageError: If the person's folders cannot be used.
        """
        async with self._locks.setdefault(person.name, asyncio.Lock()):
            page = self._pages.get(person.name)
            if page is not None and page.role != person.role:
                await self._close(person.name)
                page = None
            opened = page or await self._open(person)
            opened.last_use = time.monotonic()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            opened.requests += 1  # one that is being answered is in use, however long that takes
            try:
                await opened.answers(scope, receive, send)
            finally:
                opened.requests -= 1
                opened.last_use = time.monotonic()

        return answer

    def may_read_file(self, person: Person, path: str) -> bool:
        """Return whether a file is below the person's own folder for uploads and downloads, or part of the page itself."""
        page = self._pages.get(person.name)
        if page is None or "\0" in path or "://" in path:
            return False
        return is_static_file(path) or Path(path).resolve().is_relative_to(
            page.services.transfers.home.transfers.resolve()
        )

    def owns_upload(self, person: Person, upload_id: str) -> bool:
        """Return whether an upload is this person's; its id belongs to the first who names it."""
        page = self._pages.get(person.name)
        if page is None or not upload_id or len(upload_id) > 100:
            return page is None  # the first request of all opens the page
        if any(upload_id in other.upload_ids for other in self._pages.values() if other is not page):
            return False
        page.upload_ids[upload_id] = None
        if len(page.upload_ids) > _MOST_UPLOAD_IDS:
            page.upload_ids.popitem(last=False)
        return True

    async def close_unused(self, enabled: Collection[str]) -> None:
        """Close the pages of people who have been away, or who lost their account although a request is under way."""
        oldest = time.monotonic() - _CLOSED_AFTER_SECONDS

        def is_unused(name: str, page: _PersonPage) -> bool:
            return name not in enabled or (page.last_use < oldest and not page.requests)

        for name in [name for name, page in self._pages.items() if is_unused(name, page)]:
            async with self._locks[name]:
                if name in self._pages and is_unused(name, self._pages[name]):
                    await self._close(name)

    async def sweep_transfers(self) -> None:
        """Remove old uploads and downloads of the pages that are open."""
        for page in list(self._pages.values()):
            await asyncio.to_thread(page.services.transfers.sweep)

    async def close_all(self) -> None:
        """Close every page, as the server ends; runs continue."""
        await asyncio.gather(*(self._close(name) for name in list(self._pages)))

    async def reclaim_memory(self) -> None:
        """Give back what closed pages and answers have left."""
        work = reclaim if self._has_closed else return_memory
        self._has_closed = False
        await asyncio.to_thread(work)

    async def _open(self, person: Person) -> _PersonPage:
        # In the request's own context, Gradio finds whose event came before it on the connection, and uses their folder.
        services, app, blocks = await asyncio.to_thread(Context().run, self._build, person)
        stack = AsyncExitStack()
        stack.callback(close_queue, blocks)
        await stack.enter_async_context(app.router.lifespan_context(app))
        answers = PagePolicy(PollAnswers(app, blocks), services.transfers)
        page = _PersonPage(person.role, services, app, answers, stack, time.monotonic())
        self._pages[person.name] = page
        return page

    def _build(self, person: Person) -> tuple[Services, FastAPI, gr.Blocks]:
        app = FastAPI(openapi_url=None)
        with self._building:
            before = os.environ.get("GRADIO_TEMP_DIR")
            try:
                services = self.services_of(person)
                services.transfers.prepare()  # names the person's folder to Gradio
                blocks = build_app(services)
                gr.mount_gradio_app(
                    app, blocks, path="/", root_path=self.address.origin, theme=self._theme, mcp_server=False, **SERVING
                )
            finally:
                os.environ.pop("GRADIO_TEMP_DIR", None)
                if before is not None:
                    os.environ["GRADIO_TEMP_DIR"] = before
            (inner_app,) = (route.app for route in app.routes if isinstance(route, Mount))
            use_mounted(blocks, inner_app)
            trim_memory(blocks, inner_app, is_offered)
        freeze_objects()
        return services, app, blocks

    async def _close(self, name: str) -> None:
        page = self._pages.pop(name)
        self._has_closed = True
        await page.stack.aclose()
        await asyncio.to_thread(self.close_services, page.services)


@asynccontextmanager
async def housekeeping(
    pages: PersonPages, enabled_names: Callable[[], Collection[str]], measure_disk: Callable[[], object]
) -> AsyncIterator[None]:
    """Close pages that are unused or whose person lost the account, and remove old files; close all pages at the end."""

    async def close_unused() -> None:
        await pages.close_unused(await asyncio.to_thread(enabled_names))

    async def sweep() -> None:
        await pages.sweep_transfers()
        await asyncio.to_thread(measure_disk)

    async def repeat(work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            with suppress(EngineError):  # the accounts are in use: try at the next turn
                await work()
            await asyncio.sleep(seconds)

    works = ((close_unused, 5), (pages.reclaim_memory, 15), (sweep, 600))
    tasks = [asyncio.create_task(repeat(work, seconds)) for work, seconds in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await pages.close_all()
