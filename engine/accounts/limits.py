"""What an admin allows each person of a lab: runs, GPU time, disk space; and whether runs start at all."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.paths import LoratoryHome
from loratory.engine.section import Section, setting

SETTINGS_FILE = "lab.yaml"

Weight = Annotated[float, Field(ge=0, le=1000)]
_Device = Annotated[str, StringConstraints(pattern=r"^(cpu|mps|cuda:\d{1,4})$")]


class LabLimits(Section):
    """Limits of a lab; an empty one does not limit."""

    running_per_person: int | None = setting(2, "Running per person", ge=1, le=1000)
    """Runs of one person at the same time; further ones wait. Leave devices for others where many share few."""
    waiting_per_person: int | None = setting(50, "Waiting per person", ge=1, le=10_000)
    """Runs of one person in the queue; further starts are refused. Sweeps need one slot per run."""
    weekly_gpu_hours: float | None = setting(None, "GPU-hours per week", gt=0, le=100_000)
    """Per person, from Monday. Beyond it, a run starts only when no other person waits for the device."""
    longest_run_hours: float | None = setting(None, "Maximum run time, in hours", gt=0, le=10_000)
    """A run is then stopped with a checkpoint. It can be resumed, and waits for its turn."""
    guest_run_hours: float | None = setting(1.0, "Maximum run time of guests, in hours", gt=0, le=10_000)
    """Counts all attempts at a run together, so resuming does not extend it."""
    guest_max_steps: int | None = setting(200, "Maximum steps of guests", ge=1, le=1_000_000)
    """Optimizer steps of a guest's run. Longer runs are shortened; a larger max_steps is refused."""
    disk_gb_per_person: float | None = setting(200.0, "Disk space per person, in GB", gt=0, le=1_000_000)
    """Runs, uploads and exports together. At the limit, starts and uploads are refused, and runs save fewer checkpoints, then stop."""
    free_disk_gb: float = setting(10.0, "Free disk space to keep, in GB", ge=0, le=1_000_000)
    """Below it, no run starts and nothing is uploaded. A full disk would stop every run."""
    model_cache_gb: float | None = setting(None, "Size of the model cache, in GB", gt=0, le=1_000_000)
    """Beyond it, the models used least recently are offered for removal. Nothing is removed by itself."""
    idle_minutes: float = setting(30.0, "Idle models, in minutes", ge=1, le=10_080)
    """A chat or endpoint without requests is unloaded after this time; after 1 minute where a run waits."""
    device_weights: dict[_Device, Weight] = setting({}, "Weights of devices")
    """How much a second counts, such as {cuda:0: 2}. Default: 1 for a GPU, 0.1 for the CPU."""
    waits_for_other_programs: bool = setting(True, "Wait for other programs")
    """A GPU with processes from outside Loratory starts no run. Off: a run starts where its memory is free."""

    private_webhooks: bool = setting(False, "Private addresses")
    """Lets webhooks and endpoints of people be hosts of this network. Off: only public addresses."""

    def weight(self, device: str) -> float:
        """Return how much a second of a device counts, by its lease name."""
        return self.device_weights.get(device, 0.1 if device == "cpu" else 1.0)


class Maintenance(Section):
    """Whether a lab starts no runs at present; those that run continue."""

    is_on: bool = setting(False, "Drain")
    """No run starts; what runs continues, what waits stays."""
    text: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")] = setting("", "Message")
    """Shown to everyone who waits, such as: Driver update until 14:00."""


class LabRules(BaseModel, frozen=True):
    """What the queue of a lab goes by."""

    limits: LabLimits = LabLimits()
    maintenance: Maintenance = Maintenance()
    guests: frozenset[str] = frozenset()


def is_lab(home: LoratoryHome) -> bool:
    """Return whether a home has accounts; without, it has one owner and no limits."""
    return (home.root / DATABASE_FILE).exists()
