"""Test sets of projects: which every new run of a project answers, and the completed runs that have not answered yet."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from loratory.engine.accounts.limits import is_lab
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.results import EvaluationSection, TestSet
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import RunError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.processes.spawn import Access, spawn, worker_argv
from loratory.engine.runs.run import Run, RunState
from loratory.engine.runs.store import RunStore

PROJECTS_FILE = "projects.json"  # in the folder of a person's runs
ANSWERING_MODULE = "loratory.engine.evaluation.project_tests"
_FOLDER = "project-tests"


class _Projects(BaseModel):
    tests: dict[str, tuple[TestSet, ...]] = {}  # by project


def read_project_tests(store: RunStore, project: str) -> tuple[TestSet, ...]:
    """Return the test sets of a project; none where it has none, or the file is damaged."""
    projects = read_model(store.folder / PROJECTS_FILE, _Projects) if project else None
    return projects.tests.get(project, ()) if projects is not None else ()


def save_project_tests(store: RunStore, project: str, tests: Sequence[TestSet]) -> None:
    """Replace the test sets of a project; none removes them. Sources are pinned, with absolute paths.

    Raises:
        RunError: If the project has no name.
        StorageError: If they cannot be written.
    """
    if not (name := project.strip()):
        raise RunError("The project has no name.", "Give it a name first.")
    file = store.folder / PROJECTS_FILE
    projects = read_model(file, _Projects) or _Projects()
    write_atomically(file, _Projects(tests=projects.tests | {name: tuple(tests)}).model_dump_json(), makes_folder=True)


def with_project_tests(config: RunConfig, store: RunStore) -> RunConfig:
    """Return a configuration with the test sets of its project; raises a ConfigError if it has too many then."""
    own = config.evaluation.tests
    missing = [test for test in read_project_tests(store, config.run.project) if test not in own]
    section = section_from_mapping(EvaluationSection, {"tests": (*own, *missing)})
    return config.model_copy(update={"evaluation": section})


def request_project_tests(home: LoratoryHome, run: Run, state: RunState) -> None:
    """Have a completed run answer its test sets, if its project has some; returns at once."""
    project = run.folder.read_config().run.project if state.state == "completed" else ""
    if read_project_tests(RunStore(home, run.owner), project):
        write_atomically(home.server / _FOLDER / f"{run.owner}~{run.id}", b"", makes_folder=True)
        start_answering(home)


def waiting_requests(home: LoratoryHome) -> list[Path]:
    """Return the files that name runs whose test sets are still to be answered, as `OWNER~ID`, the oldest run first."""
    files = (home.server / _FOLDER).glob("[!.]*~*")
    return sorted(files, key=lambda file: file.name.partition("~")[2])


def answering_lock(home: LoratoryHome) -> FileLock:
    """Return the lock of the process that answers."""
    return FileLock(home.server / f"{_FOLDER}.lock")


def start_answering(home: LoratoryHome) -> None:
    """Start the process that answers test sets, if some wait and it does not run; it outlives this one."""
    if waiting_requests(home) and not answering_lock(home).is_held_by_another():
        access = () if is_lab(home) else (Access.HUB,)  # in a lab, the server's login is not for its people
        log = home.logs / f"{_FOLDER}.log"
        spawn(worker_argv(ANSWERING_MODULE), log_file=log, environment=home.environment, access=access)
