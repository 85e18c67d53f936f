"""A run that a benchmark works on, as a worker does."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from loratory.engine.runs.history.events import StatusData, StepData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.run import RunState, WorkerClaim
from loratory.engine.runs.store import RunStore
from tests.invented_runs import a_config

_STEPS = 1_000_000


class Work:
    """A run of this process, which logs a step on demand."""

    def __init__(self, store: RunStore) -> None:
        self.run = store.create(a_config(run__name="followed"))
        self._claim: WorkerClaim = self.run.folder.claim()
        self._events = EventWriter(self.run.folder.events, self._claim.attempt)
        now = time.time()
        state = RunState(state="running", attempt=self._claim.attempt, device="cpu", changed=now, started=now)
        self.run.folder.write_state(state)
        self._events.append(StatusData(phase="training", total_steps=_STEPS))
        self._step = 0

    def step(self) -> None:
        self._step += 1
        self._events.append(
            StepData(
                step=self._step, epoch=self._step / 1000, loss=3 - self._step / _STEPS, learning_rate=1e-4, grad_norm=1.0,
                tokens=self._step * 100, tokens_per_second=1000.0, memory_bytes=2**30,
            )
        )  # fmt: skip


@contextmanager
def steps_each_second(works: Sequence[Work]) -> Iterator[None]:
    """Log a step of each run every second."""
    over = threading.Event()

    def log() -> None:
        while not over.wait(1.0):
            for work in works:
                work.step()

    thread = threading.Thread(target=log)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
