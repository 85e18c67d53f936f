"""A job as this machine follows it, step by step, while Hugging Face answers, refuses, or is away."""

import pytest

from loratory.engine.errors import HubUnreachableError
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.account import HubLogin
from loratory.engine.places.huggingface_jobs.job import HubJob, JobsExecutor
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.control import request_stop
from loratory.engine.runs.run import RunState
from tests.hub.server import TOKEN, Fault
from tests.jobs.followed_run import BUCKET, FollowedRun
from tests.waiting import wait_until


def test_a_run_is_sent_in_a_private_bucket_and_its_job_named(followed_run, hugging_face):
    view = followed_run.step()

    job = hugging_face.only_job()
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("l4x1", 7200)
    assert job.spec["secrets"] == {"HF_TOKEN": TOKEN}
    assert TOKEN not in str({**job.spec, "secrets": None})
    assert hugging_face.public == set()
    inputs = {name.split("/inputs/")[1] for name in hugging_face.files[BUCKET] if "/inputs/" in name}
    assert inputs == {"run/config.yaml", "run/provenance.json", "run/events.jsonl"}
    assert any(name.startswith("wheels/") for name in hugging_face.files[BUCKET])
    record = JobRecord.read(followed_run.run.folder)
    assert (record.job_id, record.namespace, record.hardware) == (job.id, "ada", "1x Nvidia L4")
    assert record.price_per_hour_usd == pytest.approx(0.8)
    assert record.url.endswith(job.id)
    assert view.stage == "waiting"
    assert followed_run.job.poll(has_reported=False).why.cause == "Waiting at Hugging Face for 1x Nvidia L4."


def test_a_second_run_sends_no_second_wheel(followed_run, hugging_face, api, home):
    followed_run.step()
    wheels = [name for name in hugging_face.files[BUCKET] if name.startswith("wheels/")]
    names: list[str] = []
    hugging_face.on_stored = names.append
    FollowedRun(hugging_face, api, home).step()

    assert len(wheels) == 1
    assert names
    assert not any(name.startswith("wheels/") for name in names)


def test_a_public_bucket_gets_no_data(followed_run, hugging_face):
    hugging_face.files[BUCKET] = {}
    hugging_face.public.add(BUCKET)

    view = followed_run.step()

    assert view.stage == "ended"
    assert "is public" in view.end.cause
    assert hugging_face.files[BUCKET] == {}
    assert not hugging_face.jobs


REFUSALS = [
    ("make", 403, "does not let your token use jobs and buckets of ada"),
    ("submit", 402, "no credit"),
    ("submit", 403, "does not let your token use jobs and buckets of ada"),
    ("submit", 404, "no account or bucket ada"),
]


@pytest.mark.parametrize(("step", "status", "message"), REFUSALS)
def test_a_refusal_before_the_start_ends_the_run_with_a_message(followed_run, hugging_face, step, status, message):
    hugging_face.faults = [Fault(step, status, times=9)]

    view = followed_run.step()

    assert view.stage == "ended"
    assert message in view.end.cause
    assert view.end.advice
    assert TOKEN not in str(view)
    assert followed_run.job.poll(has_reported=False).phase == "gone"
    assert not hugging_face.jobs


@pytest.mark.parametrize("step", ["whoami", "make", "tree", "batch", "submit"])
def test_a_hub_that_is_away_before_the_start_is_asked_again(followed_run, hugging_face, step):
    hugging_face.faults = [Fault(step, 503, times=7)]

    view = followed_run.step()
    assert view.stage == "preparing"
    assert isinstance(view.trouble, HubUnreachableError)
    assert followed_run.job.pause > 1
    hugging_face.faults = []
    view = followed_run.step()

    assert view.stage == "waiting"
    assert view.trouble is None
    assert len(hugging_face.jobs) == 1


