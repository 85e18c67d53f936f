"""One reading of the form: a configuration or what is missing, its problems and its memory."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from loratory.engine.config.derived_defaults import SETTINGS, DatasetKind, DerivedDefault, derive_defaults
from loratory.engine.config.load import config_from_mapping, parse_partial_config
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.objectives import OBJECTIVES, SUPERVISED, Objective, RowKind, objective_of
from loratory.engine.config.run import RunConfig, RunSection
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.formats import FORMATS, require_rows_of
from loratory.engine.errors import ConfigError, DatasetError, EngineError, Problem
from loratory.engine.hardware.device import Device, KnownDevice
from loratory.engine.hardware.devices import device_problems
from loratory.engine.lab.rules import lab_problems
from loratory.engine.memory.estimate import GIB, MemoryEstimate, estimate_memory
from loratory.engine.models.families.base import ImageFamily, PixelSetting
from loratory.engine.models.families.registry import family_of
from loratory.engine.models.shape import ModelShape
from loratory.engine.places import PLACES
from loratory.engine.places.run_place import ThisMachine
from loratory.engine.runs.prediction import most_likely
from loratory.engine.supervision.launch import machine_problems
from loratory.ui.backend.background import as_engine_error
from loratory.ui.backend.dataset_checks import model_of, question_of
from loratory.ui.form import Form, field_of, setting_in
from loratory.ui.form_change import Sections

if TYPE_CHECKING:
    from loratory.ui.services import Services

# Shown as a next step, not as a problem.
_MISSING = {"model.id": "Choose a model.", "dataset.source": "Choose a dataset."}


@dataclass(frozen=True)
class DeviceMemory:
    """The memory of a draft on one device."""

    device: Device | None
    estimate: MemoryEstimate | None
    error: EngineError | None = None
    problems: tuple[Problem, ...] = ()  # settings that this device cannot run
    ceiling: MemoryEstimate | None = None  # with every row as long as max_length; None where `estimate` is that


@dataclass(frozen=True)
class Draft:
    """One reading of the form."""

    mapping: dict[str, dict[str, Any]]
    config: RunConfig | None  # None while something is missing or wrong
    # The same with a stand-in where only the dataset is missing: memory can be judged without it.
    memory_config: RunConfig | None
    missing: tuple[str, ...]
    problems: tuple[Problem, ...]  # also what this machine cannot run, of a config that another one could
    shape: ModelShape | None  # None until the model's modules are known
    device: Device | None
    gpus: tuple[int, ...]  # numbers of those of this machine
    estimate: MemoryEstimate | None  # of the chosen rows, where their lengths are known
    estimate_error: EngineError | None = None
    rows: RowLengths | None = None  # None until all rows of the dataset were read with the model's tokenizer
    kind: RowKind | None = None  # of the rows; None until the dataset was opened
    ceiling: MemoryEstimate | None = None  # with every row as long as max_length; None where `estimate` is that
    # Settings that a person did not give, and their defaults.
    derived_defaults: Mapping[str, DerivedDefault] = field(default_factory=dict)
    # On a device that is not here, where a person chose one. Whether the draft can start never depends on it.
    memory_elsewhere: DeviceMemory | None = None

    @property
    def device_memory(self) -> DeviceMemory:
        """The memory that panel, method table, catalogue and advice show: on the chosen device, else where it would run."""
        here = DeviceMemory(self.device, self.estimate, self.estimate_error, ceiling=self.ceiling)
        return self.memory_elsewhere or here

    @property
    def is_empty(self) -> bool:
        """Whether neither a model nor data is chosen."""
        return len(self.missing) == len(_MISSING)

    @property
    def objective(self) -> Objective:
        """What the draft optimizes."""
        return OBJECTIVES.get(str(self.mapping.get("training", {}).get("objective")), SUPERVISED)

    @property
    def image_family(self) -> ImageFamily | None:
        """The family of a model that takes images; None for other models, and until its modules are known."""
        return family_of({"model_type": self.shape.model_type}) if self.shape is not None else None

    def has_image_setting(self, name: str) -> bool:
        """Whether a setting, such as `vision.tower`, has a meaning for the model, or has a value that it cannot have."""
        family, setting = self.image_family, name.partition(".")[2]
        if family is None or setting not in get_args(PixelSetting):
            return family is not None
        return setting in family.settings or setting_in(self.mapping, name) is not None

    def is_unusable(self, setting: str) -> bool:
        """Whether the value of a setting, such as `model.id`, cannot be used for training."""
        return any(problem.field == setting for problem in self.problems)

    @property
    def _run(self) -> RunSection:
        return RunSection.model_construct(**self.mapping.get("run", {}))

    @property
    def where(self) -> str:
        """Where it would train, as `run.where` has it."""
        return self._run.where

    @property
    def place_words(self) -> str:
        """Where it would train and on which device, for people; the device only if it is known."""
        place = PLACES.get(self.where, ThisMachine).label
        if not self.is_elsewhere or self.device is None:
            return place
        return f"{place}: {self.device.name or 'GPU'}, {self.device.total_bytes / GIB:.1f} GiB"

    @property
    def is_elsewhere(self) -> bool:
        """Whether it would train on another machine; also known while a setting is invalid."""
        return self._run.is_elsewhere


def read_settings(services: "Services", form: Form, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return the form's values as a draft has them, without an estimate."""
    mapping = form.mapping(values)
    _widen_targets(mapping, shape_of(services, mapping))
    fill_derived_defaults(mapping, form.values_by_default(values), known_rows(services, mapping))
    return mapping


