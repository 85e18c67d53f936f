"""A lab whose people train at Hugging Face."""

from loratory.engine.accounts.people import Logins
from loratory.engine.places.huggingface_jobs import layout
from loratory.engine.places.huggingface_jobs.account import logins_of
from loratory.engine.places.huggingface_jobs.job import HubJob
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.runs.provenance import Provenance
from loratory.engine.runs.store import RunStore
from tests.invented_runs import a_config

TOKENS = {"ada": "hf_CanaryOfAda43", "bob": "hf_CanaryOfBob44"}
SERVERS_OWN = "hf_CanaryOfTheServer45"


class Lab:
    """A lab whose server has a login of its own, which is for no one."""

    def __init__(self, hugging_face, home) -> None:
        self.hugging_face, self.home, self.now = hugging_face, home, 1000.0
        hugging_face.accounts = {TOKENS["ada"]: "ada-hub", TOKENS["bob"]: "bob-hub", SERVERS_OWN: "server"}
        hugging_face.starts_jobs = False
        self.restarts()

    def restarts(self) -> None:
        """As a server that was restarted: no token is left."""
        self.logins = Logins(lambda: self.now)

    def signs_in(self, name, seconds=8 * 3600.0, token=None):
        self.logins.put(name, token or TOKENS[name], self.now + seconds)

    def run(self, owner, **changes):
        config = a_config(run__where="jobs", jobs__flavor="l4x1", jobs__limit_hours=2, **changes)
        return RunStore(self.home, owner).create(config, Provenance(person=owner))

    def follow(self, run):
        record = JobRecord.read(run.folder) or JobRecord(attempt=1, namespace="", flavor="l4x1", limit_hours=2)
        return HubJob(run, record.save(run.folder), self.home, logins_of(self.home, self.logins), 1.0)

    def begins(self, owner="ada"):
        """Return a run of a person who signed in, and its job, which runs."""
        run = self.run(owner)
        self.signs_in(owner)
        job = self.follow(run)
        job.step()
        self.hugging_face.only_job().stage = "RUNNING"
        return run, job

    def bucket_of(self, run, name):
        account = self.hugging_face.accounts[TOKENS[run.owner]]
        return f"{account}/loratory-runs", f"{layout.attempt_folder(run.id, 1)}/{name}"

    def writes(self, run, name, data):
        self.hugging_face.store(*self.bucket_of(run, name), data)
