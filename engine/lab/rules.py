"""What people of a lab may do: what they train, how many runs they queue, and whose runs they open."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import read_rules, read_settings
from loratory.engine.accounts.limits import LabLimits, is_lab
from loratory.engine.accounts.people import Action, Person, RunAccess, is_logged, may, require
from loratory.engine.config.run import SET_PREFIX, DatasetConfig, ModelConfig, RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.data.hub import is_on_hub
from loratory.engine.data.source import SAMPLE_PREFIX
from loratory.engine.errors import (
    ConfigError,
    EngineError,
    Problem,
    RunError,
    StorageError,
    WorkerError,
    explain_os_errors,
)
from loratory.engine.models.catalog import find_in_catalog
from loratory.engine.models.source import is_hub_id
from loratory.engine.paths import REFUSAL, AllowedPaths, LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.runs.control import request_resume, resume_requests
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.prediction import plan_run
from loratory.engine.runs.run import RUN_ID, Run, RunFolder
from loratory.engine.runs.store import RunStore, list_owners
from loratory.engine.scoring.base import SandboxedScorer
from loratory.engine.scoring.sandbox.program import require_isolation
from loratory.engine.scoring.scorers.judge import Judge

_OUTSIDE = f"{REFUSAL[0][0].lower()}{REFUSAL[0][1:].rstrip('.')}; {REFUSAL[1][0].lower()}{REFUSAL[1][1:]}"


def lab_problems(config: RunConfig, home: LoratoryHome) -> list[Problem]:
    """Return the settings that this person may not use; none without accounts. Opens no file."""
    allowed = AllowedPaths.for_home(home)
    if allowed is None:
        return []
    names = ((field, text) for field, text in config.names if _is_path(field, text))
    problems = [Problem(field, _OUTSIDE) for field, text in names if not _is_allowed(allowed, text)]
    start = config.adapter.warm_start
    if start is not None and RUN_ID.fullmatch(start) and start not in RunStore(home, home.owner).ids():
        problems.append(Problem("adapter.warm_start", "no run of yours."))
    if "wandb" in config.training.report_to:  # it would report with a login of the server's account
        message = "wandb needs a login, and the lab's own is not for its people."
        problems.append(Problem("training.report_to", message))
    problems += _scorer_problems(config)
    if home.is_guest:
        problems += _guest_problems(config, read_settings(home).limits)
    return problems


def _scorer_problems(config: RunConfig) -> Iterator[Problem]:
    """Refuse scorers that would run code without a sandbox, or send requests from the lab's machine."""
    if any(isinstance(scorer, Judge) for scorer in config.scorers):
        yield Problem("training.rewards", "a judge would send requests from the lab's machine; use another scorer.")
    if any(isinstance(scorer, SandboxedScorer) for scorer in config.scorers):
        try:
            require_isolation("This scorer")
        except WorkerError:
            yield Problem("training.rewards", "the lab's machine has no sandbox for code; use another scorer.")


def with_allowed_scorers(dataset: DatasetConfig, home: LoratoryHome) -> DatasetConfig:
    """Return a dataset with whole paths of its scorers; one that this person may not use is a ConfigError."""
    config, allowed = RunConfig(model=ModelConfig(id="-"), dataset=dataset), AllowedPaths.for_home(home)
    if problems := [problem for problem in lab_problems(config, home) if problem.field == "training.rewards"]:
        raise ConfigError(problems)
    return config.with_names(
        lambda field, text: str(allowed.read(text)) if allowed and field == "training.rewards" else text
    ).dataset


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


def _guest_problems(config: RunConfig, limits: LabLimits) -> Iterator[Problem]:
    sources = (config.dataset.source, *config.dataset.mix)
    if config.run.is_elsewhere:
        yield Problem("run.where", "a guest trains on the lab's own devices; set local.")
    if find_in_catalog(config.model.id.strip()) is None:
        yield Problem("model.id", "a guest trains models of the catalogue; choose one of them.")
    if not all(source.strip().startswith(SAMPLE_PREFIX) for source in sources):
        yield Problem("dataset.source", "a guest trains on the samples; choose one of them.")
    if not all(dataset.source.startswith(SAMPLE_PREFIX) for dataset in config.test_datasets):
        yield Problem("evaluation.tests", "a guest is tested on the samples; choose one of them.")
    if (most := limits.guest_max_steps) is not None and config.training.max_steps > most:
        yield Problem("training.max_steps", f"a guest trains at most {most:,} steps; set it to {most} or less.")


def may_be_path(field: str, text: str) -> bool:
    """Return whether a name of a configuration may be a file or folder, not a sample, set, catalogue entry or run."""
    if field == "model.id":
        return find_in_catalog(text.strip()) is None
    if field == "adapter.warm_start":
        return RUN_ID.fullmatch(text) is None
    return not text.strip().startswith((SAMPLE_PREFIX, SET_PREFIX))


def _is_path(field: str, text: str) -> bool:
    is_on_the_hub = (
        is_hub_id(text.strip())
        if field == "model.id"
        else field.startswith(("dataset.", "evaluation.")) and is_on_hub(text)
    )
    return may_be_path(field, text) and not is_on_the_hub


