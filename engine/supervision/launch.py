"""Check a run, then put it into the queue."""

import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from loratory.engine.config.constraints import constraint_problems
from loratory.engine.config.derived_defaults import apply_derived_defaults, is_given, open_settings
from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import ModelConfig, RunConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.contract import DatasetReport, RowLengths
from loratory.engine.data.formats import require_rows_of
from loratory.engine.data.workshop.sets import pinned
from loratory.engine.errors import ConfigError, DatasetError, EngineError, MemoryUnknownError, Problem
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_problems, list_devices
from loratory.engine.inspector.session import Inspector
from loratory.engine.lab.rules import (
    admission,
    lab_problems,
    may_be_path,
    require_admission,
    with_allowed_paths,
    within_guest_limit,
)
from loratory.engine.models.folder import ModelPart
from loratory.engine.models.prepared import ModelProgress
from loratory.engine.models.shape import ModelShape
from loratory.engine.models.source import ModelSource, resolve_model
from loratory.engine.paths import LoratoryHome, local_owner, typed_path
from loratory.engine.places import places_at
from loratory.engine.places.run_place import Flavors, Options
from loratory.engine.runs.prediction import Prediction, predict
from loratory.engine.runs.projects import with_project_tests
from loratory.engine.runs.provenance import Provenance, environment_facts, find_warm_start, predicted_figures
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore
from loratory.engine.runs.summary import RunIndex
from loratory.engine.runs.sweep import sweep_origins
from loratory.engine.scoring.scorers.judge import key_environment

_log = logging.getLogger(__name__)

OnProgress = Callable[[str], None]  # called with a sentence on what is being checked
ResolveModel = Callable[[ModelConfig, LoratoryHome, Callable[[ModelProgress], None], ModelPart], ModelSource]


class CheckedRun(NamedTuple):
    """A checked configuration, pinned to what it meant at the check."""

    config: RunConfig
    provenance: Provenance
    report: DatasetReport


class Preflight:
    """Checks a run before it starts."""

    def __init__(
        self,
        home: LoratoryHome,
        inspector: Inspector,
        devices: Callable[[], Sequence[Device]] = list_devices,
        resolve: ResolveModel = resolve_model,
        flavors: Flavors | None = None,
    ) -> None:
        self._home = home
        self._inspector = inspector
        self._resolve = resolve
        self._store = store = RunStore(home, home.owner or local_owner())
        # Earlier runs estimate the speed; not all of them if reading takes long.
        self._places = places_at(home, devices, flavors, lambda: RunIndex(store).glance(patience_seconds=2.0).rows)

    def check(
        self,
        config: RunConfig,
        on_progress: OnProgress = lambda _: None,
        preview: DatasetReport | None = None,
    ) -> CheckedRun:
        """Check a configuration; pin the model's revision, versions of sets, the data's fingerprint, absolute paths and library versions.

        Raises:
            ConfigError: Lists every setting that cannot work, alone, together, or on the device.
            DeviceError: If the device is not there, or smaller than the run by any estimate.
            ModelError: If the model cannot be found, reached or read.
            DatasetError: If the dataset cannot be read, is not that of `preview`, or has no trained tokens.
        """
        config = with_project_tests(config, self._store)
        if self._home.owner:
            if lab_rule_problems := lab_problems(config, self._home):
                raise ConfigError(lab_rule_problems)
            config = with_allowed_paths(config, self._home)
        else:
            config = with_absolute_paths(config)
        config = config.with_names(lambda _, text: pinned(text, self._home))
        place = self._places[config.run.where]
        options = place.options(config)
        problems = [*constraint_problems(config), *machine_problems(config, options[0])]
        if problems:
            raise ConfigError(problems)
        if config.adapter.warm_start is not None:
            find_warm_start(config.adapter.warm_start, self._store.folder, self._home)
        key_environment(config.training.rewards if objective_of(config).samples_answers else ())
        on_progress("Looking for the model.")
        source = self._resolve(
            config.model, self._home, lambda progress: on_progress(progress.message), ModelPart.TOKENIZER
        )
        if source.revision is not None:
            config = config.model_copy(update={"model": config.model.model_copy(update={"revision": source.revision})})
        on_progress("Measuring the model.")
        shape = self._inspector.module_inventory(config.model)
        on_progress("Checking the data.")
        report = self._inspector.check(
            config.dataset,
            config.model,
            counted_length(config),
            seed=config.training.seed,
            vision=config.vision.pixels,
            on_progress=lambda progress: on_progress(f"Checking the data: {progress.rows:,} rows."),
        )
        if preview is not None:
            _require_previewed_data(preview, report, config)
        if report.row_lengths is not None:  # a start may come before a page has counted them
            config = apply_derived_defaults(config, report.row_lengths.known)
            report = report.at_max_length(config.training.max_length) or report
            if problems := constraint_problems(config):  # of the objective that suits the rows
                raise ConfigError(problems)
        require_rows_of(objective_of(config), [part.format for part in report.parts], config.dataset)
        _require_trained_tokens(config, report)
        options = place.suitable(options, config, shape, report.row_lengths)
        prediction = _predict(shape, config, options, report.row_lengths)
        config = place.complete(within_guest_limit(config, report, self._home), options[0][0], shape, report)
        facts = {
            **environment_facts(),
            "model_source": source.hub_id or source.name,
            "dataset_fingerprint": report.fingerprint or None,
            "open_settings": open_settings(config),
            "person": self._home.owner,
        }
        if prediction is not None:
            facts |= {
                "predicted_bytes": prediction.need.expected_bytes,
                "predicted_on": prediction.by_name if len(prediction.by_name) > 1 else {},
                "predicted_memory": predicted_figures(prediction.need, prediction.devices[0].kind),
            }
        return CheckedRun(config, Provenance.model_validate(facts), report)


