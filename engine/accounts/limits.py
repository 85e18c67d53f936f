"""What an admin allows each person of a lab: runs, GPU time, disk space; and whether runs start at all."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.paths import LoratoryHome

SETTINGS_FILE = "lab.yaml"

Weight = Annotated[float, Field(ge=0, le=1000)]
_Device = Annotated[str, StringConstraints(pattern=r"^(cpu|mps|cuda:\d{1,4})$")]


class LabLimits(BaseModel, frozen=True, extra="forbid"):
    """Limits of a lab; an empty one does not limit."""

    running_per_person: int | None = Field(
        default=2, ge=1, le=1000, title="Running per person",
        description="Runs of one person at the same time; further ones wait. Leave devices for others where many share few.",
    )  # fmt: skip
    waiting_per_person: int | None = Field(
        default=50, ge=1, le=10_000, title="Waiting per person",
        description="Runs of one person in the queue; further starts are refused. Sweeps need one slot per run.",
    )  # fmt: skip
    weekly_gpu_hours: float | None = Field(
        default=None, gt=0, le=100_000, title="GPU-hours per week",
        description="Per person, from Monday. Beyond it, a run starts only when no other person waits for the device.",
    )  # fmt: skip
    longest_run_hours: float | None = Field(
        default=None, gt=0, le=10_000, title="Maximum run time, in hours",
        description="A run is then stopped with a checkpoint. It can be resumed, and waits for its turn.",
    )  # fmt: skip
    guest_run_hours: float | None = Field(
        default=1.0, gt=0, le=10_000, title="Maximum run time of guests, in hours",
        description="Counts all attempts at a run together, so resuming does not extend it.",
    )  # fmt: skip
    guest_max_steps: int | None = Field(
        default=200, ge=1, le=1_000_000, title="Maximum steps of guests",
        description="Optimizer steps of a guest's run. Longer runs are shortened; a larger max_steps is refused.",
    )  # fmt: skip
    disk_gb_per_person: float | None = Field(
        default=200.0, gt=0, le=1_000_000, title="Disk space per person, in GB",
        description="Runs, uploads and exports together. At the limit, starts and uploads are refused, and runs save fewer "
        "checkpoints, then stop.",
    )  # fmt: skip
    free_disk_gb: float = Field(
        default=10.0, ge=0, le=1_000_000, title="Free disk space to keep, in GB",
        description="Below it, no run starts and nothing is uploaded. A full disk would stop every run.",
    )  # fmt: skip
    model_cache_gb: float | None = Field(
        default=None, gt=0, le=1_000_000, title="Size of the model cache, in GB",
        description="Beyond it, the models used least recently are offered for removal. Nothing is removed by itself.",
    )  # fmt: skip
    idle_minutes: float = Field(
        default=30.0, ge=1, le=10_080, title="Idle models, in minutes",
        description="A chat or endpoint without requests is unloaded after this time; after 1 minute where a run waits.",
    )  # fmt: skip
    device_weights: dict[_Device, Weight] = Field(
        default={}, title="Weights of devices",
        description="How much a second counts, such as {cuda:0: 2}. Default: 1 for a GPU, 0.1 for the CPU.",
    )  # fmt: skip
    waits_for_other_programs: bool = Field(
        default=True, title="Wait for other programs",
        description="A GPU with processes from outside Loratory starts no run. Off: a run starts where its memory is free.",
    )  # fmt: skip

    private_webhooks: bool = Field(
        default=False, title="Private addresses",
        description="Lets webhooks and endpoints of people be hosts of this network. Off: only public addresses.",
    )  # fmt: skip

    def weight(self, device: str) -> float:
        """Return how much a second of a device counts, by its lease name."""
        return self.device_weights.get(device, 0.1 if device == "cpu" else 1.0)


class Maintenance(BaseModel, frozen=True, extra="forbid"):
    """Whether a lab starts no runs at present; those that run continue."""

    is_on: bool = Field(
        default=False, title="Drain", description="No run starts; what runs continues, what waits stays."
    )
    text: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")] = Field(
        default="", title="Message", description="Shown to everyone who waits, such as: Driver update until 14:00."
    )


class LabRules(BaseModel, frozen=True):
    """What the queue of a lab goes by."""

    limits: LabLimits = LabLimits()
    maintenance: Maintenance = Maintenance()
    guests: frozenset[str] = frozenset()


def is_lab(home: LoratoryHome) -> bool:
    """Return whether a home has accounts; without, it has one owner and no limits."""
    return (home.root / DATABASE_FILE).exists()