def _is_allowed(allowed: AllowedPaths, text: str | Path) -> bool:
    try:
        allowed.read(text, StorageError)
    except EngineError:
        return False
    return True


@contextlib.contextmanager
def admission(home: LoratoryHome, owner: str, count: int = 1) -> Iterator[None]:
    """Allow the block to queue runs; concurrent requests are counted one after the other.

    Does nothing without accounts.

    Raises:
        RunError: If the person would exceed the lab's limit of waiting runs.
        StorageError: If the disk space is not sufficient.
    """
    if not count or not is_lab(home):
        yield
        return
    require_disk_space(home, owner)
    with FileLock(home.server / f"admission-{owner}.lock"):
        _require_queue_room(home, owner, count)
        yield


def require_admission(home: LoratoryHome, owner: str, count: int = 1) -> None:
    """Refuse at once what `admission` would refuse, before long checks; raises as it does."""
    with admission(home, owner, count):
        pass


def resume_run(home: LoratoryHome, run: Run) -> None:
    """Request to resume a run, if its owner may queue one more; raises as `request_resume` and `admission` do.

    Raises:
        RunError: Also if its owner has become a guest, and it trains elsewhere.
    """
    if home.is_guest and run.folder.read_config().run.is_elsewhere:
        raise RunError(
            "Guests train on the lab's own devices, and this run trained elsewhere.",
            "Copy its settings to train it here.",
        )
    with admission(home, run.owner):
        request_resume(home, run)


def _require_queue_room(home: LoratoryHome, owner: str, count: int) -> None:
    rules = read_rules(home)
    most = None if rules is None else rules.limits.waiting_per_person
    if most is None:
        return
    waiting = _waiting_runs(home, owner)
    if waiting + count > most:
        more = "1 more is" if count == 1 else f"{count:,} more are"
        raise RunError(
            f"You have {waiting:,} waiting runs, and {more} too many: the lab allows {most:,} per person.",
            "Wait until some have started, or remove some from the queue.",
        )


def _waiting_runs(home: LoratoryHome, owner: str) -> int:
    """Count the runs of a person that wait, those included that are about to be resumed."""
    waiting = {request.run_id for request in resume_requests(home) if request.owner == owner}
    for run in RunStore(home, owner).list():
        with contextlib.suppress(EngineError):
            if run.folder.read_state().state == "queued":
                waiting.add(run.id)
    return len(waiting)


def is_shared(folder: RunFolder) -> bool:
    """Return whether its owner shares a run with the lab."""
    return folder.shared_mark.exists()


def access_of(run: Run) -> RunAccess:
    """Return the facts about a run that access rights depend on."""
    return RunAccess(run.owner, is_shared(run.folder))


def set_shared(run: Run, person: Person, shared: bool, audit: AuditLog) -> None:
    """Share a run with the lab, or stop sharing it.

    Raises:
        AccountError: If the person may not.
        StorageError: If the mark or the audit log cannot be written.
    """
    require(person, Action.SHARE, access_of(run))
    if is_shared(run.folder) == shared:
        return
    audit.write(person.name, "run shared", f"{run.owner}/{run.id}", "shared" if shared else "no longer shared")
    mark = run.folder.shared_mark
    with explain_os_errors("Sharing cannot be changed", "Check the permissions of the run's folder."):
        if shared:
            mark.parent.mkdir(mode=0o700, exist_ok=True)
            mark.touch(mode=0o600)
        else:
            mark.unlink(missing_ok=True)


def find_run(home: LoratoryHome, owner: str, run_id: str) -> Run | None:
    """Look up a run in lists of what is there, so neither name becomes a path; None if there is none."""
    if RUN_ID.fullmatch(run_id) is None or owner not in list_owners(home):
        return None
    store = RunStore(home, owner)
    return store.get(run_id) if run_id in store.ids() else None


@dataclass(frozen=True)
class LabRuns:
    """The runs of a lab as one person may see them; a run of another is named `owner/run-id`."""

    home: LoratoryHome
    person: Person
    audit: AuditLog

    def open(self, name: str, action: Action) -> Run:
        """Look up a run for an action; where the audit log records such a look, it is written first.

        Raises:
            RunError: If the run does not exist or the person may not see it; the message is the same.
            StorageError: If the look cannot be logged.
        """
        owner, _, run_id = name.rpartition("/")
        run = find_run(self.home, owner or self.person.name, run_id)
        access = access_of(run) if run is not None else None
        if run is None or access is None or not may(self.person, action, access):
            raise RunError("There is no such run, or it is not shared with you.", "Ask its owner to share it.")
        if is_logged(self.person, access):
            self.audit.write(self.person.name, "looked into", f"{run.owner}/{run.id}", action)
        return run

    def others(self) -> list[Run]:
        """Return the runs of other people that this person may read, newest first: an admin all, a member shared ones."""
        runs = [run for owner in list_owners(self.home) if owner != self.person.name for run in self._of(owner)]
        return sorted(runs, key=lambda run: run.id, reverse=True)

    def _of(self, owner: str) -> Iterator[Run]:
        with contextlib.suppress(OSError):  # a mount that is gone
            for run in RunStore(self.home, owner).list():
                if may(self.person, Action.READ, access_of(run)):
                    yield run
