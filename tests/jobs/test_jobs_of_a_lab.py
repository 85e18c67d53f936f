"""Jobs of people of a lab: each in their own name with their own token, which is in memory alone."""

import logging
import os
import sys
import time
from functools import partial

import pytest

from loratory.engine.accounts.lab import LabSettings, save_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.people import Logins
from loratory.engine.errors import AccountError, PushError, RunError, SignInNeededError
from loratory.engine.lab.rules import lab_problems, resume_run
from loratory.engine.places import make_executors
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.account import HardwareList, logins_of, sign_in
from loratory.engine.places.huggingface_jobs.job import HubJob, JobsExecutor
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.control import request_stop
from loratory.engine.runs.run import RunState
from loratory.engine.runs.usage import usage_by_week
from loratory.engine.supervision.scheduler import SupervisorSettings
from loratory.engine.supervision.supervisor import Supervisor
from tests.hub.server import Fault
from tests.invented_runs import a_config
from tests.jobs.lab import SERVERS_OWN, TOKENS
from tests.waiting import wait_until


def test_two_people_train_side_by_side_each_in_their_own_name(lab, hugging_face, home, caplog):
    caplog.set_level(logging.DEBUG)
    executor = JobsExecutor(home, logins_of(home, lab.logins), 0.05)
    runs = [lab.run("ada"), lab.run("bob")]
    for run in runs:
        lab.signs_in(run.owner)
        state = RunState(attempt=1)
        JobRecord(attempt=1, namespace="", flavor="l4x1", limit_hours=2).save(run.folder)
        job = executor.attach(run, state)
        wait_until(lambda job=job: job.poll(has_reported=False).why is not None and job.view.stage == "waiting")
    for run in runs:
        there = next(hub_job for hub_job in hugging_face.jobs.values() if hub_job.namespace == f"{run.owner}-hub")
        assert there.spec["secrets"] == {"HF_TOKEN": TOKENS[run.owner]}
        lab.writes(run, layout.END, layout.JobResult(exit_code=0).model_dump_json().encode())
        hugging_face.end(there, "COMPLETED")
        wait_until(lambda run=run: JobRecord.read(run.folder).is_over)
    executor.close()  # nothing is written while it is read

    assert {token for step, token in hugging_face.asked_as if step != "other"} == set(TOKENS.values())
    assert {token for step, token in hugging_face.asked_as if step == "other"} <= {
        ""
    }  # the library's own, without a login
    for account, token in (("ada-hub", TOKENS["ada"]), ("bob-hub", TOKENS["bob"])):
        assert {used_token for path, used_token in hugging_face.paths_as if f"/{account}/" in f"{path}/"} == {token}
    for path in home.root.rglob("*"):
        for token in (*TOKENS.values(), SERVERS_OWN):
            assert path.is_dir() or token.encode() not in path.read_bytes(), path
            assert token not in caplog.text
            assert token not in repr((executor, lab.logins, vars(executor)))
    assert not any(token in " ".join([*os.environ.values(), *sys.argv]) for token in TOKENS.values())


def test_the_login_of_the_machine_is_for_no_person_of_a_lab(lab, hugging_face, home):
    run = lab.run("ada")
    for login_of in (logins_of(home), logins_of(home, Logins()), logins_of(home, lab.logins)):
        for owner in ("ada", "", "local", "root"):
            with pytest.raises(SignInNeededError):
                login_of(owner)
    job = HubJob(run, JobRecord(attempt=1, namespace="server", flavor="l4x1", limit_hours=2), home, logins_of(home))
    job.step()
    with pytest.raises(SignInNeededError):
        HardwareList(lambda: logins_of(home)("ada")).refresh()

    assert "Sign in again to send this run" in job.view.trouble.what
    assert hugging_face.asked_as == []


def test_a_token_that_expires_lets_the_run_wait_and_stops_are_kept(lab, hugging_face):
    run, job = lab.begins()
    job.step()
    lab.now += 9 * 3600
    request_count = len(hugging_face.asked_as)
    job.request_stop()
    job.step()

    assert job.poll(has_reported=True).phase == "alive"
    assert job.poll(has_reported=True).why.cause == "Sign in again to follow this job."
    assert job.activity() is None  # its silence is not counted
    assert job.pause == 1.0  # it is noticed at once when the person signs in
    assert len(hugging_face.asked_as) == request_count
    lab.writes(run, layout.segment_name(0), b'{"n": 1}\n')
    lab.signs_in("ada", token=TOKENS["ada"])
    job.step()
    assert job.poll(has_reported=True).why is None
    assert run.folder.events.read_bytes() == b'{"n": 1}\n'
    bucket, name = lab.bucket_of(run, layout.STOP_REQUEST)
    assert name in hugging_face.files[bucket]


def test_after_a_restart_the_job_is_followed_again_once_the_person_signs_in(lab, hugging_face, home):
    run = lab.run("bob")
    lab.signs_in("bob")
    lab.follow(run).step()
    hugging_face.only_job().stage = "RUNNING"
    lab.restarts()
    job = lab.follow(run)
    job.step()
    request_stop(run)

    status = job.poll(has_reported=False)
    assert (status.phase, status.why.cause) == ("alive", "Sign in again to follow this job.")
    lab.writes(run, layout.END, layout.JobResult(exit_code=0).model_dump_json().encode())
    hugging_face.end(hugging_face.only_job(), "COMPLETED")
    lab.signs_in("bob")
    job.step()
    assert job.view.end.exit_code == 0
    assert len(hugging_face.jobs) == 1


