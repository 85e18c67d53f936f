"""What comes from a job: events, checkpoints, its log and the result, whole and once."""

from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.store import RunStore
from tests.hub.server import Fault
from tests.invented_runs import InventedRun, a_config, write_run
from tests.jobs.followed_run import BUCKET


def test_events_arrive_whole_and_once_however_they_come(followed_run, hugging_face):
    followed_run.begins()
    pieces = [f'{{"n": {number}}}\n'.encode() * 9 for number in range(10, 16)]
    log = b"".join(pieces)
    for number in (2, 0, 1, 4, 0, 5, 3, 5):  # late, early, and a second time
        followed_run.writes(layout.segment_name(len(pieces[0]) * number), pieces[number])
        followed_run.step()
        followed_run.restart()

    followed_run.step()
    assert followed_run.run.folder.events.read_bytes() == log


def test_a_job_that_ends_is_brought_home_and_removed_there(followed_run, hugging_face):
    followed_run.begins()
    followed_run.writes("worker.log", b"hello\n")
    followed_run.writes("results/adapter/adapter_config.json", b'{"base_model_name_or_path": "some/model"}')
    followed_run.writes("results/adapter/adapter_model.safetensors", b"weights")
    followed_run.ends()

    view = followed_run.step()

    assert view.end.exit_code == 0
    assert followed_run.run.folder.log.read_bytes() == b"hello\n"
    assert (followed_run.run.folder.adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert [name for name in hugging_face.files[BUCKET] if not name.startswith("wheels/")] == []
    assert JobRecord.read(followed_run.run.folder).is_over


def test_names_that_lead_elsewhere_are_not_written(followed_run, tmp_path):
    followed_run.begins()
    for name in (
        "results/adapter/../../../escaped", "results/adapter//escaped", "checkpoints/step-1/../../escaped",
        "checkpoints/../step-2/escaped", "events/../escaped", "results/escaped", "../escaped",
    ):  # fmt: skip
        followed_run.writes(name, b"gone")
    followed_run.ends()
    followed_run.step()

    assert list(tmp_path.rglob("*escaped*")) == []


def test_a_checkpoint_comes_home_only_when_it_is_whole(followed_run, home, tmp_path):
    other = write_run(RunStore(home, "other"), a_config(), InventedRun(state="stopped", steps=60))
    whole = next(iter(sorted(other.folder.checkpoints.iterdir())))
    followed_run.begins()
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    manifest = files.pop("MANIFEST.json")
    for name, data in files.items():
        followed_run.writes(f"checkpoints/{whole.name}/{name}", data)
    followed_run.step()
    assert not (followed_run.run.folder.checkpoints / whole.name).exists()
    followed_run.writes(f"checkpoints/{whole.name}/{next(iter(files))}", b"torn")
    followed_run.writes(f"checkpoints/{whole.name}/MANIFEST.json", manifest)
    followed_run.step()
    assert not (followed_run.run.folder.checkpoints / whole.name).exists()
    followed_run.writes(f"checkpoints/{whole.name}/{next(iter(files))}", next(iter(files.values())))
    followed_run.step()

    there = followed_run.run.folder.checkpoints / whole.name
    assert {path.relative_to(there).as_posix(): path.read_bytes() for path in there.rglob("*") if path.is_file()} == {
        **files, "MANIFEST.json": manifest,
    }  # fmt: skip
    assert followed_run.run.folder.newest_checkpoint_step() == int(whole.name.removeprefix("step-"))


def test_a_gap_in_the_log_is_waited_for_and_then_left(followed_run):
    followed_run.begins()
    followed_run.writes(layout.segment_name(10), b"second\n")
    followed_run.ends()
    assert followed_run.step().stage == "waiting"
    followed_run.now += 61

    assert followed_run.step().stage == "ended"


def test_what_the_job_prints_is_in_the_log_until_its_companion_speaks(followed_run, hugging_face):
    job = followed_run.begins()
    job.log.write_text("Installed 40 packages\n")
    followed_run.step()
    assert followed_run.run.folder.log.read_text() == "Installed 40 packages\n"

    requests = hugging_face.requests["logs"]
    job.log.write_text("".join(f"line {number}\n" for number in range(1000)) + "x" * 9000)
    followed_run.step()
    assert hugging_face.requests["logs"] == requests, "it is not asked for at each look"
    followed_run.now += 15
    followed_run.step()
    lines = followed_run.run.folder.log.read_text().splitlines()
    assert (len(lines), lines[0], len(lines[-1])) == (400, "line 601", 2000)

    followed_run.writes("worker.log", b"Step 1\n")
    followed_run.now += 15
    requests = hugging_face.requests["logs"]
    followed_run.step(2)
    assert followed_run.run.folder.log.read_text() == "Step 1\n"
    assert hugging_face.requests["logs"] == requests

    hugging_face.end(job, "ERROR", "Job failed with exit code: 137")
    followed_run.step()
    assert followed_run.run.folder.log.read_text().startswith("Step 1\n\n--- Output of the job ---\nline 601\n")


def test_a_log_that_cannot_be_fetched_holds_up_nothing(followed_run, hugging_face):
    followed_run.begins()
    hugging_face.faults = [Fault("logs", 500, times=50)]
    followed_run.writes(layout.segment_name(0), b"first\n")

    assert followed_run.step().trouble is None
    assert followed_run.run.folder.events.read_bytes() == b"first\n"


def test_what_came_home_stays_when_an_answer_to_the_cleaning_up_is_lost(followed_run, hugging_face, home):
    other = write_run(RunStore(home, "other"), a_config(), InventedRun(state="stopped", steps=60))
    whole = next(iter(sorted(other.folder.checkpoints.iterdir())))
    followed_run.begins()
    for path in whole.rglob("*"):
        if path.is_file():
            followed_run.writes(f"checkpoints/{whole.name}/{path.relative_to(whole).as_posix()}", path.read_bytes())
    followed_run.step()
    followed_run.ends()
    hugging_face.faults = [Fault("batch", "lost", times=50)]
    assert followed_run.step().stage != "ended"
    hugging_face.faults = []

    assert followed_run.step().end.exit_code == 0
    assert followed_run.run.folder.newest_checkpoint_step() is not None
    followed_run.restart()
    assert followed_run.step().stage == "ended", "a server that is killed now asks no one again"
