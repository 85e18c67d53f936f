"""A run on Hugging Face Jobs whose job does what a test decides."""

from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.account import HubLogin
from loratory.engine.places.huggingface_jobs.job import HubJob
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from tests.invented_runs import a_config

BUCKET = "ada/loratory-runs"


class FollowedRun:
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
        self.job = HubJob(self.run, self.record, home, lambda _: HubLogin(self.api), 1.0, lambda: self.now)

    def restart(self) -> None:
        """As a server that comes back finds it."""
        self.record = JobRecord.read(self.run.folder)
        self.follow(self.home, self.api)

    def step(self, times=1):
        for _ in range(times):
            self.job.step()
        return self.job.view

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
