"""A cluster: how its admin describes it in `cluster.yaml`, and the record of a job, with why it waits and how it ended."""

import sys
from typing import Annotated, Self

from pydantic import BaseModel, Field, StringConstraints

from loratory.engine.config.load import mapping_from_file, section_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ClusterError, DeviceError
from loratory.engine.hardware.device import Device
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.follower import SavedJob
from loratory.engine.places.slurm.commands import JobLine
from loratory.engine.runs.job import ExecutorVerdict, JobEnd
from loratory.engine.runs.run import Run

CLUSTER_FILE = "cluster.yaml"

# Given to sbatch as a value; none of these is a flag, and none leaves its line.
_Name = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_.,:&|*()\[\]@/+-]*$")]
_Line = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$")]


class GpuType(BaseModel, frozen=True, extra="forbid"):
    """One kind of GPU in the cluster."""

    name: _Name = Field(description="As Slurm calls it, such as a100; empty where its GPUs have no type.")
    memory_gib: float = Field(gt=0, le=10_000, description="Memory of one, in GiB, as nvidia-smi shows it.")
    per_node: int = Field(default=1, ge=1, le=64, description="In one node.")
    count: int = Field(default=1, ge=1, le=1_000_000, description="In the whole cluster.")


class ClusterPlace(BaseModel, frozen=True, extra="forbid"):
    """Where and how jobs are submitted."""

    partition: _Name = Field(default="", description="Slurm's default where empty.")
    account: _Name = Field(default="", description="Who pays, where the cluster accounts.")
    qos: _Name = Field(default="", description="Quality of service.")
    constraint: _Name = Field(default="", description="Features that a node must have.")
    gpu_types: tuple[GpuType, ...] = Field(default=(), description="Each kind of GPU, smallest memory first.")
    setup: tuple[_Line, ...] = Field(
        default=(), max_length=100, description="Shell lines before the worker, such as `module load cuda`."
    )
    python: _Line = Field(default="", description="Python with Loratory on the nodes; that of this server where empty.")
    offline: bool = Field(default=True, description="Whether nodes have no internet: models and data come before.")
    cpus: int = Field(default=4, ge=1, le=1024, description="Cores for each process.")
    memory_gib: float = Field(default=16.0, gt=0, le=100_000, description="RAM of a node, where a run asks for none.")
    limit_hours: float = Field(default=24.0, gt=0, le=8760, description="Time limit, where a run asks for none.")
    work_hours: float = Field(
        default=4.0, gt=0, le=8760, description="Time limit of a chat, a measurement or an export on a node."
    )
    warning_seconds: int = Field(
        default=300, ge=10, le=3600, description="Before the time limit, in which a run saves its checkpoint."
    )
    poll_seconds: float = Field(default=7.0, ge=0.1, le=300, description="Between two queries of the queue.")
    command_seconds: float = Field(default=20.0, ge=1, le=300, description="Time limit of one command of Slurm.")

    @property
    def interpreter(self) -> str:
        """The Python of the nodes."""
        return self.python or sys.executable

    def devices_for(self, config: RunConfig) -> tuple[Device, ...]:
        """Return the devices that each process of a run may get, smallest memory first.

        Raises:
            DeviceError: If the cluster has none that the run names.
        """
        gpu_type = config.slurm.gpu_type
        if config.run.devices == "cpu":
            memory = round((config.slurm.memory_gib or self.memory_gib) * 2**30)
            return (Device("cpu", 0, "CPU of a node", memory, memory, has_fast_bfloat16=False, cores=self.cpus),)
        kinds = sorted(self.gpu_types, key=lambda kind: kind.memory_gib)
        matching = [kind for kind in kinds if gpu_type in ("", kind.name)]
        if not matching:
            there = ", ".join(kind.name for kind in kinds) or "none"
            raise DeviceError(
                f"The cluster has no GPUs of type {gpu_type}." if gpu_type else "The cluster has no GPUs.",
                f"Its types are {there}; an admin lists them in cluster.yaml, and run.devices cpu takes no GPU.",
            )
        sizes = [(kind.name, round(kind.memory_gib * 2**30)) for kind in matching]
        return tuple(Device("cuda", 0, name, size, size, has_fast_bfloat16=True) for name, size in sizes)


def read_place(home: LoratoryHome) -> ClusterPlace:
    """Load the cluster of a home.

    Raises:
        ClusterError: If there is none.
        ConfigError: If a setting is wrong.
        StorageError: If the file cannot be read.
    """
    path = home.root / CLUSTER_FILE
    if not path.exists():
        raise ClusterError(f"There is no {CLUSTER_FILE} in LORATORY_HOME.", "Run `loratory cluster discover` first.")
    return section_from_mapping(ClusterPlace, mapping_from_file(path))


def has_place(home: LoratoryHome) -> bool:
    """Whether a cluster was set up for a home."""
    return (home.root / CLUSTER_FILE).exists()


_MINUTES_AT_LEAST = 1.0  # Slurm counts in minutes


