"""The origin of a run: `provenance.json`, the base that it was trained on, and the adapter that it starts from."""

import contextlib
import platform
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel

from loratory.engine.config.objectives import objective_of, preference_name
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, EngineError, Problem
from loratory.engine.files import read_model, resolve_inside
from loratory.engine.hardware.libraries import library_version
from loratory.engine.memory.device_need import DeviceNeed
from loratory.engine.models.fingerprint import WeightsFile
from loratory.engine.paths import AllowedPaths, LoratoryHome, typed_path
from loratory.engine.runs.history.events import BaseWeightsData, parse_event
from loratory.engine.runs.history.log import read_lines
from loratory.engine.runs.history.run_history import RunHistory
from loratory.engine.runs.names import last_part
from loratory.engine.runs.run import RUN_ID, RunFolder

# What can change a result; versions are read from package metadata, so none of them is imported here.
_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "tokenizers")


PeakKind = Literal["allocated", "reserved", "process"]


class MemoryFigures(BaseModel, frozen=True):
    """Bytes at the peak; None where the device has no such figure, or it is unknown."""

    allocated_bytes: int | None = None  # tensors alone
    reserved_bytes: int | None = None  # what PyTorch's allocator holds for them
    process_bytes: int | None = None  # all that the process takes: of the GPU on CUDA, of RAM on a processor

    def bytes_of(self, kind: PeakKind) -> int | None:
        """Return one of them; None if it is unknown, or there was nothing to count."""
        figure: int | None = getattr(self, f"{kind}_bytes")
        return figure or None

    @property
    def of_run(self) -> int | None:
        """The memory of a run for lists: the allocator's on a GPU, the process's on a CPU."""
        return self.bytes_of("reserved") or self.bytes_of("process")

    @property
    def of_step(self) -> int | None:
        """The counterpart of the memory that each step reports: tensors on a GPU, the process on a processor."""
        return self.bytes_of("allocated") or self.of_run


def predicted_figures(need: DeviceNeed, device_kind: Literal["cuda", "mps", "cpu"]) -> MemoryFigures:
    """Return those figures of an estimate that a run on such a device will be measured by."""
    if device_kind == "cpu":
        return MemoryFigures(process_bytes=need.expected_bytes)
    if device_kind == "mps":  # its driver reports what PyTorch holds, and no peak of tensors
        return MemoryFigures(reserved_bytes=need.reserved_bytes)
    return MemoryFigures(
        allocated_bytes=need.allocated_bytes, reserved_bytes=need.reserved_bytes, process_bytes=need.expected_bytes
    )


def measured_figures(history: RunHistory) -> MemoryFigures:
    """Return the measured memory of a worker, as far as it could report it.

    It reports peaks after the first step and at its end; a process that grows between shows in the steps.
    """
    memory = history.memory
    if memory is None:
        return MemoryFigures()
    if memory.peak_reserved_bytes is None:
        return MemoryFigures(
            process_bytes=max(memory.peak_process_bytes or 0, history.steps.highest("memory_bytes") or 0)
        )
    return MemoryFigures(
        allocated_bytes=memory.peak_allocated_bytes,
        reserved_bytes=memory.peak_reserved_bytes,
        process_bytes=memory.peak_device_process_bytes,
    )


class Peak(NamedTuple):
    """One figure of a run's memory, predicted and measured."""

    kind: PeakKind
    predicted_bytes: int | None
    measured_bytes: int | None

    @property
    def difference(self) -> float | None:
        """Of the measured from the predicted, relative; positive where it took more."""
        if self.predicted_bytes is None or self.measured_bytes is None:
            return None
        return self.measured_bytes / self.predicted_bytes - 1


def compare_peaks(predicted: MemoryFigures, history: RunHistory) -> tuple[Peak, ...]:
    """Return every figure that was predicted or measured."""
    figures = measured_figures(history)
    peaks = (Peak(kind, predicted.bytes_of(kind), figures.bytes_of(kind)) for kind in get_args(PeakKind))
    return tuple(peak for peak in peaks if peak.predicted_bytes is not None or peak.measured_bytes is not None)


