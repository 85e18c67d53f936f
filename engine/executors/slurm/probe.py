"""A small job that reports what a compute node has: `python -P -m engine.executors.slurm.probe FILE` there.

`submit_probe` and `read_probe` are the side of this machine.
"""

import os
import platform
import shlex
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from engine.executors.slurm.commands import JobLine, Slurm
from engine.executors.slurm.place import ClusterPlace
from engine.executors.slurm.script import place_options
from engine.files import read_model, write_atomically
from engine.hardware.cuda import list_cuda_devices, load_nvml
from engine.hardware.libraries import library_version
from engine.hardware.processor import memory_now
from engine.paths import LoratoryHome

_LIBRARIES = ("loratory", "torch", "transformers", "peft", "bitsandbytes")
_INTERNET = ("huggingface.co", 443)
_INTERNET_SECONDS = 5.0
_FOLDER = "cluster-checks"


class ProbeGpu(BaseModel, frozen=True):
    name: str
    memory_gib: float


class ProbeReport(BaseModel, frozen=True):
    """The resources of a node."""

    host: str
    python: str
    versions: dict[str, str | None]
    gpus: tuple[ProbeGpu, ...]
    visible: str = ""  # CUDA_VISIBLE_DEVICES, as Slurm gave it
    cores: int
    memory_gib: float
    has_internet: bool


class Probe(BaseModel, frozen=True):
    """A probe that was submitted."""

    job_id: str
    file: Path
    log: Path


def submit_probe(home: LoratoryHome, place: ClusterPlace, slurm: Slurm, gpu_type: str, number: str) -> Probe:
    """Submit a probe for one GPU, or for none where the cluster has none.

    Raises:
        ClusterError: If Slurm refuses it or does not answer.
        StorageError: If the home cannot be written.
    """
    folder = home.server / _FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file, log = folder / f"{number}.json", folder / f"{number}.log"
    options = {
        "job-name": "loratory-check", "comment": f"loratory check {number}", "output": str(log).replace("%", "%%"),
        "chdir": str(folder), "export": "NIL", "time": "5", "mem": "1024M", "ntasks": "1",
        **place_options(place),
    }  # fmt: skip
    if place.gpu_types:
        options["gpus-per-node"] = f"{gpu_type}:1" if gpu_type else "1"
    command = [place.interpreter, "-P", "-m", "engine.executors.slurm.probe", str(file)]
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    start = f"exec srun --export=ALL {shlex.join(command)}"
    script = "\n".join(("#!/bin/bash", *exports, *place.setup, start, ""))
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return Probe(job_id=slurm.submit(script, ["--parsable", "--no-requeue", *arguments]), file=file, log=log)


def read_probe(probe: Probe) -> ProbeReport | None:
    """Return what the node wrote; None before."""
    return read_model(probe.file, ProbeReport)


def line_of(probe: Probe, queue: Sequence[JobLine]) -> JobLine | None:
    """Return the job as Slurm shows it."""
    return next((line for line in queue if line.id == probe.job_id), None)


def clear_probe(probe: Probe) -> None:
    """Remove the files of a probe."""
    for path in (probe.file, probe.log):
        path.unlink(missing_ok=True)


def look_around() -> ProbeReport:
    """Return the resources of this machine."""
    memory = memory_now()
    gpus = tuple(
        ProbeGpu(name=one.name, memory_gib=one.total_bytes / 2**30) for one in list_cuda_devices(load_nvml(), memory)
    )
    return ProbeReport(
        host=platform.node(),
        python=platform.python_version(),
        versions={name: library_version(name) for name in _LIBRARIES},
        gpus=gpus,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=memory.total_bytes / 2**30,
        has_internet=_reaches_internet(),
    )


def _reaches_internet() -> bool:
    try:
        with socket.create_connection(_INTERNET, timeout=_INTERNET_SECONDS):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    write_atomically(Path(sys.argv[1]), look_around().model_dump_json())
