"""Test sets of projects: saved by name, part of new runs, and requested once a run is complete."""

import pytest

from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.config.results import TestSet
from loratory.engine.errors import ConfigError, RunError, WorkerError
from loratory.engine.runs import projects
from loratory.engine.runs.control import read_notes
from loratory.engine.runs.projects import (
    PROJECTS_FILE,
    answering_lock,
    read_project_tests,
    request_project_tests,
    save_project_tests,
    start_answering,
    waiting_requests,
    with_project_tests,
)
from loratory.engine.runs.run import RunState
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import config_for, wait_for_state
from tests.waiting import wait_until

COMPLETED = RunState(state="completed")


def a_test(source: str = "/data/sums.jsonl") -> TestSet:
    return TestSet.model_validate({"source": source, "scorers": [{"scorer": "number"}]})


def run_of(project: str, name: str = "steps=1", tests: tuple[TestSet, ...] = ()):
    plain = [test.model_dump(mode="json") for test in tests]
    return config_for(name, run={"project": project}, evaluation={"tests": plain})


@pytest.fixture
def started(monkeypatch):
    """Return the environments of the processes that would have been started."""
    environments: list[dict] = []
    monkeypatch.setattr(projects, "spawn", lambda _, **options: environments.append(options))
    return environments


def test_each_person_has_the_test_sets_of_their_own_projects(store, home):
    save_project_tests(store, " Paper ", [a_test()])
    save_project_tests(store, "Other", [a_test("set:faq@v1")])

    assert read_project_tests(store, "Paper") == (a_test(),)
    assert read_project_tests(store, "Unknown") == read_project_tests(store, "") == ()
    assert read_project_tests(RunStore(home, "bea"), "Paper") == ()
    save_project_tests(store, "Paper", [])
    assert read_project_tests(store, "Paper") == ()
    assert read_project_tests(store, "Other")
    (store.folder / PROJECTS_FILE).write_text("{torn")
    assert read_project_tests(store, "Other") == ()
    with pytest.raises(RunError, match="no name"):
        save_project_tests(store, " ", [a_test()])


def test_a_new_run_has_the_test_sets_of_its_project_once(store):
    own, regression = a_test("/data/own.jsonl"), a_test()
    save_project_tests(store, "Paper", [regression])

    config = with_project_tests(run_of("Paper", tests=(own,)), store)

    assert config.evaluation.tests == (own, regression)
    assert with_project_tests(config, store) == config, "a copy of a run has them already"
    assert with_project_tests(run_of("Other", tests=(own,)), store).evaluation.tests == (own,)
    save_project_tests(store, "Paper", [a_test(f"/data/{number}.jsonl") for number in range(20)])
    with pytest.raises(ConfigError, match="tests"):
        with_project_tests(run_of("Paper", tests=(own,)), store)


def test_a_run_starts_in_its_project(store):
    assert read_notes(store.create(run_of("Paper")).folder).project == "Paper"
    assert not store.create(run_of("")).folder.notes.exists()


def test_only_completed_runs_of_projects_with_test_sets_answer_them(store, home, started):
    save_project_tests(store, "Paper", [a_test()])
    run = store.create(run_of("Paper"))

    request_project_tests(home, store.create(run_of("Other")), COMPLETED)
    request_project_tests(home, run, RunState(state="stopped"))
    assert (waiting_requests(home), started) == ([], [])

    request_project_tests(home, run, COMPLETED)
    assert [file.name for file in waiting_requests(home)] == [f"ann~{run.id}"]
    assert started[0]["environment"]["LORATORY_HOME"] == str(home.root)


def test_the_process_that_answers_is_started_once_and_again_after_a_restart(store, home, started):
    start_answering(home)
    assert started == [], "no run waits"
    save_project_tests(store, "Paper", [a_test()])
    request_project_tests(home, store.create(run_of("Paper")), COMPLETED)

    lock = answering_lock(home)
    assert lock.acquire(timeout_seconds=0)
    start_answering(home)
    assert len(started) == 1
    lock.release()
    start_answering(home)
    assert len(started) == 2


def test_in_a_lab_the_process_has_no_login(store, home, started):
    save_project_tests(store, "Paper", [a_test()])
    request_project_tests(home, store.create(run_of("Paper")), COMPLETED)
    (home.root / DATABASE_FILE).touch()
    start_answering(home)

    assert [bool(options["access"]) for options in started] == [True, False]


def test_a_supervisor_requests_the_test_sets_of_a_completed_run(store, home, started, start_supervisor):
    save_project_tests(store, "Paper", [a_test()])
    run = store.create(run_of("Paper"))
    start_supervisor()

    wait_until(lambda: bool(started))
    assert run.folder.read_state().state == "completed"


def test_a_run_stays_complete_where_the_process_cannot_be_started(store, start_supervisor, monkeypatch):
    attempts: list[object] = []

    def fail(*arguments, **_):
        attempts.append(arguments)
        raise WorkerError("No memory.", "Free some.")

    monkeypatch.setattr(projects, "spawn", fail)
    save_project_tests(store, "Paper", [a_test()])
    run, later = store.create(run_of("Paper")), store.create(run_of("Other"))
    start_supervisor()

    wait_until(lambda: bool(attempts))
    wait_for_state(later, "completed")
    assert run.folder.read_state().state == "completed"
