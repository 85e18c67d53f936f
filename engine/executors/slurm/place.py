"""`cluster.yaml`: an admin's description of the cluster, for all runs."""

import sys
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from engine.config.load import mapping_from_file, section_from_mapping
from engine.config.run import RunConfig
from engine.errors import ClusterError, DeviceError
from engine.hardware.device import Device
from engine.paths import LoratoryHome

CLUSTER_FILE = "cluster.yaml"

# Given to sbatch as a value; none of these is a flag, and none leaves its line.
_Name = Annotated[str, StringConstraints(max_length=200, pattern=r"^[A-Za-z0-9_.,:&|*()\[\]@/+-]*$")]
_Line = Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$")]


class GpuType(BaseModel):
    """One kind of GPU in the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Name = Field(description="As Slurm calls it, such as a100; empty where its GPUs have no type.")
    memory_gib: float = Field(gt=0, le=10_000, description="Memory of one, in GiB, as nvidia-smi shows it.")
    per_node: int = Field(default=1, ge=1, le=64, description="In one node.")
    count: int = Field(default=1, ge=1, le=1_000_000, description="In the whole cluster.")


class ClusterPlace(BaseModel):
    """Where and how jobs are submitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    poll_seconds: float = Field(default=7.0, ge=0.1, le=300, description="Between two looks at the queue.")
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