def fill_derived_defaults(
    mapping: dict[str, dict[str, Any]], names: Iterable[str], rows: DatasetKind | None
) -> dict[str, DerivedDefault]:
    """Fill in and return the unset settings' derived defaults; none if a setting has an invalid value."""
    open_ones = set(names)
    try:
        config = parse_partial_config(given_by_person(mapping, open_ones))
    except ValueError:
        return {}
    chosen = {name: default for name, default in derive_defaults(config, rows).items() if name in open_ones}
    for name, default in chosen.items():
        section, _, field = name.partition(".")
        mapping.setdefault(section, {})[field] = default.value
        if default.value is None:
            del mapping[section][field]
    return chosen


def given_by_person(mapping: Sections, open_ones: Container[str]) -> dict[str, dict[str, Any]]:
    """Return the settings without dependent defaults; one that was emptied gets its Field's default."""
    settings_given = {
        section: {field: value for field, value in settings.items() if f"{section}.{field}" not in open_ones}
        for section, settings in mapping.items()
    }
    for name in (name for name in SETTINGS if name not in open_ones):
        section, _, setting = name.partition(".")
        settings_given.setdefault(section, {}).setdefault(setting, field_of(name).default)
    return settings_given


def known_rows(services: "Services", mapping: Sections) -> DatasetKind | None:
    """Return the known facts about a draft's rows; None until its dataset was opened."""
    rows, kind = _rows_of(services, mapping)
    return rows.known if rows is not None else DatasetKind(kind=kind) if kind is not None else None


def _rows_of(services: "Services", mapping: Sections) -> tuple[RowLengths | None, RowKind | None]:
    question = question_of(mapping)
    if question is None:
        return None, None
    format_ = services.checks.format_of(question)
    return services.checks.row_lengths(question), FORMATS[format_].rows if format_ is not None else None


def read_draft(services: "Services", form: Form, values: Sequence[Any]) -> Draft:
    """Read the form; never raise for typed values, and never wait for another process."""
    mapping = form.mapping(values)
    missing = tuple(text for name, text in _MISSING.items() if not setting_in(mapping, name))
    shape = shape_of(services, mapping)
    target_problems = _widen_targets(mapping, shape)

    (rows, kind), facts = _rows_of(services, mapping), known_rows(services, mapping)
    defaults = fill_derived_defaults(mapping, form.values_by_default(values), facts)
    settings = given_by_person(mapping, defaults)  # the engine chooses the rest, again if rows are counted later
    config, problems = _check(settings, facts)
    if target_problems:
        config, problems = None, [*problems, *target_problems]
    memory_config = config or _without_dataset(settings, problems, facts)

    problems += _read_errors(services, mapping)
    if config is not None:
        problems += lab_problems(config, services.home)
    if memory_config is not None and (unfit := _unfit_objective(memory_config, kind)) is not None:
        problems, rows = [*problems, unfit], None  # the estimate assumes rows that fit the objective
    here = _memory_here(services, memory_config, shape, rows)
    problems += here.problems
    return Draft(
        mapping=mapping,
        config=config,
        memory_config=memory_config,
        missing=missing,
        problems=tuple(
            problem for problem in problems if problem.field not in _MISSING or setting_in(mapping, problem.field)
        ),
        shape=shape,
        device=here.device,
        gpus=tuple(device.index for device in services.devices() if device.kind == "cuda"),
        estimate=here.estimate,
        estimate_error=here.error,
        rows=rows,
        kind=kind,
        derived_defaults=defaults,
        ceiling=here.ceiling,
        memory_elsewhere=_memory_elsewhere(form.judged_device(values), memory_config, shape, rows),
    )


