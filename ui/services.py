"""Everything that a tab may call, injected once: the real ones here, fakes in tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from engine.chat.session import ChatSession
from engine.config.model import ModelConfig
from engine.config.run import RunConfig
from engine.hardware.devices import Device, list_devices
from engine.inspector.session import Inspector
from engine.memory.estimate import MemoryEstimate
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
    """Module inventories that the inspector has answered already, so that an estimate never waits for a process."""

    inspector: Inspector
    _shapes: dict[tuple[str, str | None], ModelShape] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # guards _shapes: handlers run in many threads

    def get(self, model_id: str, revision: str | None) -> ModelShape | None:
        """What is known already; None where `learn` has not been asked."""
        with self._lock:
            return self._shapes.get((model_id, revision))

    def learn(self, model: ModelConfig) -> ModelShape:
        """Ask the inspector, and remember.

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
    """What the page stands on."""

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
    standing_by: Callable[[], str] = lambda: ""  # who supervises the runs in our stead; empty where we do
