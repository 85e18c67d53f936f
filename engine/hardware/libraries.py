"""Installed libraries: their versions, and which GPUs the installed PyTorch can use, without importing it."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from loratory.engine.errors import StorageError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.device import Capability, Obstacle
from loratory.engine.paths import LoratoryHome

_INSTALL = "https://pytorch.org/get-started/locally"


@functools.cache
def library_version(distribution: str) -> str | None:
    """Return the installed version of a library; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class Driver(NamedTuple):
    """NVIDIA's driver: its version, and the newest CUDA that it runs, such as (12, 4)."""

    version: str
    cuda: tuple[int, int]


@dataclass(frozen=True)
class TorchBuild:
    """An installed PyTorch."""

    version: str  # such as 2.13.0+cu126
    cuda: str | None  # that it is built for, such as 12.6; None for the processor alone
    architectures: tuple[str, ...] = ()  # that it has kernels for, such as sm_75; empty where that is not known yet

    def obstacle(self, gpu: str, capability: Capability, driver: Driver | None) -> Obstacle | None:
        """Return what keeps a GPU from being used; None where nothing is known to."""
        if self.cuda is None:
            fix = f"Install a build with CUDA ({_INSTALL}), or set run.devices to cpu."
            return Obstacle(f"PyTorch {self.version} is built without CUDA and cannot use {gpu}.", fix)
        if driver is not None and int(self.cuda.partition(".")[0]) > driver.cuda[0]:
            newest = ".".join(map(str, driver.cuda))
            return Obstacle(
                f"PyTorch {self.version} needs CUDA {self.cuda}; NVIDIA's driver {driver.version} runs CUDA up to {newest}.",
                f"Update the driver, or install a PyTorch for CUDA {driver.cuda[0]} ({_INSTALL}).",
            )
        if self.architectures and not any(_runs_on(name, capability) for name in self.architectures):
            own = ".".join(map(str, capability))
            return Obstacle(
                f"PyTorch {self.version} (CUDA {self.cuda}) has no kernels for {gpu}, whose compute capability is {own}; it has "
                f"them for {', '.join(self.architectures)}.",
                f"Install a PyTorch whose CUDA supports this GPU ({_INSTALL}), or set run.devices to another one or to cpu.",
            )
        return None


def installed_torch(home: LoratoryHome) -> TorchBuild | None:
    """Return the PyTorch that is installed here, with what `note_architectures` has left; None where none is found."""
    build = _build_on_disk()
    if build is None:
        return None
    record = read_model(_file(home), _TorchRecord)
    if record is None or record.version != build.version:
        return build
    return replace(build, architectures=record.architectures)


def note_architectures(home: LoratoryHome, version: str, architectures: list[str]) -> None:
    """Keep what a process found in torch (`torch.__version__`, `torch.cuda.get_arch_list()`), for those without torch."""
    record = _TorchRecord(version=version, architectures=tuple(architectures))
    with contextlib.suppress(OSError, StorageError):  # a full disk: the worker that trains refuses such a GPU by itself
        if not architectures or read_model(_file(home), _TorchRecord) == record:
            return
        write_atomically(_file(home), record.model_dump_json(), makes_folder=True)


class _TorchRecord(BaseModel):
    version: str
    architectures: tuple[str, ...]


def _file(home: LoratoryHome) -> Path:
    return home.shared_cache / "torch-architectures.json"


@functools.cache
def _build_on_disk() -> TorchBuild | None:
    """Read torch/version.py, a file of assignments that imports nothing of torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    except OSError:
        return None
    if facts.get("hip") is not None or "__version__" not in facts:  # AMD's GPUs are not NVML's to list
        return None
    return TorchBuild(str(facts["__version__"]), facts.get("cuda"))


def _runs_on(architecture: str, capability: Capability) -> bool:
    """Return whether code for an architecture runs on a GPU.

    Compiled code (sm_86) runs on GPUs of the same major version from its own minor version on; portable code (compute_86) on
    all later ones; code with a letter (sm_90a) on that one alone.

    Source: CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility".
    """
    kind, _, number = architecture.partition("_")
    if not number.isdigit():
        return number[:-1] == "".join(map(str, capability))
    version = (int(number[:-1]), int(number[-1]))
    if kind == "compute":
        return capability >= version
    return capability[0] == version[0] and capability >= version