def _without_dataset(
    settings: Mapping[str, Any], problems: Sequence[Problem], facts: DatasetKind | None
) -> RunConfig | None:
    """Return the configuration with a stand-in for the dataset, if only that is missing: rows are as long as they may be."""
    if any(problem.field != "dataset.source" for problem in problems):
        return None
    config, _ = _check({**settings, "dataset": {**settings["dataset"], "source": "-"}}, facts)
    return config


def _read_errors(services: "Services", mapping: Sections) -> list[Problem]:
    """Return why the model, its tokenizer or the rows could not be read; the first reason, as nothing more is opened."""
    model, model_config, question = mapping["model"], model_of(mapping), question_of(mapping)
    errors = (
        ("model.id", services.shapes.trouble(str(model.get("id", "")), model.get("revision"))),
        ("model.id", services.tokenizers.trouble(model_config) if model_config is not None else None),
        ("dataset.source", services.checks.trouble(question) if question is not None else None),
    )
    return [Problem(field, f"{error.what} {error.fix}") for field, error in errors if error is not None][:1]


def _memory_here(
    services: "Services", config: RunConfig | None, shape: ModelShape | None, rows: RowLengths | None
) -> DeviceMemory:
    """Return the memory where the run would train, with what the device cannot run."""
    device: Device | None = None
    problems: tuple[Problem, ...] = ()
    if config is None:
        return DeviceMemory(device, None)
    try:
        place = services.place(config.run.where)
        options = place.options(config)
        if shape is not None:
            options = place.suitable(options, config, shape, rows)
        option = options[0] if shape is None else most_likely(shape, config, options, rows)
        device, problems = option[0], tuple(machine_problems(config, option))
        return _memory_on(device, config, shape, rows, problems)
    except Exception as error:
        return DeviceMemory(device, None, as_engine_error(error), problems)


def _memory_elsewhere(
    known_device: KnownDevice | None, config: RunConfig | None, shape: ModelShape | None, rows: RowLengths | None
) -> DeviceMemory | None:
    """Return the memory on a device that is not here; None where none is chosen."""
    if known_device is None:
        return None
    device = known_device.device()
    if config is None or shape is None:
        return DeviceMemory(device, None)
    try:
        return _memory_on(device, config, shape, rows, tuple(device_problems(config, device)))
    except Exception as error:
        return DeviceMemory(device, None, as_engine_error(error))


def _memory_on(
    device: Device, config: RunConfig, shape: ModelShape | None, rows: RowLengths | None, problems: tuple[Problem, ...]
) -> DeviceMemory:
    if shape is None:
        return DeviceMemory(device, None, problems=problems)
    estimate = estimate_memory(shape, config, device, rows)
    ceiling = estimate_memory(shape, config, device) if rows is not None else None
    return DeviceMemory(device, estimate, problems=problems, ceiling=ceiling)


def shape_of(services: "Services", mapping: Sections) -> ModelShape | None:
    """Return the modules of the draft's model; None until they are known."""
    model = mapping.get("model", {})
    return services.shapes.get(str(model.get("id", "")), model.get("revision"))


def _widen_targets(mapping: dict[str, dict[str, Any]], shape: ModelShape | None) -> list[Problem]:
    """Replace all ticked modules by all-linear, which fits any model; report a problem if none is ticked."""
    targets = mapping["adapter"].get("target_modules")
    if not isinstance(targets, list):
        return []
    if shape is None:
        if not targets:
            mapping["adapter"]["target_modules"] = "all-linear"
        return []
    names = set(shape.linear_names())
    method = METHODS.get(str(mapping["adapter"].get("method")))
    if set(targets) == names:
        mapping["adapter"]["target_modules"] = "all-linear"
    elif not targets and method is not None and method.adapts_layers:
        return [Problem("adapter.target_modules", "no layer gets an adapter; tick at least one.")]
    elif len(targets) == 1 and targets[0] not in names:
        mapping["adapter"]["target_modules"] = targets[0]  # a regular expression, carried as a single choice
    return []


def _check(mapping: Mapping[str, Any], rows: DatasetKind | None) -> tuple[RunConfig | None, list[Problem]]:
    try:
        return config_from_mapping(mapping, rows), []
    except ConfigError as error:
        return None, list(error.problems)


def _unfit_objective(config: RunConfig, kind: RowKind | None) -> Problem | None:
    formats = [format_.name for format_ in FORMATS.values() if format_.rows == kind][:1]
    try:
        require_rows_of(objective_of(config), formats, config.dataset)
    except DatasetError as error:
        return Problem("training.objective", f"does not fit the rows. {error.what} {error.fix}")
    return None