def test_an_answer_that_was_lost_starts_no_second_job(followed_run, hugging_face):
    hugging_face.faults = [Fault("submit", "lost", times=2)]  # of looking for it, and of submitting it
    followed_run.step()
    hugging_face.faults = [Fault("submit", 503, times=0)]
    followed_run.restart()
    followed_run.step(3)

    assert len(hugging_face.jobs) == 1
    assert JobRecord.read(followed_run.run.folder).job_id == hugging_face.only_job().id


ENDS = [
    ("CANCELED", None, "was cancelled at Hugging Face"),
    ("ERROR", "Job timeout", "its time limit of 2 h"),
    ("ERROR", "Job failed with exit code: 137", "failed at Hugging Face (Job failed with exit code: 137)"),
    ("COMPLETED", None, "its results did not arrive"),
    ("DELETED", None, "does not list the job"),
]


@pytest.mark.parametrize(("stage", "message", "cause"), ENDS)
def test_each_end_without_a_result_is_named(followed_run, hugging_face, stage, message, cause):
    job = followed_run.begins()
    job.log.write_text("what uv printed\n")
    hugging_face.end(job, stage, message)

    view = followed_run.step()

    assert cause in view.end.cause
    assert view.end.exit_code is None
    assert "what uv printed" in followed_run.run.folder.log.read_text()


def test_a_job_that_vanishes_counts_as_lost_only_after_several_looks(followed_run, hugging_face):
    followed_run.begins()
    followed_run.step()
    hugging_face.jobs.clear()
    assert followed_run.step().stage == "running"
    assert followed_run.job.poll(has_reported=True).phase == "alive"

    view = followed_run.step(2)

    assert view.stage == "ended"
    assert "does not list the job" in view.end.cause


@pytest.mark.parametrize("what", [401, 500, "reset"])
def test_a_running_job_continues_while_hugging_face_does_not_answer(followed_run, hugging_face, what):
    followed_run.begins()
    followed_run.step()
    hugging_face.faults = [Fault("inspect", what, times=50), Fault("tree", what, times=50)]
    for _ in range(3):
        followed_run.step()

    status = followed_run.job.poll(has_reported=True)
    assert status.phase == "alive"
    assert status.why.reason == "executor_unreachable"
    assert followed_run.job.activity() is None  # its silence is not counted
    hugging_face.faults = []
    followed_run.step()
    assert followed_run.job.poll(has_reported=True).why is None


def test_a_cancel_ends_the_job_and_a_stop_is_passed_on(followed_run, hugging_face):
    followed_run.begins()
    followed_run.job.request_stop()
    followed_run.step()
    assert hugging_face.files[BUCKET][f"{layout.attempt_folder(followed_run.run.id, 1)}/control/stop"]
    followed_run.job.cancel()

    view = followed_run.step()

    assert hugging_face.only_job().stage == "CANCELED"
    assert view.stage == "ended"


def test_a_job_that_was_not_looked_at_yet_waits_unless_it_may_have_something_to_save(followed_run):
    followed_run.step()
    followed_run.restart()
    assert followed_run.job.poll(has_reported=False).phase == "waiting"
    assert followed_run.job.poll(has_reported=True).phase == "alive"
    request_stop(followed_run.run)
    assert followed_run.job.poll(has_reported=False).phase == "alive"


def test_a_person_without_a_login_reads_what_to_do(followed_run, hugging_face, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    executor = JobsExecutor(home)
    job = HubJob(followed_run.run, followed_run.record, home, executor._login_of)
    job.step()

    assert "needs a token" in job.view.end.cause
    assert "hf auth login" in job.view.end.advice


def test_no_job_is_looked_at_once_another_process_may(followed_run, hugging_face, home, api):
    hugging_face.starts_jobs = False
    executor = JobsExecutor(home, lambda _: HubLogin(api), 0.001)
    executor.attach(followed_run.run, RunState(attempt=1))
    wait_until(lambda: hugging_face.requests["inspect"] > 2)

    executor.close()

    looks = hugging_face.requests["inspect"]
    followed_run.step()
    assert hugging_face.requests["inspect"] == looks + 1  # its own
