"""A launcher whose runs train nothing, at a human pace, on a device that is always there."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.hardware.device import Device
from loratory.engine.runs.control import end_is_requested
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.provenance import MemoryFigures, Provenance
from loratory.engine.runs.run import Run, RunState, State
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.sweep import sweep_origins
from tests.invented_runs import InventedRun, Scribe, write_adapter, write_checkpoint

GIB = 2**30
ENDLESS = 100_000  # steps of a run that is still at work however long a test takes


def a_device(free_gib: float = 9.2) -> Device:
    """Return a processor with 16 GiB."""
    return Device(
        kind="cpu",
        index=0,
        name="CPU · 2 cores",
        total_bytes=16 * GIB,
        free_bytes=int(free_gib * GIB),
        has_fast_bfloat16=True,
        cores=2,
    )


class FakeLauncher:
    """Starts runs that write their logs in a thread of this process, and obey stop and cancel.

    Args:
        store: Where runs are made.
        seconds_per_step: The pace.
    """

    def __init__(self, store: RunStore, seconds_per_step: float = 0.05) -> None:
        self._store = store
        self._seconds_per_step = seconds_per_step
        self.started: list[Run] = []

    def start(
        self,
        config: RunConfig,
        key: str | None = None,
        *,
        copied_from: str | None = None,
        on_progress: Callable[[str], None] = lambda _: None,
        preview: DatasetReport | None = None,
        **origin: Any,
    ) -> Run:
        existing = None if key is None else self._store.find_by_key(key)
        if existing is not None:
            return existing
        on_progress("Checking the data.")
        prediction = MemoryFigures(process_bytes=int(1.32 * GIB))
        run = self._store.create(
            config, Provenance(predicted_memory=prediction, copied_from=copied_from, **origin), key
        )
        self.started.append(run)
        threading.Thread(target=self._work, args=(run, config), daemon=True).start()
        return run

    def start_all(
        self,
        configs: Sequence[RunConfig],
        key: str,
        *,
        copied_from: str | None = None,
        on_progress: Callable[[str], None] = lambda _: None,
        preview: DatasetReport | None = None,
    ) -> list[Run]:
        origins = sweep_origins(configs, key)
        return [
            self.start(config, f"{key}/{number}", copied_from=copied_from, on_progress=on_progress, **origin)
            for number, (config, origin) in enumerate(zip(configs, origins, strict=True))
        ]

    def _work(self, run: Run, config: RunConfig) -> None:
        total = config.training.max_steps if config.training.max_steps > 0 else 60
        story = InventedRun(total_steps=total, seconds_per_step=self._seconds_per_step)
        state = RunState(state="running", attempt=1, device="cpu", changed=time.time(), started=time.time())
        run.folder.write_state(state)
        ending: State = "completed"
        with EventWriter(run.folder.events, attempt=1) as writer:
            scribe = Scribe(writer, story)
            scribe.begin()
            for step in range(1, total + 1):
                time.sleep(self._seconds_per_step)
                scribe.step(step)
                if end_is_requested(run.folder):
                    ending = "stopped"
                    break
            writer.append(StatusData(phase="finished" if ending == "completed" else "stopped"))
        for step in scribe.saved:
            write_checkpoint(run, step)
        if not run.folder.cancel_request.exists():
            write_adapter(run.folder.adapter)
        now = time.time()
        run.folder.write_state(state.model_copy(update={"state": ending, "ended": now, "changed": now}))
