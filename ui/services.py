"""Everything that a tab may call, injected once; tests inject fakes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from engine.chat.session import ChatSession
from engine.config.run import ModelConfig, RunConfig
from engine.hardware.device import Device
from engine.hardware.devices import list_devices
from engine.inspector.session import Inspector
from engine.memory.result import MemoryEstimate
from engine.models.shape import ModelShape
from engine.paths import LoratoryHome
from engine.runs.launch import Launcher
from engine.runs.memory_measurement import MeasuredStep
from engine.runs.store import RunStore
from ui.backend.background import BackgroundWork, Job
from ui.backend.dataset_checks import DatasetChecks
from ui.backend.results import ResultWork
from ui.backend.tokenizers import Tokenizers
from ui.backend.transfers import Transfers


@dataclass
class KnownShapes:
    """Model shapes that the inspector has read already: an estimate never waits for a process."""

    inspector: Inspector
    _shapes: dict[tuple[str, str | None], ModelShape] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # guards _shapes: handlers run in many threads

    def get(self, model_id: str, revision: str | None) -> ModelShape | None:
        """Return the shape that is known already; None before `learn`."""
        with self._lock:
            return self._shapes.get((model_id, revision))

    def learn(self, model: ModelConfig) -> ModelShape:
        """Return the shape of a model, read by the inspector the first time.

        Raises:
            EngineError: If the model cannot be found, reached or read.
        """
        known = self.get(model.id, model.revision)
        if known is not None:
            return known
        shape = self.inspector.module_inventory(model)
        with self._lock:
            self._shapes[(model.id, model.revision)] = shape
        return shape


@dataclass(frozen=True)
class Services:
    """What the page may call."""

    home: LoratoryHome
    transfers: Transfers
    inspector: Inspector
    shapes: KnownShapes
    runs: RunStore
    launcher: Launcher
    chat: ChatSession
    checks: DatasetChecks
    tokenizers: Tokenizers
    results: ResultWork
    measure: Callable[[RunConfig, MemoryEstimate], Job[MeasuredStep]]  # one worst step, on the device
    measurements: BackgroundWork[MeasuredStep] = field(default_factory=BackgroundWork)
    devices: Callable[[], tuple[Device, ...]] = list_devices
    standing_by: Callable[[], str] = lambda: (
        ""
    )  # which process supervises the runs instead of this one; empty where this one does