def counted_length(config: RunConfig) -> int:
    """Return the `max_length` at which rows are counted: the default where what suits the rows was not known yet, or is unset."""
    is_set = is_given(config, "training.max_length")
    return config.training.max_length if is_set else TrainingConfig().max_length


def _predict(shape: ModelShape, config: RunConfig, options: Options, rows: RowLengths | None) -> Prediction | None:
    try:
        return predict(shape, config, options, rows)
    except MemoryUnknownError as error:
        # It may train anyway, only without an estimate of its memory.
        _log.warning("%s: %s", config.model.id, error.what)
        return None
    except EngineError:
        raise
    except Exception:  # a mistake in the estimate must not block training
        _log.exception("the memory of %s could not be estimated", config.model.id)
        return None


def machine_problems(config: RunConfig, devices: Sequence[Device]) -> Iterator[Problem]:
    """Yield problems of valid settings that this machine cannot run; fast enough for every update of a form."""
    yield from device_problems(config, devices[0])
    # One process trains a whole model on one device; more devices would be unused.
    if len(devices) > 1 and config.run.launcher == "local" and config.run.spread_over == 1:
        message = (
            f"it names {len(devices)} GPUs, and one process trains a whole model on one. Set run.launcher to accelerate "
            "for a model on each and rows divided among them, and run.fsdp to full_shard as well for one model shared among "
            "them; set run.device_map to balanced to split its layers; or name one."
        )
        yield Problem("run.devices", message)
    if objective_of(config).samples_answers and config.training.uses_vllm:
        if devices[0].kind != "cuda":
            yield Problem("training.generation", "vllm needs a CUDA device here; set own.")
        elif importlib.util.find_spec("vllm") is None:
            yield Problem("training.generation", "vllm is not installed here; `pip install vllm` brings it.")
    for name in config.training.report_to:
        if importlib.util.find_spec(name) is None:
            yield Problem("training.report_to", f"{name} is not installed here; `pip install {name}` brings it.")


def _require_previewed_data(preview: DatasetReport, report: DatasetReport, config: RunConfig) -> None:
    # Rows of another max_length may differ in what is kept, and a file that was only copied again has the same ones.
    if preview.source_fingerprint != report.source_fingerprint and preview.fingerprint != report.fingerprint:
        raise DatasetError(
            f"The file changed since the preview: {config.dataset.source} had {preview.rows:,} rows and has "
            f"{report.rows:,} now.",
            "Look at its rows on the Data tab, then start again.",
        )


