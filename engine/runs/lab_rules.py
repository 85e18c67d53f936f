"""What people of a lab may train: their own files and the lab's, and limits for guests."""

from pathlib import Path

from engine.accounts.lab import read_settings
from engine.accounts.limits import LabLimits
from engine.config.run import RunConfig
from engine.data.contract import DatasetReport
from engine.data.hub import is_on_hub
from engine.data.source import SAMPLE_PREFIX
from engine.errors import EngineError, Problem, StorageError
from engine.models.catalog import find_in_catalog
from engine.models.source import is_hub_id
from engine.paths import REFUSAL, AllowedPaths, LoratoryHome
from engine.runs.plan import plan_run
from engine.runs.store import RUN_ID, RunStore

# It would report with a login of the server's account.
_REMOTE_TRACKERS = ("wandb",)
_OUTSIDE = f"{REFUSAL[0][0].lower()}{REFUSAL[0][1:].rstrip('.')}; {REFUSAL[1][0].lower()}{REFUSAL[1][1:]}"


def lab_problems(config: RunConfig, home: LoratoryHome) -> list[Problem]:
    """Return the settings that this person may not use; none without accounts. Opens no file."""
    allowed = AllowedPaths.of(home)
    if allowed is None:
        return []
    paths = [
        Problem(field, _OUTSIDE)
        for field, text in config.names
        if _is_path(field, text) and not _is_allowed(allowed, text)
    ]
    if (start := config.adapter.warm_start) is not None and RUN_ID.fullmatch(start):
        paths += (
            [] if start in RunStore(home, home.owner).ids() else [Problem("adapter.warm_start", "no run of yours.")]
        )
    remote = [
        Problem("training.report_to", f"{name} needs a login, and the lab's own is not for its people.")
        for name in config.training.report_to
        if name in _REMOTE_TRACKERS
    ]
    elsewhere = []
    if config.run.is_elsewhere and home.is_guest:
        elsewhere.append(Problem("run.where", "a guest trains on the lab's own devices; set local."))
    return [
        *paths,
        *remote,
        *elsewhere,
        *(_guest_problems(config, read_settings(home).limits) if home.is_guest else ()),
    ]


def with_allowed_paths(config: RunConfig, home: LoratoryHome) -> RunConfig:
    """Return the configuration with every path whole and its links followed; call it after `lab_problems` found none."""
    allowed = AllowedPaths(home)
    return config.with_names(lambda field, text: str(allowed.read(text)) if _is_path(field, text) else text)


def within_guest_limit(config: RunConfig, report: DatasetReport, home: LoratoryHome) -> RunConfig:
    """Return a guest's configuration, limited to the steps that guests may train; any other unchanged."""
    if not home.is_guest:
        return config
    most, plan = read_settings(home).limits.guest_max_steps, plan_run(config.training, report)
    if most is None:
        return config
    if plan is not None and plan.steps <= most and not plan.is_estimate:
        return config
    return config.model_copy(update={"training": config.training.model_copy(update={"max_steps": most})})


def _guest_problems(config: RunConfig, limits: LabLimits) -> list[Problem]:
    sources = (config.dataset.source, *config.dataset.mix)
    problems = []
    if find_in_catalog(config.model.id.strip()) is None:
        problems.append(Problem("model.id", "a guest trains models of the catalogue; choose one of them."))
    if not all(source.strip().startswith(SAMPLE_PREFIX) for source in sources):
        problems.append(Problem("dataset.source", "a guest trains on the samples; choose one of them."))
    if (most := limits.guest_max_steps) is not None and config.training.max_steps > most:
        problems.append(
            Problem("training.max_steps", f"a guest trains at most {most:,} steps; set it to {most} or less.")
        )
    return problems


def may_be_path(field: str, text: str) -> bool:
    """Return whether a name of a configuration may be a file or folder, not a sample, catalogue entry or run."""
    if field == "model.id":
        return find_in_catalog(text.strip()) is None
    if field == "adapter.warm_start":
        return RUN_ID.fullmatch(text) is None
    return not text.strip().startswith(SAMPLE_PREFIX)


def _is_path(field: str, text: str) -> bool:
    is_on_the_hub = is_hub_id(text.strip()) if field == "model.id" else field.startswith("dataset.") and is_on_hub(text)
    return may_be_path(field, text) and not is_on_the_hub


def _is_allowed(allowed: AllowedPaths, text: str | Path) -> bool:
    try:
        allowed.read(text, StorageError)
    except EngineError:
        return False
    return True
