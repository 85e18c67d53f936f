"""What a run can execute on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple


class MemoryNow(NamedTuple):
    """Bytes of a memory, and how many of them are free."""

    total_bytes: int
    free_bytes: int


Capability = tuple[int, int]  # CUDA's compute capability, such as (8, 6)


class Obstacle(NamedTuple):
    """Why the installed PyTorch cannot use a GPU, and what to do about it, in a sentence each."""

    what: str
    fix: str


@dataclass(frozen=True)
class Device:
    """One GPU, or the processor with its memory, as it was a moment ago."""

    kind: Literal["cuda", "mps", "cpu"]
    index: int  # CUDA devices by PCI bus, as nvidia-smi numbers them; see `engine.hardware.cuda` for MIG instances
    name: str
    total_bytes: int  # of a GPU's memory; of RAM within what this process may use
    free_bytes: int  # used by no process, those of other people included
    has_fast_bfloat16: bool  # in hardware, and faster than float32
    cores: int = 0  # that this process may use; 0 for GPUs
    capability: Capability | None = None  # of CUDA devices, where it is known
    obstacle: Obstacle | None = None  # what is known to keep PyTorch from using it
    uuid: str = ""  # by which CUDA selects it; empty where it is not known

    @property
    def is_mig(self) -> bool:
        """Whether it is a MIG instance, a part of a GPU that CUDA selects by its UUID alone."""
        return self.uuid.startswith("MIG-")

    @property
    def torch_name(self) -> str:
        """How torch calls it in a process that sees only this device."""
        return "cuda:0" if self.kind == "cuda" else self.kind


def visible_only(devices: tuple[Device, ...]) -> Mapping[str, str]:
    """Return the environment in which a worker sees these devices and no other GPU.

    Without any, nothing is changed: an executor such as Slurm has given the worker its GPUs. CUDA numbers devices by speed unless PCI_BUS_ID is set, and `1` could mean another card than NVML's.
    """
    if not devices:
        return {}
    names = ",".join(device.uuid if device.is_mig else str(device.index) for device in devices if device.kind == "cuda")
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": names}