def _require_trained_tokens(config: RunConfig, report: DatasetReport) -> None:
    if report.trained_tokens == 0 and not objective_of(config).samples_answers:
        raise DatasetError(
            f"No token of {config.dataset.source} would be trained on (train_on is {config.dataset.train_on}, "
            f"max_length {config.training.max_length:,}).",
            "Raise max_length, or change train_on.",
        )
    if report.train_rows == 0:
        raise DatasetError(
            f"All {report.kept:,} usable rows of {config.dataset.source} are held out; nothing is left to train on.",
            "Lower dataset.eval_fraction, or add rows.",
        )


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with absolute paths for all files and folders of this machine.

    Names of samples, of the catalogue and on the Hub stay as they are, and so does what is not there: its refusal shall
    repeat what was typed.
    """
    return config.with_names(lambda field, text: _absolute(text) if may_be_path(field, text) else text)


def _absolute(text: str) -> str:
    try:
        path = typed_path(text.strip())
        if not path.exists():
            return text
        # A link keeps its name, unless going up leads through it.
        return str(path.resolve() if ".." in path.parts else path.absolute())
    except (OSError, RuntimeError, ValueError):  # a name that no file can have; ~name of no user
        return text


class Launcher:
    """Puts runs into the queue."""

    def __init__(self, store: RunStore, preflight: Preflight) -> None:
        self._store = store
        self._preflight = preflight

    def start(
        self,
        config: RunConfig,
        key: str | None = None,
        *,
        copied_from: str | None = None,
        on_progress: OnProgress = lambda _: None,
        preview: DatasetReport | None = None,
    ) -> Run:
        """Check a configuration and put it into the queue; its supervisor starts it when its device is free.

        Args:
            key: Names this request. A request that comes twice, by a double click, from two tabs or after a lost
                connection, starts one run; the later calls return it.
            copied_from: Id of the run whose configuration this one began as.
            preview: The report of the data that the person has seen, if any.

        Raises:
            EngineError: As `Preflight.check` does.
            RunError: If the person has as many waiting runs as the lab allows.
            StorageError: If the run's folder cannot be made, or the person has no disk space left.
        """
        return self._queue([(config, key)], [{"copied_from": copied_from}], lambda _: on_progress, preview)[0]

    def start_all(
        self,
        configs: Sequence[RunConfig],
        key: str,
        *,
        copied_from: str | None = None,
        on_progress: OnProgress = lambda _: None,
        preview: DatasetReport | None = None,
    ) -> list[Run]:
        """Queue the runs of a sweep: all of them are checked before the first one is queued.

        The arguments are those of `start`; the runs shall run in the order of `configs`.

        Raises:
            EngineError: As `start` does; then none of them was queued.
        """
        keyed_configs = [(config, f"{key}/{number}") for number, config in enumerate(configs)]

        def progress_of(number: int) -> OnProgress:
            return lambda text: on_progress(f"Run {number + 1} of {len(configs)}: {text}")

        origins = [{"copied_from": copied_from, **origin} for origin in sweep_origins(configs, key)]
        return self._queue(keyed_configs, origins, progress_of, preview)

    def _queue(
        self,
        configs: Sequence[tuple[RunConfig, str | None]],
        origins: Sequence[Mapping[str, object]],
        progress_of: Callable[[int], OnProgress],
        preview: DatasetReport | None,
    ) -> list[Run]:
        """Check and queue configurations, except those whose key has a run already."""
        store = self._store
        runs = {number: run for number, (_, key) in enumerate(configs) if (run := self._find(key)) is not None}
        missing = [number for number in range(len(configs)) if number not in runs]
        require_admission(store.home, store.owner, len(missing))
        checked = {n: self._preflight.check(configs[n][0], progress_of(n), preview) for n in missing}
        # The same request may have come twice: its own run in the queue does not count.
        runs |= {number: run for number in missing if (run := self._find(configs[number][1])) is not None}
        with admission(store.home, store.owner, len(configs) - len(runs)):
            for number, (config, provenance, report) in checked.items():
                if number not in runs:
                    facts = provenance.model_copy(update=origins[number])
                    runs[number] = store.create(config, facts, configs[number][1], report, names_run=True)
        return [runs[number] for number in range(len(configs))]

    def _find(self, key: str | None) -> Run | None:
        return None if key is None else self._store.find_by_key(key)
