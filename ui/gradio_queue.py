"""A server that sleeps while nothing happens, and hands little to threads: a page's events, and uvicorn's loop."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from inspect import ismethod
from types import SimpleNamespace
from typing import Any

import anyio
import gradio.blocks
import uvicorn
from gradio.components import Component
from gradio.queueing import Queue
from gradio.utils import set_task_name

_LOOKS_AGAIN_SECONDS = 10.0  # whether its page was closed


class PageQueue(Queue):  # type: ignore[misc]  # Gradio's types are not read
    """Begins an event when one is pushed or ends; that of Gradio 6.31 looks a thousand times a second whether one waits.

    Nor does it look for progress, which nothing here reports, and count its last 10,000 events after each one, with pandas.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stopped = False  # as Gradio has it; its type is not read
        self._changed = asyncio.Event()
        self.progress_update_sleep_when_free = _LOOKS_AGAIN_SECONDS
        self.ANALYTICS_MAX_EVENTS = 1
        self.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize

    async def push(self, *arguments: Any, **options: Any) -> Any:
        """Add an event to the queue."""
        answer = await super().push(*arguments, **options)
        self._changed.set()
        return answer

    async def start_processing(self) -> None:
        """Begin the events for as long as the server runs."""
        try:
            while not self.stopped:
                async with self.delete_lock:
                    waiting = self.get_events() if None in self.active_jobs else None
                if waiting is not None:
                    self._begin(*waiting)
                    continue
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _LOOKS_AGAIN_SECONDS)
        finally:
            self.stopped = True
            self._cancel_asyncio_tasks()

    def _begin(self, events: list[Any], is_batch: bool, concurrency_id: str) -> None:
        began, function = time.time(), events[0].fn
        self.active_jobs[self.active_jobs.index(None)] = events
        same = self.event_queue_per_concurrency_id[concurrency_id]
        same.current_concurrency += 1
        same.start_times_per_fn[function].add(began)
        task = asyncio.ensure_future(self.process_events(events, is_batch, began, function))
        set_task_name(task, events[0].session_hash, function._id, events[0]._id, is_batch)  # by which it is cancelled
        self._asyncio_tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._asyncio_tasks.discard(task)
        self._changed.set()


async def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Convert the value of a component at once, and call a handler in a thread.

    Gradio 6.31 hands each value to a thread, and an event that reads the form has 170: a third of what it costs.
    """
    if ismethod(function) and isinstance(function.__self__, Component):
        return function(*arguments)
    return await anyio.to_thread.run_sync(function, *arguments, **options)


gradio.blocks.anyio = SimpleNamespace(to_thread=SimpleNamespace(run_sync=_call))


async def _serve_until_told(self: uvicorn.Server) -> None:
    """Look each second whether to end; uvicorn 0.54 looks ten times as often."""
    while not await self.on_tick(0):
        await asyncio.sleep(1.0)


uvicorn.Server.main_loop = _serve_until_told  # type: ignore[method-assign]
