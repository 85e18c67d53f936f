"""A run's folder: its state, who works on it, and the notes of a person."""

import platform
import subprocess
import sys

import pytest

from loratory.engine.errors import ConfigError, RunError, SupersededError
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.runs.control import change_notes, read_notes
from loratory.engine.runs.history.events import StatusData
from loratory.engine.runs.run import ATTEMPT_VARIABLE, RunFolder, RunState
from tests.event_log import write_log


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_the_state_survives_the_disk(folder):
    state = RunState(state="failed", cause="It broke.", attempt=3, resumable_step=40, changed=5.0)
    folder.write_state(state)

    assert folder.read_state() == state


@pytest.mark.parametrize("torn", [b"", b'{"state": "dancing"}'])
def test_a_run_without_a_state_waits_unless_it_has_begun(folder, torn):
    folder.state.write_bytes(torn)
    assert folder.read_state().state == "queued"

    write_log(folder.events, StatusData(phase="training"), attempt=2)
    assert folder.read_state() == RunState(state="running", attempt=2)


def test_claiming_writes_who_works_and_keeps_others_out(folder):
    folder.write_state(RunState(state="starting", attempt=4))
    claim = folder.claim()

    worker = folder.read_worker()
    assert worker is not None
    assert worker.is_alive()
    assert (claim.attempt, worker.attempt) == (4, 4)
    assert ProcessIdentity.current().pid == worker.pid
    with pytest.raises(RunError, match="Another process already works"):
        folder.claim()
    claim.lock.release()


def test_a_claim_ends_where_a_later_worker_has_the_run(folder):
    claim = folder.claim()
    ours = folder.read_worker()
    for harmless in ("", "{", ours.model_copy(update={"attempt": 0, "host": "earlier"}).model_dump_json()):
        folder.process.write_text(harmless)
        claim.require_current()
    folder.process.unlink()
    claim.require_current()

    for later in ({"attempt": 2}, {"pid": ours.pid + 1, "host": "node2"}):  # also of the same number, counted elsewhere
        folder.process.write_text(ours.model_copy(update=later).model_dump_json())
        with pytest.raises(SupersededError, match="was given up"):
            claim.require_current()
    claim.lock.release()


def test_a_worker_whose_attempt_was_given_up_is_refused_and_leaves_the_run_free(folder, monkeypatch):
    monkeypatch.setenv(ATTEMPT_VARIABLE, "1")
    for state in (RunState(state="queued", attempt=1), RunState(state="starting", attempt=2)):
        folder.write_state(state)
        with pytest.raises(RunError, match="given up"):
            folder.claim()
    assert not folder.has_living_worker()
    assert folder.read_worker() is None

    folder.write_state(RunState(state="starting", attempt=1))
    claim = folder.claim()
    assert claim.attempt == 1
    claim.lock.release()
    with pytest.raises(RunError, match="taken by another worker"):
        folder.claim()


def test_a_worker_started_by_hand_counts_on_from_its_log(folder):
    assert folder.next_attempt() == 1
    write_log(folder.events, StatusData(phase="training"))
    assert folder.next_attempt() == 2

    folder.write_state(RunState(state="stopped", attempt=1))
    assert folder.next_attempt() == 2
    folder.claim().lock.release()
    assert folder.next_attempt() == 3, "that one ended before it said a word"
    folder.write_state(RunState(state="starting", attempt=5))
    assert folder.next_attempt() == 5


@pytest.mark.parametrize("known_by", ["the state", "the log alone"])
def test_a_job_that_a_scheduler_runs_again_does_not_claim_a_finished_run(folder, known_by):
    write_log(folder.events, StatusData(phase="finished"))
    folder.adapter.mkdir()
    folder.write_state(RunState(state="completed" if known_by == "the state" else "running", attempt=1))

    with pytest.raises(RunError, match="has finished"):
        folder.claim()

    assert not folder.has_living_worker()
    assert folder.read_worker() is None


@pytest.mark.parametrize("variable", ["LORATORY_JOB", "SLURM_JOB_ID"])
def test_a_run_that_was_submitted_is_claimed_by_that_job_alone(folder, monkeypatch, variable):
    folder.write_state(RunState(state="submitted", attempt=1, job_id="1234"))
    for other in ("1235", ""):
        monkeypatch.setenv(variable, other)
        with pytest.raises(RunError, match="submitted as job 1234"):
            folder.claim()
    assert folder.read_worker() is None

    monkeypatch.setenv(variable, "1234")
    folder.claim().lock.release()

    worker = folder.read_worker()
    assert (worker.job_id, worker.host) == ("1234", platform.node())


def test_a_living_worker_is_known_by_its_lock_even_without_a_record(folder):
    script = (
        "import sys; from pathlib import Path; from loratory.engine.runs.run import RunFolder; "
        "claim = RunFolder(Path(sys.argv[1])).claim(); print('claimed', flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(folder.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    worker.stdout.readline()
    folder.process.unlink()

    assert folder.has_living_worker()
    worker.kill()
    worker.communicate()
    assert not folder.has_living_worker()


def test_only_complete_checkpoints_count(folder):
    assert folder.newest_checkpoint_step() is None
    for name in ("step-5", "step-12", "step-40", "step-x", "other"):
        (folder.checkpoints / name).mkdir(parents=True)
    for name in ("step-5", "step-12", "step-x"):
        (folder.checkpoints / name / "MANIFEST.json").write_text('{"step": 1, "files": {}}')
    (folder.checkpoints / "step-40" / "MANIFEST.json").write_text('{"step": 40, "fi')

    assert folder.newest_checkpoint_step() == 12


def test_what_is_not_changed_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    change_notes(folder, name="  Best so far ", tags=("good", " good", "", "short"))
    notes = change_notes(folder, note="Trained on\nthe evening set.")

    assert notes == read_notes(folder)
    assert (notes.name, notes.tags, notes.note) == ("Best so far", ("good", "short"), "Trained on\nthe evening set.")


@pytest.mark.parametrize(
    "changes", [{"name": "x" * 200}, {"name": "a\x00b"}, {"tags": ("y" * 99,)}, {"note": "z" * 20_000}]
)
def test_what_cannot_be_noted_is_refused_and_nothing_changes(tmp_path, changes):
    folder = RunFolder(tmp_path)
    change_notes(folder, name="kept")
    with pytest.raises(ConfigError):
        change_notes(folder, **changes)
    assert read_notes(folder).name == "kept"


def test_torn_notes_are_not_notes(tmp_path):
    folder = RunFolder(tmp_path)
    folder.notes.write_text('{"name": "x')
    assert read_notes(folder).name == ""
