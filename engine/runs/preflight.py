"""What can be known before a run starts: whatever cannot work is refused here, while nothing has been made yet."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from engine.config.dataset import DatasetConfig
from engine.config.model import ModelConfig
from engine.config.pairs import pair_problems
from engine.config.run import RunConfig
from engine.data.report import CheckProgress, DatasetReport
from engine.errors import ConfigError, DatasetError, DeviceError, MemoryUnknownError, Problem
from engine.hardware.device import Device
from engine.hardware.device_problems import device_problems
from engine.hardware.devices import device_options, first_that_fits, list_devices
from engine.hardware.lease import lease_name
from engine.memory.allocator import DeviceNeed
from engine.memory.estimate import GIB, Estimator
from engine.memory.run_workload import workload_of_run
from engine.models.folder import ModelPart
from engine.models.progress import ModelProgress
from engine.models.shape import ModelShape
from engine.models.source import ModelSource, resolve_model
from engine.paths import LoratoryHome
from engine.runs.absolute_paths import with_absolute_paths
from engine.runs.peaks import predicted_figures
from engine.runs.provenance import Provenance, environment_facts

_log = logging.getLogger(__name__)

OnProgress = Callable[[str], None]  # told in words what is being checked


class RunInspector(Protocol):
    """The part of `engine.inspector.session.Inspector` that a start needs."""

    def module_inventory(self, model: ModelConfig) -> ModelShape:
        """The modules of a model and their sizes."""

    def check(
        self,
        dataset: DatasetConfig,
        model: ModelConfig | None = None,
        max_length: int = 1024,
        *,
        seed: int = 42,
        on_progress: Callable[[CheckProgress], None] | None = None,
    ) -> DatasetReport:
        """One pass over every row."""


class ResolveModel(Protocol):
    """The part of `engine.models.source.resolve_model` that a start needs."""

    def __call__(
        self,
        config: ModelConfig,
        home: LoratoryHome,
        on_progress: Callable[[ModelProgress], None] = ...,
        part: ModelPart = ...,
    ) -> ModelSource:
        """Make a part of a model available."""


class CheckedRun(NamedTuple):
    """A configuration that can work, pinned to what it meant when it was checked."""

    config: RunConfig
    provenance: Provenance
    report: DatasetReport


class Preflight:
    """Checks a run before it starts.

    Args:
        home: The Loratory home.
        inspector: Knows tokenizers and model modules.
        devices: Lists the devices of this machine.
        resolve: Makes a model available.
    """

    def __init__(
        self,
        home: LoratoryHome,
        inspector: RunInspector,
        devices: Callable[[], Sequence[Device]] = list_devices,
        resolve: ResolveModel = resolve_model,
    ) -> None:
        self._home = home
        self._inspector = inspector
        self._devices = devices
        self._resolve = resolve

    def check(self, config: RunConfig, on_progress: OnProgress = lambda _: None) -> CheckedRun:
        """Refuse what cannot work; pin the model's revision, the dataset's fingerprint, whole paths and the libraries' versions.

        Raises:
            ConfigError: Lists every setting that cannot work, alone, together, or on the device.
            DeviceError: If the device is not there, or smaller than the run by any estimate.
            ModelError: If the model cannot be found, reached or read.
            DatasetError: If the dataset cannot be read, or teaches nothing.
        """
        config = with_absolute_paths(config)
        options = device_options(tuple(self._devices()), config.run)
        devices = options[0]
        problems = [*pair_problems(config), *machine_problems(config, devices)]
        if problems:
            raise ConfigError(problems)
        on_progress("Looking for the model.")
        source = self._resolve(
            config.model, self._home, lambda progress: on_progress(progress.message), ModelPart.TOKENIZER
        )
        if source.revision is not None:
            config = config.model_copy(update={"model": config.model.model_copy(update={"revision": source.revision})})
        on_progress("Measuring the model.")
        predicted = self._predict(config, options)
        on_progress("Checking the data.")
        report = self._inspector.check(
            config.dataset,
            config.model,
            config.training.max_length,
            seed=config.training.seed,
            on_progress=lambda progress: on_progress(f"Checking the data: {progress.rows:,} rows."),
        )
        _refuse_data_without_lessons(config, report)
        return CheckedRun(
            config,
            Provenance.model_validate(
                {
                    **environment_facts(),
                    "model_source": source.hub_id or source.name,
                    "dataset_fingerprint": report.fingerprint or None,
                    **_predicted_facts(predicted),
                }
            ),
            report,
        )

    def _predict(self, config: RunConfig, options: Sequence[tuple[Device, ...]]) -> "Prediction | None":
        shape = self._inspector.module_inventory(config.model)
        try:
            return predict(shape, config, options)
        except MemoryUnknownError as error:
            # It may train all the same; what is lost is only the word on how much memory it takes.
            _log.warning("%s: %s", config.model.id, error.what)
            return None


class Prediction(NamedTuple):
    """What a run needs where the queue would start it, were all devices free of other runs."""

    devices: tuple[Device, ...]
    need: DeviceNeed  # on that of them where it is the most
    by_name: dict[str, int]  # bytes on each kind of device that it may get


def predict(shape: ModelShape, config: RunConfig, options: Sequence[tuple[Device, ...]]) -> Prediction:
    """Return what a run needs on the first of its options that has room, by the rule of the queue.

    Args:
        shape: Of the model.
        config: The run.
        options: As `device_options` gives them.

    Raises:
        ConfigError: If there are more devices than layers to spread over them.
        DeviceError: If each option is smaller than what the run needs there.
        MemoryUnknownError: If the model's layers are like no others.
    """
    by_option = {option: needs_of(shape, config, option) for option in options}
    by_name: dict[str, int] = {}
    too_small: dict[tuple[Device, ...], DeviceError] = {}
    for option, needs in by_option.items():
        for device, need in zip(option, needs, strict=True):
            by_name[device.name] = max(need.expected_bytes, by_name.get(device.name, 0))
            if need.expected_bytes > device.total_bytes:
                too_small.setdefault(option, _too_small(config, device, need))
    possible = [option for option in options if option not in too_small]
    if not possible:
        raise too_small[max(options, key=lambda option: option[0].total_bytes)]
    chosen = first_that_fits(possible, lambda device: by_name[device.name]) or possible[0]
    return Prediction(chosen, max(by_option[chosen], key=lambda need: need.expected_bytes), by_name)


def most_likely(shape: ModelShape, config: RunConfig, options: Sequence[tuple[Device, ...]]) -> tuple[Device, ...]:
    """Return the devices that the queue would give a run; the best where it fits none, or its needs are unknown."""
    if len(options) == 1:
        return options[0]
    try:
        return predict(shape, config, options).devices
    except (DeviceError, MemoryUnknownError):
        return options[0]


def _too_small(config: RunConfig, device: Device, need: DeviceNeed) -> DeviceError:
    where = f" on {lease_name(device)}" if config.run.spread_over > 1 else ""
    return DeviceError(
        f"This run needs about {need.expected_bytes / GIB:.1f} GiB{where}, and {device.name} has "
        f"{device.total_bytes / GIB:.1f} GiB in all.",
        "See `loratory estimate` for what would make it fit: often nf4, shorter rows or checkpointing.",
    )


def _predicted_facts(predicted: Prediction | None) -> dict[str, object]:
    """The fields of `Provenance` that hold it."""
    if predicted is None:
        return {}
    return {
        "predicted_bytes": predicted.need.expected_bytes,
        "predicted_on": predicted.by_name if len(predicted.by_name) > 1 else {},
        "predicted_memory": predicted_figures(predicted.need, predicted.devices[0].kind),
    }


def needs_of(shape: ModelShape, config: RunConfig, devices: Sequence[Device]) -> tuple[DeviceNeed, ...]:
    """What is expected on each of the run's devices, in order.

    Raises:
        ConfigError: If there are more devices than layers to spread over them.
        MemoryUnknownError: If the model's layers are like no others.
    """
    if config.run.spread_over == 1:
        return tuple(Estimator(shape, device).need(config) for device in devices)
    return Estimator(shape, devices[0]).spread_needs(workload_of_run(shape, config, devices[0]), len(devices))


def machine_problems(config: RunConfig, devices: Sequence[Device]) -> list[Problem]:
    """Settings that are fine by themselves, and that this machine cannot run; cheap enough for every look at a form.

    Args:
        config: The run.
        devices: Those that the run would take; at least one.
    """
    return [*device_problems(config, devices[0]), *_idle_devices(config, devices), *_absent_trackers(config)]


def _idle_devices(config: RunConfig, devices: Sequence[Device]) -> list[Problem]:
    """One process holds a whole model on one device; others would be held for nothing."""
    if len(devices) < 2 or config.run.launcher != "local" or config.run.spread_over > 1:
        return []
    message = (
        f"it names {len(devices)} GPUs, and one process trains a whole model on one. Set run.launcher to accelerate for a "
        "model on each and rows divided among them, set run.device_map to balanced for one model divided among them, or "
        "name one."
    )
    return [Problem("run.devices", message)]


def _absent_trackers(config: RunConfig) -> list[Problem]:
    return [
        Problem("training.report_to", f"{name} is not installed here; `pip install {name}` brings it.")
        for name in config.training.report_to
        if importlib.util.find_spec(name) is None
    ]


def _refuse_data_without_lessons(config: RunConfig, report: DatasetReport) -> None:
    if report.trained_tokens == 0:
        raise DatasetError(
            f"No token of {config.dataset.source} would be trained on (train_on is {config.dataset.train_on}, "
            f"max_length {config.training.max_length:,}).",
            "Raise max_length, or choose another part to learn from.",
        )
    if report.train_rows == 0:
        raise DatasetError(
            f"All {report.kept:,} usable rows of {config.dataset.source} are held out, so that nothing is left to train on.",
            "Lower dataset.eval_fraction, or add rows.",
        )
