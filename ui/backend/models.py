"""Models that the page knows: shapes, tokenizers, which of the catalogue fit a device, and a person's own downloads."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from pydantic import SecretStr

from loratory.engine import private_hub
from loratory.engine.config.methods.registry import DEFAULT_METHOD, FULL_FINE_TUNING
from loratory.engine.config.run import DatasetConfig, ModelConfig, RunConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.errors import EngineError
from loratory.engine.hardware.device import Device, KnownDevice
from loratory.engine.hardware.devices import list_devices
from loratory.engine.inspector.session import Inspector
from loratory.engine.memory.compare import MethodNeed, compare_rows
from loratory.engine.models.catalog import find_in_catalog, list_catalog
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.prepared import ModelProgress, OnModelProgress
from loratory.engine.models.shape import ModelShape
from loratory.engine.models.source import resolve_model
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import gib
from loratory.engine.runs.disk import models_needed_by
from loratory.engine.runs.store import RunStore
from loratory.ui.backend.background import BackgroundWork, FunctionJob, Job, Work, WorkProgress, stamp
from loratory.ui.backend.dataset_checks import CheckQuestion
from loratory.ui.views.html import size

_log = logging.getLogger(__name__)
METHODS_JUDGED = (DEFAULT_METHOD.label, DEFAULT_METHOD.four_bit_label, FULL_FINE_TUNING.label)

Needs = tuple[MethodNeed, ...]  # of the judged methods; none where the model could not be read
_MOST_KNOWN = 4096  # needs, of all pages
_MOST_TABLES = 16  # of a page

Shapes = dict[tuple[str, str | None], ModelShape]  # by id and revision


class KnownShapes:
    """Model shapes that the inspector has read already: an estimate never waits for a process.

    Those of the catalogue are public: the pages of a lab share them, of 7 MB.
    """

    def __init__(self, inspector: Inspector, of_catalog: Shapes | None = None) -> None:
        self._inspector = inspector
        self._of_catalog: Shapes = {} if of_catalog is None else of_catalog
        self._own: Shapes = {}
        self._errors: dict[tuple[str, str | None], EngineError] = {}

    def trouble(self, model_id: str, revision: str | None) -> EngineError | None:
        """Return why a model could not be read; None if it was read or never requested."""
        return self._errors.get((model_id, revision)) if self.get(model_id, revision) is None else None

    def get(self, model_id: str, revision: str | None) -> ModelShape | None:
        """Return the known shape; None before `learn`."""
        return self._shapes_of(model_id).get((model_id, revision))

    def learn(self, model: ModelConfig) -> ModelShape:
        """Return the shape of a model, read by the inspector the first time.

        Raises:
            EngineError: If the model cannot be found, reached or read.
        """
        shape = self.get(model.id, model.revision)
        if shape is None:
            try:
                shape = self._inspector.module_inventory(model)
            except EngineError as error:
                self._errors[(model.id, model.revision)] = error
                raise
            self._shapes_of(model.id)[(model.id, model.revision)] = shape
            self._errors.pop((model.id, model.revision), None)
        return shape

    def _shapes_of(self, model_id: str) -> Shapes:
        return self._own if find_in_catalog(model_id) is None else self._of_catalog


class Tokenizers:
    """Downloads the files that previews need of a model, once, and knows which tokenizers are cached.

    `resolve` returns at once where a model's tokenizer is on this machine already.
    """

    def __init__(self, resolve: Callable[[ModelConfig, OnModelProgress], object]) -> None:
        self._resolve = resolve
        self.works: BackgroundWork[object] = BackgroundWork(describe_download)  # by `key_of` a model

    @classmethod
    def on_this_machine(cls, home: LoratoryHome) -> "Tokenizers":
        """Return those of the catalogue, the Hub, folders and GGUF files."""
        return cls(lambda model, on_progress: resolve_model(model, home, on_progress, ModelPart.TOKENIZER))

    def download(self, model: ModelConfig, *, again: bool = False) -> Work[object]:
        """Return the download of a model's tokenizer; start it if missing, or `again` after a failure."""
        job = FunctionJob(lambda report: self._resolve(model, report))
        return self.works.start_once(key_of(model), "Downloading the tokenizer", job, again=again)

    def is_ready(self, model: ModelConfig) -> bool:
        """Return whether the model's tokenizer is available."""
        work = self.works.find(key_of(model))
        return work is not None and not work.is_under_way and work.error is None

    def trouble(self, model: ModelConfig) -> EngineError | None:
        """Return why a model's tokenizer could not be downloaded; None if it was or never requested."""
        work = self.works.find(key_of(model))
        return work.error if work is not None and not work.was_stopped else None

    def answerable(self, question: CheckQuestion) -> CheckQuestion:
        """Return the question as far as it can be answered now: without tokens while the tokenizer is downloaded."""
        if question.model is None:
            return question
        self.download(question.model)
        return question if self.is_ready(question.model) else replace(question, model=None)


