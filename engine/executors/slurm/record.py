"""`job.json` of a run on a cluster: the record of its job, which survives restarts of the server and of Slurm."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from engine.config.run import RunConfig
from engine.executors.follower import SavedJob
from engine.executors.slurm.place import ClusterPlace
from engine.runs.run import Run

_MINUTES_AT_LEAST = 1.0  # Slurm counts in minutes


class JobResources(BaseModel):
    """What a job asks for."""

    model_config = ConfigDict(frozen=True)

    gpus: int = 1  # in each node; 0 trains on the processor
    gpu_type: str = ""  # any where empty
    nodes: int = 1
    cpus: int = 4  # for each process
    memory_gib: float = 16.0  # RAM in each node
    limit_minutes: float = 60.0

    @classmethod
    def of(cls, config: RunConfig, place: ClusterPlace) -> Self:
        """Return what a configuration asks for; the place has the rest."""
        settings = config.slurm
        limit_hours = settings.limit_hours or place.limit_hours
        return cls(
            gpus=0 if config.run.devices == "cpu" else settings.gpus,
            gpu_type=settings.gpu_type,
            nodes=settings.nodes,
            cpus=place.cpus,
            memory_gib=settings.memory_gib or place.memory_gib,
            limit_minutes=max(limit_hours * 60, _MINUTES_AT_LEAST),
        )

    @property
    def words(self) -> str:
        """Such as `1×a100` or `2 nodes, 4×a100 each`."""
        one = f"{self.gpus}×{self.gpu_type or 'GPU'}" if self.gpus else "CPU"
        return one if self.nodes == 1 else f"{self.nodes} nodes, {one} each"


class SlurmRecord(SavedJob, frozen=True):
    """The job of one attempt."""

    executor: str = Field(default="slurm", pattern="^slurm$")
    resources: JobResources
    warning_seconds: int  # before the time limit, as the job was submitted
    is_released: bool = False  # until then it is held
    nodes: str = ""  # where it runs or ran
    end_state: str = ""  # Slurm's last word, such as TIMEOUT; empty before, and where Slurm has forgotten it
    exit_code: int | None = None
    near_limit: bool = False  # whether it ended after the warning that its time is up

    def comment(self, run: Run) -> str:
        """Return what Slurm shows of it."""
        return f"loratory {run.id} attempt {self.attempt} {self.number}"
