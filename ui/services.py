"""The services that tabs call; tests inject fakes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loratory.engine.accounts.audit import AuditKind
from loratory.engine.accounts.people import Logins, Person
from loratory.engine.chat.session import ChatSession
from loratory.engine.config.run import RunConfig, WorkPlace
from loratory.engine.evaluation.try_reward import TryRewardConfig, TryRewardResult
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import list_devices
from loratory.engine.inspector.session import Inspector
from loratory.engine.memory.estimate import MemoryEstimate
from loratory.engine.paths import LoratoryHome
from loratory.engine.places import places_at
from loratory.engine.places.huggingface_jobs.account import HardwareList
from loratory.engine.places.run_place import RunPlace
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import RunSummary
from loratory.engine.supervision.launch import Launcher
from loratory.engine.supervision.memory_measurement import MeasuredStep
from loratory.ui.backend.background import BackgroundWork, Job
from loratory.ui.backend.cluster import ClusterForecast
from loratory.ui.backend.dataset_checks import DatasetChecks
from loratory.ui.backend.models import KnownFits, KnownShapes, OwnDownloads, Tokenizers
from loratory.ui.backend.results import ResultWork
from loratory.ui.backend.run_reader import SharedReaders
from loratory.ui.backend.transfers import Transfers

if TYPE_CHECKING:
    from loratory.engine.lab.queue import QueueBoard
    from loratory.ui.backend.lab import LabAdmin  # imports argon2, which only labs need


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
    try_reward: Callable[[RunConfig, TryRewardConfig], Job[TryRewardResult]]  # before a start, on the device
    hardware: HardwareList  # of Hugging Face, in the person's name
    forecast: ClusterForecast = field(default_factory=ClusterForecast)  # of the cluster that shares the home
    person: Person | None = None  # who is signed in; None where there are no accounts
    fits: KnownFits = field(default_factory=KnownFits)
    shared: SharedReaders = field(default_factory=SharedReaders)
    measurements: BackgroundWork[MeasuredStep] = field(default_factory=BackgroundWork)
    tries: BackgroundWork[TryRewardResult] = field(default_factory=BackgroundWork)
    documents: BackgroundWork[Any] = field(default_factory=BackgroundWork)  # from which a model makes rows
    devices: Callable[[], tuple[Device, ...]] = list_devices
    # Which process supervises the runs instead of this one; empty where this one does.
    standing_by: Callable[[], str] = lambda: ""
    # What an admin announces to all people of a lab; empty where there is nothing.
    notice: Callable[[], str] = str
    # Logs an action on a run in the lab's audit log, by its id.
    log: Callable[[AuditKind, str], None] = lambda _kind, _run_id: None
    logins: Logins | None = None  # where a person of a lab may sign in at Hugging Face, to train there
    own_models: OwnDownloads | None = None  # of a person of a lab, fetched with their own token; a guest has none
    own_datasets: OwnDownloads | None = None
    lab: "LabAdmin | None" = None  # where the person is an admin
    board: "QueueBoard | None" = None  # the queue of a lab; None where there are no accounts

    def free_device(self, where: WorkPlace = "local") -> None:
        """Unload the chat's model, also one that answers or loads, if it would hold the device of other work."""
        target = self.chat.state.target
        if target is not None and target.where == where == "local":
            self.chat.unload()

    def place(self, name: str, earlier: Callable[[], Iterable[RunSummary]] = tuple) -> RunPlace:
        """Return the place of that name from known facts, without asking another process."""
        return places_at(self.home, self.devices, self.hardware.known, earlier)[name]
