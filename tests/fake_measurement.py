"""A measurement of one step without a model: a little below what was predicted."""

import threading
from collections.abc import Callable

from loratory.engine.config.run import RunConfig
from loratory.engine.memory.estimate import MemoryEstimate
from loratory.engine.processes.messages import CancelledRequestError
from loratory.engine.supervision.memory_measurement import MeasuredStep, MeasurementProgress


class FakeMeasurement:
    """Takes two steps at a human pace."""

    def __init__(self, config: RunConfig, estimate: MemoryEstimate, seconds_per_step: float) -> None:
        self._config, self._estimate, self._pace = config, estimate, seconds_per_step
        self._stopped = threading.Event()

    def run(self, on_progress: Callable[[MeasurementProgress], None] = lambda _: None) -> MeasuredStep:
        """Answer after a while, or end early."""
        for step in (1, 2):
            if self._stopped.wait(4 * self._pace):
                raise CancelledRequestError
            on_progress(MeasurementProgress(message=f"Step {step} of 2 is done.", fraction=step / 3))
        return MeasuredStep(
            device_name=self._estimate.device_name,
            measured_bytes=round(self._estimate.expected_bytes * 0.97),
            predicted_bytes=self._estimate.expected_bytes,
            bound_bytes=self._estimate.needed_bytes,
            measures_process=True,
            allocated_bytes=None,
            step_seconds=1.25,
            rows=self._config.training.per_device_train_batch_size,
            tokens=self._config.training.max_length,
        )

    def stop(self) -> None:
        """End soon."""
        self._stopped.set()
