"""A job as this machine follows it, step by step, while Hugging Face answers, refuses, or is away."""

import random

import pytest
from huggingface_hub.errors import HfHubHTTPError

from engine.errors import HubUnreachableError
from engine.executors.huggingface_jobs import layout
from engine.executors.huggingface_jobs.executor import HubJob, JobsExecutor
from engine.executors.huggingface_jobs.follower import JobFollower
from engine.executors.huggingface_jobs.login import HubLogin
from engine.executors.huggingface_jobs.record import JobRecord
from engine.runs.control import request_stop
from engine.runs.provenance import Provenance
from engine.runs.store import RunStore
from tests.invented_runs import InventedRun, a_config, write_run
from tests.jobs.stand_in import TOKEN, Fault
from tests.runs.supervision import wait_until

BUCKET = "ada/loratory-runs"


class Followed:
    """A run whose job does what a test says."""

    def __init__(self, hugging_face, api, home) -> None:
        hugging_face.starts_jobs = False
        self.hugging_face = hugging_face
        config = a_config(run__where="jobs", jobs__flavor="l4x1", jobs__limit_hours=2)
        self.run = RunStore(home, "local").create(config, Provenance())
        self.record = JobRecord(attempt=1, namespace="", flavor="l4x1", limit_hours=2).save(self.run.folder)
        self.now = 0.0
        self.follow(home, api)

    def follow(self, home, api) -> None:
        self.api, self.home = api, home
        self.follower = JobFollower(self.run, self.record, home, lambda _: HubLogin(self.api), 1.0, lambda: self.now)
        self.job = HubJob(self.follower, lambda _: None)

    def restart(self) -> None:
        """As a server that comes back finds it."""
        self.record = JobRecord.read(self.run.folder)
        self.follow(self.home, self.api)

    def step(self, times=1):
        for _ in range(times):
            self.pause = self.follower.step()
        return self.follower.view

    def begins(self):
        self.step()
        self.there = self.hugging_face.only_job()
        self.there.stage = "RUNNING"
        return self.there

    def writes(self, name, data):
        self.hugging_face.store(BUCKET, f"{layout.attempt_folder(self.run.id, 1)}/{name}", data)

    def ends(self, code=0):
        self.writes(layout.END, layout.JobResult(exit_code=code).model_dump_json().encode())
        self.hugging_face.end(self.there, "COMPLETED" if code == 0 else "ERROR")


@pytest.fixture
def followed(hugging_face, api, home):
    return Followed(hugging_face, api, home)


def test_a_run_is_sent_in_a_private_bucket_and_its_job_named(followed, hugging_face):
    view = followed.step()

    job = hugging_face.only_job()
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("l4x1", 7200)
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in str({**job.spec, "secrets": None})
    assert hugging_face.public == set()
    sent = {name.split("/inputs/")[1] for name in hugging_face.files[BUCKET] if "/inputs/" in name}
    assert sent == {"run/config.yaml", "run/provenance.json", "run/events.jsonl"}
    assert any(name.startswith("wheels/") for name in hugging_face.files[BUCKET])
    record = JobRecord.read(followed.run.folder)
    assert (record.id, record.namespace, record.hardware) == (job.id, "ada", "1x Nvidia L4")
    assert record.price_per_hour_usd == pytest.approx(0.8)
    assert record.url.endswith(job.id)
    assert view.stage == "waiting"
    assert followed.job.poll(has_reported=False).why.cause == "Waiting at Hugging Face for 1x Nvidia L4."


def test_a_second_run_sends_no_second_wheel(followed, hugging_face, api, home):
    followed.step()
    wheels = [name for name in hugging_face.files[BUCKET] if name.startswith("wheels/")]
    stored: list[str] = []
    hugging_face.on_stored = stored.append
    Followed(hugging_face, api, home).step()

    assert len(wheels) == 1
    assert stored
    assert not any(name.startswith("wheels/") for name in stored)


def test_a_public_bucket_gets_no_data(followed, hugging_face):
    hugging_face.files[BUCKET] = {}
    hugging_face.public.add(BUCKET)

    view = followed.step()

    assert view.stage == "ended"
    assert "is public" in view.end.cause
    assert hugging_face.files[BUCKET] == {}
    assert not hugging_face.jobs