class JobResources(BaseModel, frozen=True):
    """What a job asks for."""

    gpus: int = 1  # in each node; 0 trains on the processor
    gpu_type: str = ""  # any where empty
    nodes: int = 1
    cpus: int = 4  # for each process
    memory_gib: float = 16.0  # RAM in each node
    limit_minutes: float = 60.0

    @classmethod
    def from_config(cls, config: RunConfig, place: ClusterPlace) -> Self:
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
    def label(self) -> str:
        """Such as `1×a100` or `2 nodes, 4×a100 each`."""
        per_node = f"{self.gpus}×{self.gpu_type or 'GPU'}" if self.gpus else "CPU"
        return per_node if self.nodes == 1 else f"{self.nodes} nodes, {per_node} each"


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


WAITING_STATES = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
ENDED_STATES = frozenset(
    """
    BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL REVOKED TIMEOUT
    """.split()
)

# By the beginning of Slurm's reason, the longest first. Source: squeue(1), "JOB REASON CODES".
_WAITS = {
    "Resources": "its node or GPUs are in use",
    "Priority": "jobs of higher priority come first",
    "None": "Slurm has not considered it yet",
    "BeginTime": "it may begin later only",
    "JobHeldUser": "it is held",
    "JobHeldAdmin": "an admin of the cluster holds it",
    "ReqNodeNotAvail": "the nodes that it needs are down, drained or reserved",
    "Nodes required for job are DOWN": "the nodes that it needs are down, drained or reserved",
    "NodeDown": "the node that it needs is down",
    "PartitionDown": "its partition starts no jobs at present",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows",
    "PartitionTimeLimit": "it asks for more time than its partition allows",
    "BadConstraints": "no node has what it asks for",
    "Constraints": "no node has what it asks for",
    "QOSMaxJobs": "you have as many jobs running as your QoS allows",
    "QOSMaxGRES": "your running jobs use as many GPUs as your QoS allows",
    "QOSMax": "it is beyond a limit of your QoS",
    "QOSGrp": "all jobs of this QoS together use as much as it allows",
    "QOSNotAllowed": "your account may not use this QoS",
    "QOSTimeLimit": "it asks for more time than your QoS allows",
    "AssocMaxJobs": "you have as many jobs running as your account allows",
    "AssocMaxGRES": "your running jobs use as many GPUs as your account allows",
    "AssocMax": "it is beyond a limit of your account",
    "AssocGrp": "all jobs of your account together use as much as it allows",
    "MaxMemPerLimit": "it asks for more memory than the limit of its partition",
    "JobLaunchFailure": "it could not be started on its node; Slurm tries again",
}
_BY_LENGTH = sorted(_WAITS, key=len, reverse=True)

_NEVER = frozenset(
    """
    PartitionNodeLimit PartitionTimeLimit BadConstraints QOSNotAllowed InvalidAccount InvalidQOS MaxMemPerLimit QOSTimeLimit
    AssociationTimeLimit
    """.split()
)


def describe_wait(line: JobLine) -> tuple[str, str]:
    """Return why a job waits, such as `Waiting at Slurm: Resources, job 1234 (…).`, and what to do where only that helps."""
    reason = line.reason.strip("()") or "None"
    prefix = next((name for name in _BY_LENGTH if reason.startswith(name)), None)
    name = reason.partition(",")[0]
    text = f"Waiting at Slurm: {name}, job {line.id}"
    text = f"{text} ({_WAITS[prefix]})." if prefix is not None else f"{text}."
    return text, "Cancel it, correct cluster.yaml or the run's settings, and start again." if name in _NEVER else ""


_ENDS: dict[str, tuple[ExecutorVerdict, str]] = {
    "OUT_OF_MEMORY": (
        "out_of_memory",
        "Slurm ended job {id}{where}: it used more than the {memory:g} GiB of RAM that it had.",
    ),
    "TIMEOUT": ("time_limit", "Job {id}{where} reached its time limit at Slurm ({limit})."),
    "DEADLINE": ("time_limit", "Job {id}{where} reached its deadline at Slurm."),
    "NODE_FAIL": ("node_failed", "The node of job {id} failed{where}."),
    "BOOT_FAIL": ("node_failed", "The node of job {id} failed to boot{where}."),
    "PREEMPTED": ("preempted", "Slurm preempted job {id}{where} for a job of higher priority."),
    "CANCELLED": ("cancelled", "Job {id}{where} was cancelled at Slurm (scancel)."),
    "REVOKED": ("cancelled", "Job {id}{where} was revoked at Slurm."),
}


def job_end(record: SlurmRecord) -> JobEnd:
    """Return how a job ended, from what Slurm's queue showed last."""
    state = "TIMEOUT" if record.near_limit and record.end_state == "COMPLETED" else record.end_state
    if not state and record.job_id:
        return JobEnd(cause=f"Slurm no longer knows job {record.job_id}, and its worker gives no sign of life.")
    if state not in _ENDS:
        return JobEnd(record.exit_code)
    verdict, template = _ENDS[state]
    minutes = record.resources.limit_minutes
    limit = f"{minutes / 60:g} h" if minutes >= 60 else f"{minutes:g} min"
    where = f" on {record.nodes}" if record.nodes else ""
    cause = template.format(id=record.job_id, where=where, memory=record.resources.memory_gib, limit=limit)
    return JobEnd(record.exit_code, verdict=verdict, cause=cause)