class Provenance(BaseModel, frozen=True):
    """Facts about the start of a run, written once in addition to the configuration.

    It repeats what lists show of the configuration, so they need not read thousands of YAML files.
    """

    created: float = 0.0  # seconds since the epoch
    title: str = ""
    method: str = ""
    objective: str = ""  # of preferences; empty for supervised fine-tuning
    model: str = ""
    dataset: str = ""
    held_out: str = ""  # the settings, besides model and data, on which a held-out loss depends
    key: str | None = None  # of the start request; the same key never starts a second run
    loratory: str = ""
    python: str = ""
    platform: str = ""
    libraries: dict[str, str] = {}
    model_source: str | None = None  # what the configured model name meant: Hub id or folder name
    dataset_fingerprint: str | None = None  # sha256 of what the source held
    predicted_bytes: int | None = None  # predicted memory of the process; what the queue waits for
    predicted_on: dict[str, int] = {}  # the same by name of a device, where `auto` may choose among GPUs that differ
    predicted_memory: MemoryFigures = MemoryFigures()  # all predicted figures that will be measured
    open_settings: tuple[str, ...] = ()  # that were not given: defaults that followed the rest, also in a copy
    copied_from: str | None = None  # run whose configuration this one started from
    merged_from: dict[str, float] = {}  # the weights of the runs whose adapters were merged into this one
    merge_method: str = ""
    sweep: str = ""  # id that the runs of one sweep share
    swept: dict[str, str] = {}  # values by setting in which they differ, as they were typed
    person: str = ""  # in a lab, who started it: the worker reads this person's files and the lab's alone

    @property
    def origin_words(self) -> str:
        """The runs of which this one was made; empty for one that was trained."""
        parts = " and ".join(f"{run_id} ({weight:g})" for run_id, weight in self.merged_from.items())
        return f"{parts} by {self.merge_method}" if parts else ""


def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that can change a result."""
    return {name: version for name in _LIBRARIES if (version := library_version(name)) is not None}


def environment_facts() -> dict[str, object]:
    """Return the fields of `Provenance` that describe this installation."""
    return {
        "loratory": library_version("loratory") or "",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "libraries": library_versions(),
    }


def describe_config(config: RunConfig) -> dict[str, object]:
    """Return the fields of `Provenance` that repeat the configuration."""
    training, data = config.training, config.dataset
    summary = objective_of(config).summary(training)
    held_out = (summary, data.eval_fraction, data.train_on, training.seed, training.max_length)
    return {
        "title": run_title(config),
        "method": config.method_name,
        "objective": preference_name(config),
        "model": config.model.id,
        "dataset": config.dataset.source,
        "held_out": " ".join(map(str, held_out)),
    }


def run_title(config: RunConfig) -> str:
    """Return the name of a run, or one made of model, method and data."""
    if config.run.name:
        return config.run.name
    method = ", ".join(filter(None, (config.method_name, preference_name(config))))
    return f"{last_part(config.model.id)} · {method} · {last_part(config.dataset.source)}"


def read_provenance(folder: RunFolder) -> Provenance:
    """Load it; where the file is missing or unreadable, nothing is known."""
    return read_model(folder.provenance, Provenance) or Provenance()


def trained_base(folder: RunFolder) -> tuple[WeightsFile, ...]:
    """Return the weights that the newest attempt was trained on, as its log has them; empty for a run without a record."""
    for line in reversed(read_lines(folder.events).lines):
        event = parse_event(line) if b'"base_weights"' in line else None
        if event is not None and isinstance(event.data, BaseWeightsData):
            return event.data.files
    return ()


def home_of_run(folder: RunFolder) -> LoratoryHome:
    """Return the home of a run, <home>/runs/<owner>/<run>; in a lab, as the person has it who started the run."""
    home, person = LoratoryHome(folder.path.parents[2]), read_provenance(folder).person
    return home.for_person(person) if person else home


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def find_warm_start(text: str, runs: Path, home: LoratoryHome | None = None) -> Path:
    """Return the folder of an adapter, from a run's id in `runs`, a run's folder, or the adapter's folder.

    In a lab, the person whose home it is must be allowed to name that folder.

    Raises:
        ConfigError: If there is no adapter.
    """
    allowed = AllowedPaths.for_home(home) if home is not None else None
    path = typed_path(text) if allowed is None or RUN_ID.fullmatch(text) else allowed.read(text)
    place = resolve_inside(runs, text) if RUN_ID.match(text) else path
    with contextlib.suppress(OSError, ValueError):  # names that no file can have
        for folder in (place, place / "adapter"):
            if (folder / ADAPTER_CONFIG).is_file() and (folder / ADAPTER_WEIGHTS).is_file():
                return folder
    message = f"{text[:100]} holds no adapter; give a finished run's id, or a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}."
    raise ConfigError([Problem("adapter.warm_start", message)])


def start_of(config: RunConfig, runs: Path, home: LoratoryHome | None = None) -> Path | None:
    """Return the run, or else the adapter's folder, that a run of `runs` started from.

    None for a run with a new adapter, and where that is gone or not allowed.
    """
    if config.adapter.warm_start is None:
        return None
    with contextlib.suppress(EngineError, OSError):
        folder = find_warm_start(config.adapter.warm_start, runs, home).resolve()
        return folder.parent if RUN_ID.fullmatch(folder.parent.name) else folder
    return None