REFUSALS = [
    ("make", 401, "does not accept your token"),
    ("make", 403, "may not use jobs and buckets of ada"),
    ("submit", 402, "the account has no credit"),
    ("submit", 403, "may not use jobs and buckets of ada"),
    ("submit", 404, "HTTP 404"),
    ("submit", 409, "HTTP 409"),
]


@pytest.mark.parametrize(("step", "status", "words"), REFUSALS)
def test_a_refusal_before_the_start_ends_the_run_in_words(followed, hugging_face, step, status, words):
    hugging_face.faults = [Fault(step, status, times=9)]

    view = followed.step()

    assert view.stage == "ended"
    assert words in view.end.cause
    assert view.end.advice
    assert TOKEN not in str(view)
    assert followed.job.poll(has_reported=False).phase == "gone"
    assert not hugging_face.jobs


@pytest.mark.parametrize("step", ["whoami", "make", "tree", "batch", "submit"])
@pytest.mark.parametrize("what", [429, 503])
def test_a_hub_that_is_away_before_the_start_is_asked_again(followed, hugging_face, step, what, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hugging_face.faults = [Fault(step, what, times=7)]

    view = followed.step()
    assert view.stage == "sending"
    assert isinstance(view.trouble, HubUnreachableError)
    assert followed.pause > 1
    hugging_face.faults = []
    view = followed.step()

    assert view.stage == "waiting"
    assert view.trouble is None
    assert len(hugging_face.jobs) == 1


def test_an_answer_that_was_lost_starts_no_second_job(followed, hugging_face):
    hugging_face.faults = [Fault("submit", "lost", times=2)]  # of looking for it, and of submitting it
    followed.step()
    hugging_face.faults = [Fault("submit", 503, times=0)]
    followed.restart()
    followed.step(3)

    assert len(hugging_face.jobs) == 1
    assert JobRecord.read(followed.run.folder).id == hugging_face.only_job().id


def test_events_arrive_whole_and_once_however_they_come(followed, hugging_face):
    followed.begins()
    log = "".join(f'{{"n": {number}}}\n' for number in range(400)).encode()
    cuts = sorted(random.Random(3).sample(range(1, 400), 30))
    lines = log.splitlines(keepends=True)
    pieces = {}
    for start, stop in zip([0, *cuts], [*cuts, 400], strict=True):
        offset = len(b"".join(lines[:start]))
        pieces[layout.segment_name(offset)] = b"".join(lines[start:stop])
    order = list(pieces)
    random.Random(4).shuffle(order)
    for name in order:
        followed.writes(name, pieces[name])
        followed.step()
        if random.Random(name).random() < 0.3:
            followed.writes(name, pieces[name])  # a second time
            followed.restart()

    followed.step()
    assert followed.run.folder.events.read_bytes() == log


def test_a_job_that_ends_is_brought_home_and_removed_there(followed, hugging_face):
    followed.begins()
    followed.writes("worker.log", b"hello\n")
    followed.writes("results/adapter/adapter_config.json", b'{"base_model_name_or_path": "some/model"}')
    followed.writes("results/adapter/adapter_model.safetensors", b"weights")
    followed.ends()

    view = followed.step()

    assert view.end.exit_code == 0
    assert followed.run.folder.log.read_bytes() == b"hello\n"
    assert (followed.run.folder.adapter / "adapter_model.safetensors").read_bytes() == b"weights"
    assert [name for name in hugging_face.files[BUCKET] if not name.startswith("wheels/")] == []
    assert JobRecord.read(followed.run.folder).is_closed


def test_names_that_lead_elsewhere_are_not_written(followed, tmp_path):
    followed.begins()
    for name in (
        "results/adapter/../../../escaped", "results/adapter//escaped", "checkpoints/step-1/../../escaped",
        "checkpoints/../step-2/escaped", "events/../escaped", "results/escaped", "../escaped",
    ):  # fmt: skip
        followed.writes(name, b"gone")
    followed.ends()
    followed.step()

    assert list(tmp_path.rglob("*escaped*")) == []


def test_a_checkpoint_comes_home_only_when_it_is_whole(followed, home, tmp_path):
    other = write_run(RunStore(home, "other"), a_config(), InventedRun(state="stopped", steps=60))
    whole = next(iter(sorted(other.folder.checkpoints.iterdir())))
    followed.begins()
    files = {path.relative_to(whole).as_posix(): path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    manifest = files.pop("MANIFEST.json")
    for name, data in files.items():
        followed.writes(f"checkpoints/{whole.name}/{name}", data)
    followed.step()
    assert not (followed.run.folder.checkpoints / whole.name).exists()
    followed.writes(f"checkpoints/{whole.name}/{next(iter(files))}", b"torn")
    followed.writes(f"checkpoints/{whole.name}/MANIFEST.json", manifest)
    followed.step()
    assert not (followed.run.folder.checkpoints / whole.name).exists()
    followed.writes(f"checkpoints/{whole.name}/{next(iter(files))}", next(iter(files.values())))
    followed.step()

    there = followed.run.folder.checkpoints / whole.name
    assert {path.relative_to(there).as_posix(): path.read_bytes() for path in there.rglob("*") if path.is_file()} == {
        **files, "MANIFEST.json": manifest,
    }  # fmt: skip
    assert followed.run.folder.newest_checkpoint_step() == int(whole.name.removeprefix("step-"))


ENDS = [
    ("CANCELED", None, "was cancelled at Hugging Face"),
    ("ERROR", "Job timeout", "its time limit of 2 h"),
    ("ERROR", "Job failed with exit code: 137", "failed at Hugging Face (Job failed with exit code: 137)"),
    ("COMPLETED", None, "its results did not arrive"),
    ("DELETED", None, "no longer known"),
]


@pytest.mark.parametrize(("stage", "message", "words"), ENDS)
def test_each_end_without_a_result_is_named(followed, hugging_face, stage, message, words):
    job = followed.begins()
    job.log.write_text("what uv printed\n")
    hugging_face.end(job, stage, message)

    view = followed.step()

    assert words in view.end.cause
    assert view.end.exit_code is None
    assert "what uv printed" in followed.run.folder.log.read_text()


def test_a_job_that_vanishes_counts_as_lost_only_after_several_looks(followed, hugging_face):
    followed.begins()
    followed.step()
    hugging_face.jobs.clear()
    assert followed.step().stage == "running"
    assert followed.job.poll(has_reported=True).phase == "alive"

    view = followed.step(2)

    assert view.stage == "ended"
    assert "no longer known" in view.end.cause


@pytest.mark.parametrize("what", [401, 403, 429, 500, "reset"])
def test_a_running_job_goes_on_while_hugging_face_does_not_answer(followed, hugging_face, what, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    followed.begins()
    followed.step()
    hugging_face.faults = [Fault("inspect", what, times=50), Fault("tree", what, times=50)]
    for _ in range(3):
        followed.step()

    status = followed.job.poll(has_reported=True)
    assert status.phase == "alive"
    assert status.why.reason == "executor_unreachable"
    assert followed.job.activity() is None  # its silence is not counted
    hugging_face.faults = []
    followed.step()
    assert followed.job.poll(has_reported=True).why is None


def test_a_gap_in_the_log_is_waited_for_and_then_left(followed):
    followed.begins()
    followed.writes(layout.segment_name(10), b"second\n")
    followed.ends()
    assert followed.step().stage == "waiting"
    followed.now += 61

    assert followed.step().stage == "ended"


def test_a_cancel_ends_the_job_and_a_stop_is_passed_on(followed, hugging_face):
    followed.begins()
    followed.job.request_stop()
    followed.step()
    assert hugging_face.files[BUCKET][f"{layout.attempt_folder(followed.run.id, 1)}/control/stop"]
    followed.job.cancel()

    view = followed.step()

    assert hugging_face.only_job().stage == "CANCELED"
    assert view.stage == "ended"


def test_a_job_that_was_not_looked_at_yet_waits_unless_it_may_have_something_to_save(followed):
    followed.step()
    followed.restart()
    assert followed.job.poll(has_reported=False).phase == "waiting"
    assert followed.job.poll(has_reported=True).phase == "alive"
    request_stop(followed.run)
    assert followed.job.poll(has_reported=False).phase == "alive"


def test_a_cancel_before_it_is_sent_starts_nothing(followed, hugging_face):
    followed.job.cancel()
    followed.step()

    assert not hugging_face.jobs
    assert followed.follower.view.stage == "ended"


def test_a_person_without_a_login_reads_what_to_do(followed, hugging_face, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    executor = JobsExecutor(home)
    follower = JobFollower(followed.run, followed.record, home, executor._login_of)
    follower.step()

    assert "needs a token" in follower.view.end.cause
    assert "hf auth login" in follower.view.end.advice


def test_no_job_is_looked_at_once_another_process_may(followed, hugging_face, home, api):
    hugging_face.starts_jobs = False
    executor = JobsExecutor(home, lambda _: HubLogin(api), 0.001)
    executor._follow(followed.run, followed.record)
    wait_until(lambda: hugging_face.asked["inspect"] > 2)

    executor.close()

    looks = hugging_face.asked["inspect"]
    followed.step()
    assert hugging_face.asked["inspect"] == looks + 1  # its own


def test_the_stand_in_refuses_what_the_real_service_would(hugging_face, api):
    hugging_face.starts_jobs = False
    right = {"image": "i", "command": ["c"], "flavor": "l4x1", "timeout": 60, "namespace": "ada", "name": "n"}
    api.run_job(**right)
    wrong: dict
    for wrong in (
        {"flavor": "l5"}, {"command": []}, {"command": ["c", TOKEN]}, {"timeout": 0.2}, {"labels": {"a": "b c"}},
        {"env": {"TOKEN": TOKEN}}, {"namespace": "bob"}, {"expose": [80]},
    ):  # fmt: skip
        with pytest.raises(HfHubHTTPError):
            api.run_job(**{**right, **wrong})
    assert len(hugging_face.jobs) == 1


def test_what_the_job_prints_is_in_the_log_until_its_companion_speaks(followed, hugging_face):
    job = followed.begins()
    job.log.write_text("Installed 40 packages\n")
    followed.step()
    assert followed.run.folder.log.read_text() == "Installed 40 packages\n"

    asked = hugging_face.asked["logs"]
    job.log.write_text("".join(f"line {number}\n" for number in range(1000)) + "x" * 9000)
    followed.step()
    assert hugging_face.asked["logs"] == asked, "it is not asked for at each look"
    followed.now += 15
    followed.step()
    lines = followed.run.folder.log.read_text().splitlines()
    assert (len(lines), lines[0], len(lines[-1])) == (400, "line 601", 2000)

    followed.writes("worker.log", b"Step 1\n")
    followed.now += 15
    asked = hugging_face.asked["logs"]
    followed.step(2)
    assert followed.run.folder.log.read_text() == "Step 1\n"
    assert hugging_face.asked["logs"] == asked

    hugging_face.end(job, "ERROR", "Job failed with exit code: 137")
    followed.step()
    assert followed.run.folder.log.read_text().startswith("Step 1\n\n--- Output of the job ---\nline 601\n")


def test_a_log_that_cannot_be_fetched_holds_up_nothing(followed, hugging_face, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    followed.begins()
    hugging_face.faults = [Fault("logs", 500, times=50)]
    followed.writes(layout.segment_name(0), b"first\n")

    assert followed.step().trouble is None
    assert followed.run.folder.events.read_bytes() == b"first\n"


def test_what_came_home_stays_when_an_answer_to_the_cleaning_up_is_lost(followed, hugging_face, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    other = write_run(RunStore(home, "other"), a_config(), InventedRun(state="stopped", steps=60))
    whole = next(iter(sorted(other.folder.checkpoints.iterdir())))
    followed.begins()
    for path in whole.rglob("*"):
        if path.is_file():
            followed.writes(f"checkpoints/{whole.name}/{path.relative_to(whole).as_posix()}", path.read_bytes())
    followed.step()
    followed.ends()
    hugging_face.faults = [Fault("batch", "lost", times=50)]
    assert followed.step().stage != "ended"
    hugging_face.faults = []

    assert followed.step().end.exit_code == 0
    assert followed.run.folder.newest_checkpoint_step() is not None
    followed.restart()
    assert followed.step().stage == "ended", "a server that is killed now asks nobody again"