def test_another_account_does_not_look_for_the_job(lab, hugging_face):
    _, job = lab.begins()
    lab.signs_in("ada", token=TOKENS["bob"])
    for _ in range(5):
        job.step()

    assert job.view.stage != "ended"
    assert job.view.trouble.what == ("This job is of ada-hub at Hugging Face, and you are signed in there as bob-hub.")
    requests = [step for step, token in hugging_face.asked_as if token == TOKENS["bob"]]
    assert requests == ["whoami"], "once for all steps"
    lab.signs_in("ada")
    job.step()
    assert job.view.trouble is None


def test_a_job_ends_before_the_token_that_it_gets(lab, hugging_face):
    soon, later = lab.run("ada"), lab.run("bob")
    lab.signs_in("ada", 1.5 * 3600)
    lab.signs_in("bob", 300)
    lab.follow(soon).step()
    waiting = lab.follow(later)
    waiting.step()

    assert hugging_face.only_job().spec["timeoutSeconds"] == round(1.2 * 3600)
    assert JobRecord.read(soon.folder).limit_hours == 1.2
    assert "your sign-in ends too soon" in waiting.view.trouble.what
    lab.signs_in("bob")
    waiting.step()
    assert len(hugging_face.jobs) == 2


def test_a_cancel_needs_no_login_before_the_run_is_sent(lab, hugging_face):
    job = lab.follow(lab.run("ada"))
    job.step()
    job.cancel()
    job.step()

    assert job.poll(has_reported=False).phase == "gone"
    assert job.end().cause == "Cancelled before it was sent."
    assert hugging_face.asked_as == []


@pytest.mark.parametrize("token", ["", " ", "hf_a b", "hf_a\nHost: other", "hf_ä", "x" * 201])
def test_what_cannot_be_a_token_is_sent_to_no_one(lab, hugging_face, token):
    with pytest.raises(AccountError):
        sign_in(lab.logins, "ada", token)
    assert hugging_face.asked_as == []


def test_a_refused_token_is_not_kept(lab):
    with pytest.raises(PushError) as error_info:
        sign_in(lab.logins, "ada", "hf_OfNobody")
    assert "hf_OfNobody" not in str(error_info.value)
    assert lab.logins.token_of("ada") is None


def test_a_token_that_a_person_gave_is_theirs_alone(lab):
    lab.now = 4e9  # after the expiry that a real clock gives
    lab.logins = Logins()
    assert sign_in(lab.logins, "ada", f" {TOKENS['ada']} ") == "ada-hub"
    assert lab.logins.token_of("ada") == TOKENS["ada"]
    assert lab.logins.token_of("bob") is None


def test_members_train_there_and_guests_do_not(lab, home):
    config = a_config(run__where="jobs")
    fields = [problem.field for problem in lab_problems(config, home.for_person("eve", "guest"))]
    assert "run.where" in fields
    assert "run.where" not in [problem.field for problem in lab_problems(config, home.for_person("ada"))]
    run = lab.run("ada")
    run.folder.write_state(RunState(state="stopped", attempt=1))
    with pytest.raises(RunError, match="Guests train"):
        resume_run(home.for_person("ada", "guest"), run)
    resume_run(home.for_person("ada"), run)


def test_a_hub_that_refuses_a_token_reports_it_to_its_person(lab, hugging_face):
    _, job = lab.begins()
    hugging_face.faults = [Fault("inspect", 401, times=9)]
    job.step()

    assert "does not accept your token" in job.view.trouble.what
    assert "Train tab" in job.view.trouble.fix


def test_a_cancelled_job_that_no_one_follows_any_more_is_over_after_its_time(lab, hugging_face):
    run = lab.run("ada")
    lab.signs_in("ada")
    job = lab.follow(run)
    job.step()
    lab.restarts()
    job = lab.follow(run)
    job.wants_cancel = True
    job.step()
    assert job.view.stage == "unseen", "the cancel waits for its person"
    job.record = job.record.model_copy(update={"sent_at": time.time() - 27 * 3600})
    job.step()

    assert job.view.end.cause == "The job is over. Its results were not downloaded: you had not signed in."


def test_a_job_waits_for_no_device_of_the_lab_and_counts_for_no_gpu_time(lab, hugging_face, home):
    save_settings(home, LabSettings(limits=LabLimits(running_per_person=1, free_disk_gb=0)))
    lab.signs_in("ada")
    executors = partial(make_executors, login_of=logins_of(home, lab.logins))
    settings = SupervisorSettings(executors=executors, devices=lambda: (), tick_seconds=0.05)
    runs = [lab.run("ada"), lab.run("ada")]
    supervisor = Supervisor(home, settings)
    supervisor.start()
    try:
        wait_until(lambda: len(hugging_face.jobs) == 2)
        for run in runs:
            there = next(
                hub_job
                for hub_job in hugging_face.jobs.values()
                if run.id in hub_job.spec["environment"]["LORATORY_JOB"]
            )
            lab.writes(run, layout.END, layout.JobResult(exit_code=1).model_dump_json().encode())
            hugging_face.end(there, "ERROR")
        wait_until(lambda: all(run.folder.read_state().is_final for run in runs))
    finally:
        supervisor.stop()

    assert sum(week.gpu_hours + week.cpu_hours for week in usage_by_week(home)) == 0
    for path in home.root.rglob("*"):
        assert path.is_dir() or TOKENS["ada"].encode() not in path.read_bytes(), path
