"""A Slurm whose answers a test decides."""

from loratory.engine.places.slurm.commands import JobLine


class FakeSlurm:
    """A controller in memory."""

    limit_seconds = 1.0

    def __init__(self):
        self.jobs: dict[str, JobLine] = {}
        self.scripts: list[str] = []
        self.commands: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.is_silent = False  # squeue answers nothing

    def _answer(self, what):
        self.commands.append(what)
        if what in self.fails:
            raise self.fails[what]

    def require_possible(self, script, options):
        self._answer("test")

    def submit(self, script, options):
        job_id = str(100 + len(self.scripts))
        self.scripts.append(script)
        comment = next(option.removeprefix("--comment=") for option in options if option.startswith("--comment="))
        if "lost answer" not in self.fails:
            self._answer("submit")
        self.jobs[job_id] = JobLine(job_id, "PENDING", "JobHeldUser", comment)
        if "lost answer" in self.fails:
            raise self.fails.pop("lost answer")
        return job_id

    def queue(self):
        self._answer("queue")
        return [] if self.is_silent else list(self.jobs.values())

    def find(self, job_id):
        self._answer("find")
        return self.jobs.get(job_id)

    def release(self, job_id):
        self._answer("release")
        self.change(job_id, reason="Priority")

    def cancel(self, job_id):
        self._answer(f"cancel {job_id}")
        self.change(job_id, state="CANCELLED")

    def kill(self, job_id):
        self._answer(f"kill {job_id}")
        self.change(job_id, state="FAILED", exit_code=-9)

    def change(self, job_id, **changes):
        self.jobs[job_id] = self.jobs[job_id]._replace(**changes)
