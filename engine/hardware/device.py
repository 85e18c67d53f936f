"""What a run can execute on, and GPUs to estimate for that are not here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from loratory.engine.errors import DeviceError
from loratory.engine.quantities import GIB


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
    index: int  # CUDA devices by PCI bus, as nvidia-smi numbers them; see `loratory.engine.hardware.cuda` for MIG instances
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


THIS_MACHINE = "this machine"
FIRST_WITH_BFLOAT16 = (8, 0)  # Ampere; CUDA C++ Programming Guide, arithmetic instructions


@dataclass(frozen=True)
class KnownDevice:
    """One kind of GPU."""

    name: str  # as people choose it; with its size where it was sold with several
    sold_gb: int  # the size on its box
    memory_gib: float  # what a program can have of its memory
    capability: Capability | None  # CUDA's; None for Apple's
    dense_tflops: float | None = None  # at 16 bits, without sparsity; None where it was not needed yet

    @property
    def title(self) -> str:
        """Its name with its size."""
        size = f"{self.sold_gb} GB"
        return self.name if self.name.endswith(size) else f"{self.name} {size}"

    @property
    def model(self) -> str:
        """Its name without its size, as drivers and Hugging Face call it."""
        return self.name.removesuffix(f" {self.sold_gb} GB")

    def device(self) -> Device:
        """Return it with all its memory free."""
        memory = round(self.memory_gib * GIB)
        if self.capability is None:  # of macOS 14 and later
            return Device("mps", 0, self.name, memory, memory, has_fast_bfloat16=True)
        has_bfloat16 = self.capability >= FIRST_WITH_BFLOAT16
        return Device("cuda", 0, f"NVIDIA {self.name}", memory, memory, has_bfloat16, capability=self.capability)


def _apple(memory_gb: int) -> KnownDevice:
    usable = memory_gb * (2 / 3 if memory_gb <= 32 else 3 / 4)
    return KnownDevice(f"Apple M-series {memory_gb} GB", memory_gb, usable, None)


# Memory is what PyTorch reports as a GPU's total on Linux, the smallest where drivers differ: what the driver and error
# correction take is gone from it, and the CUDA context is part of every estimate. A screen may take up to 1 GiB more.
# Sources: "total capacity" in PyTorch's messages about memory, in public issues (2060: meshrcnn 92; 3060: dreambooth-gui 78;
# 3070: GASDA 19; 3090: GaoLii/DSP 10; 4050, as the 3060 with 6 GB: SAM-6D 13; 4060: HairFastGAN 8; 4070: Kolors 11; 4090:
# DepthAnyVideo 16 and torchchat 1341; 5090: TrajectoryCrafter 20; T4: CatVTON 133; A100: CoSeR 10
# and Control-GIC 6); programs that print it (5060 Ti, as 5070 Ti and 5080: lucebox 407; B200: pytorch/ao 4002; RTX PRO 6000:
# ds4 431); for the rest nvidia-smi's figure (modal-client 2797) less what those of the same kind lose. Capability and speed:
# NVIDIA's data sheets. Apple: `recommendedMaxWorkingSetSize` in issues of llama.cpp (2011, 3213) and ollama (434): two thirds
# of the memory up to 32 GB, three quarters above.
KNOWN_DEVICES: tuple[KnownDevice, ...] = (
    KnownDevice("RTX 2060", 6, 5.79, (7, 5)),
    KnownDevice("RTX 3060 12 GB", 12, 11.75, (8, 6)),
    KnownDevice("RTX 3070", 8, 7.76, (8, 6)),
    KnownDevice("RTX 3090", 24, 23.60, (8, 6)),
    KnownDevice("RTX 4050", 6, 5.80, (8, 9)),
    KnownDevice("RTX 4060", 8, 7.63, (8, 9)),
    KnownDevice("RTX 4060 Ti 16 GB", 16, 15.60, (8, 9)),
    KnownDevice("RTX 4070", 12, 11.70, (8, 9)),
    KnownDevice("RTX 4090", 24, 23.52, (8, 9)),
    KnownDevice("RTX 5070 Ti", 16, 15.45, (12, 0)),
    KnownDevice("RTX 5080", 16, 15.45, (12, 0)),
    KnownDevice("RTX 5090", 32, 31.36, (12, 0)),
    KnownDevice("T4", 16, 14.56, (7, 5), 65),
    KnownDevice("L4", 24, 22.03, (8, 9), 121),
    KnownDevice("A10G", 24, 22.03, (8, 6), 70),
    KnownDevice("A100 40 GB", 40, 39.39, (8, 0), 312),
    KnownDevice("A100 80 GB", 80, 79.14, (8, 0), 312),
    KnownDevice("L40S", 48, 44.40, (8, 9), 362),
    KnownDevice("RTX PRO 6000", 96, 94.97, (12, 0), 504),
    KnownDevice("H100", 80, 79.10, (9, 0), 989),
    KnownDevice("H200", 141, 139.72, (9, 0), 989),
    KnownDevice("B200", 180, 178.35, (10, 0), 2250),
    *map(_apple, (16, 24, 32, 48, 64, 96, 128)),
)


def find_known_device(name: str) -> KnownDevice | None:
    """Return the device of that name or title, whatever its case, spaces and hyphens; None where there is none."""
    text = _plain(name)
    return next((device for device in KNOWN_DEVICES if text in (_plain(device.name), _plain(device.title))), None)


def similar_device(name: str, memory_gb: float) -> KnownDevice | None:
    """Return the GPU with the longest name within `name`, as drivers and schedulers call it; of several sizes, the nearest."""
    plain = _plain(name)
    matches = [device for device in KNOWN_DEVICES if _plain(device.model) in plain]
    return max(matches, key=lambda device: (len(device.model), -abs(device.sold_gb - memory_gb)), default=None)


def known_device(name: str) -> KnownDevice:
    """Return the device of that name.

    Raises:
        DeviceError: If there is none in the table.
    """
    device = find_known_device(name)
    if device is None:
        names = ", ".join(candidate.name for candidate in KNOWN_DEVICES)
        raise DeviceError(f"{name[:60]!r} is not a known device.", f"Choose {THIS_MACHINE}, or one of: {names}.")
    return device


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
