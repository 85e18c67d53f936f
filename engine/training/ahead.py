"""The next step's batch is made while a GPU learns from the present one, and lies where the GPU can fetch it by itself."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from engine.training.steps import StepBatch


class StepsAhead:
    """Steps in their order, each looked up and put together by a thread before it is asked for.

    A thread and no process: nothing is copied between the two, and nothing random is drawn, so that the run is the same
    bit by bit. One step is enough, for a step takes far longer than its batch.

    Args:
        steps: Used by the thread alone from now on.
        pins: Keep the batches in memory that CUDA copies from without waiting.
    """

    def __init__(self, steps: Iterator[StepBatch], *, pins: bool) -> None:
        self.steps = steps
        self._pins = pins
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steps-ahead")
        self._next: Future[StepBatch | None] | None = None

    def __iter__(self) -> "StepsAhead":
        return self

    def __next__(self) -> StepBatch:
        present = self._next or self._thread.submit(self._make)
        step = present.result()
        if step is None:
            self.close()
            raise StopIteration
        self._next = self._thread.submit(self._make)
        return step

    def close(self) -> None:
        """End the thread; what it has made is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _make(self) -> StepBatch | None:
        step = next(self.steps, None)
        return step.pinned() if step is not None and self._pins else step