def key_of(model: ModelConfig) -> str:
    """Return the key of a model's tokenizer."""
    return stamp(model.id, model.revision or "")


def describe_download(progress: ModelProgress) -> WorkProgress:
    """Return the progress of a download as a page shows it."""
    if progress.done_bytes is None or not progress.total_bytes:
        return WorkProgress(progress.message)
    text = f"{progress.message} {size(progress.done_bytes)} of {size(progress.total_bytes)}."
    return WorkProgress(text, min(1.0, progress.done_bytes / progress.total_bytes))


class KnownFits:
    """Memory needs of catalogue models, each computed once, by one thread at a time; shared in a lab."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _needs
        # The key ends with a hash of the rows.
        self._needs: OrderedDict[tuple[str, str, int, int], Needs] = OrderedDict()

    def find(
        self, model_id: str, device: Device, estimate: Callable[[], Needs], rows: RowLengths | None = None
    ) -> Needs:
        """Return the needs of a model, judged by the memory that is free now; estimates them if unknown."""
        key = (model_id, device.name, device.total_bytes, hash(rows))
        with self._lock:
            needs = self._needs.get(key) or estimate()
            if needs:
                self._needs[key] = needs
            if len(self._needs) > _MOST_KNOWN:
                self._needs.popitem(last=False)
        return tuple(need.model_copy(update={"verdict": need.verdict_on(device)}) for need in needs)


class FitTable:
    """Verdicts for each catalogue model at the default settings, on the device with the most memory of the best kind."""

    def __init__(
        self,
        shape_of: Callable[[ModelConfig], ModelShape],
        devices: Callable[[], tuple[Device, ...]] = list_devices,
        known_fits: KnownFits | None = None,
    ) -> None:
        self._shape_of = shape_of
        self._devices = devices
        self._known_fits = known_fits or KnownFits()
        self._fits: OrderedDict[str, Fits] = OrderedDict()  # by device and rows, the latest ones
        self._works: BackgroundWork[None] = BackgroundWork()

    def on(self, elsewhere: KnownDevice | None, rows: RowLengths | None = None) -> "Fits":
        """Return the verdicts for another device, or for this machine's; the first call starts the work.

        Without known `rows`, all of them are as long as `max_length` allows.
        """
        device = elsewhere.device() if elsewhere is not None else self._device()
        key = f"{elsewhere.name if elsewhere is not None else ''} {hash(rows)}"
        fits = self._fits.setdefault(key, Fits(device.name if device is not None else "this computer", rows))
        if len(self._fits) > _MOST_TABLES:
            self._fits.popitem(last=False)
        job = FunctionJob(lambda _: self._judge_all(fits, device))
        fits.work = self._works.start_once(f"fits {key}", "The fit table", job)
        return fits

    def _device(self) -> Device | None:
        devices = [device for device in self._devices() if device.obstacle is None]
        return max(devices, key=lambda device: (device.kind == "cuda", device.total_bytes), default=None)

    def _judge_all(self, fits: "Fits", device: Device | None) -> None:
        if device is not None:
            for entry in sorted(list_catalog(), key=lambda entry: entry.parameters):
                model = ModelConfig(id=entry.id)
                estimate = partial(self._estimate, model, device, fits.rows)
                needs = () if entry.untrainable else self._known_fits.find(entry.id, device, estimate, fits.rows)
                fits.needs[entry.id] = needs

    def _estimate(self, model: ModelConfig, device: Device, rows: RowLengths | None) -> Needs:
        try:
            config = RunConfig(model=model, dataset=DatasetConfig(source="-"))
            return compare_rows(self._shape_of(model), config, device, METHODS_JUDGED, rows)
        except EngineError as error:
            _log.warning("%s is left out of the fit table: %s", model.id, error.what)
            return ()


@dataclass
class Fits:
    """What models need on one device for some rows, as far as it is known."""

    device_name: str
    rows: RowLengths | None = None
    needs: dict[str, Needs] = field(default_factory=dict)  # by the id of a model
    work: Work[None] | None = None

    @property
    def progress(self) -> tuple[int, bool]:
        """How many models have verdicts, and whether these are all."""
        return len(self.needs), self.work is not None and not self.work.is_under_way

    def is_pending(self, model_id: str) -> bool:
        """Return whether the verdicts of a model are still to come."""
        return not self.progress[1] and model_id not in self.needs

    def recommendation(self, model_id: str) -> tuple[MethodNeed | None, str]:
        """Return the method to begin with, and why; the smallest where nothing fits, none while its memory is unknown.

        LoRA learns as well as full fine-tuning at the sizes of most datasets (Schulman et al. 2025, "LoRA Without Regret"), and 16 bits are
        faster than four: four bits are for what does not fit otherwise.
        """
        needs = {need.method: need for need in self.needs.get(model_id, ()) if need.needed_bytes is not None}
        first, second, _ = (needs.get(method) for method in METHODS_JUDGED)
        if first is None or first.verdict == "fits" or second is None:
            return first or second, "16-bit weights fit" if first is not None and first.verdict == "fits" else ""
        larger = f"{first.method} needs {gib(first.needed_bytes or 0)} GiB"
        return second, larger if second.verdict != "does_not_fit" else f"{larger}; choose a smaller model"


DOWNLOAD = "own"  # the key of the one download at a time
MakeJob = Callable[[LoratoryHome, private_hub.PrivateKind, str, str | None, SecretStr], Job[private_hub.PrivateCopy]]


@dataclass(frozen=True)
class OwnDownloads:
    """Models or datasets that a person downloads from the Hub with tokens of their own; `job` makes a download."""

    runs: RunStore  # of the person; downloads go to its home
    kind: private_hub.PrivateKind
    job: MakeJob = private_hub.PrivateDownload
    downloading: BackgroundWork[private_hub.PrivateCopy] = field(
        default_factory=lambda: BackgroundWork(describe_download), kw_only=True
    )

    def start(self, name: str, revision: str | None, token: SecretStr) -> Work[private_hub.PrivateCopy]:
        """Download what has that id on the Hub; the token serves this one download.

        Raises:
            ModelError: If that cannot be a model on the Hub.
            DatasetError: If that cannot be a dataset on the Hub.
            RunError: If another is being downloaded.
        """
        hub_id = private_hub.require_private_id(self.kind, name, revision)
        job = self.job(self.runs.home, self.kind, hub_id, revision, token)
        return self.downloading.start(DOWNLOAD, f"A download of a {self.kind}", job)

    def list(self) -> list[private_hub.PrivateCopy]:
        """Return what the person has."""
        return private_hub.list_private(self.runs.home, self.kind)

    def remove(self, hub_id: str) -> None:
        """Remove one of them that nothing needs.

        Raises:
            ModelError: If that model is not there, or is needed.
            DatasetError: If that dataset is not there, or a run needs it.
            StorageError: If its files cannot be removed.
        """
        in_use = models_needed_by(self.runs) if self.kind == "model" else self._sources_in_use()
        private_hub.remove_private(self.runs.home, self.kind, hub_id, in_use)

    def _sources_in_use(self) -> set[str]:
        sources: set[str] = set()
        for run in self.runs.list():
            with suppress(EngineError):  # one that cannot be read needs nothing
                if not run.folder.read_state().is_final:
                    dataset = run.folder.read_config().dataset
                    sources |= {dataset.source, *dataset.mix}
        return sources
