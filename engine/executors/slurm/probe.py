"""A look at a compute node: `srun` starts this module there, and it reports what the node has."""

import contextlib
import os
import platform
import socket
import sys
import threading
from pathlib import Path

from pydantic import BaseModel

from engine.errors import ClusterError, WorkerError
from engine.executors.slurm.commands import Slurm
from engine.executors.slurm.place import CLUSTER_FILE, ClusterPlace
from engine.executors.slurm.record import JobResources
from engine.executors.slurm.script import expected_start, step_on_node
from engine.hardware.cuda import list_cuda_devices, load_nvml
from engine.hardware.libraries import library_version
from engine.hardware.processor import memory_now
from engine.paths import LoratoryHome
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.messages import CancelledRequestError, serve

_LIBRARIES = ("loratory", "torch", "transformers", "peft", "bitsandbytes")
_INTERNET = ("huggingface.co", 443)
_INTERNET_SECONDS = 5.0
_LIMIT_MINUTES = 5.0


class ProbeGpu(BaseModel, frozen=True):
    name: str
    memory_gib: float


class ProbeReport(BaseModel, frozen=True):
    """The resources of a node."""

    job: str = ""
    host: str
    python: str
    versions: dict[str, str | None]
    gpus: tuple[ProbeGpu, ...]
    visible: str = ""  # CUDA_VISIBLE_DEVICES, as Slurm gave it
    cores: int
    memory_gib: float
    has_internet: bool
    has_home: bool = True  # whether LORATORY_HOME of this machine can be written there


def probe_node(home: LoratoryHome, place: ClusterPlace, gpu_type: str, wait_seconds: float) -> ProbeReport:
    """Return what a node has, with one GPU of a type, or with none where the cluster has none.

    Raises:
        ClusterError: If Slurm accepts no such job or gave no node in time, or what was started there ended.
    """
    resources = JobResources(
        gpus=int(bool(place.gpu_types)), gpu_type=gpu_type, cpus=1, memory_gib=1, limit_minutes=_LIMIT_MINUTES
    )
    expected_start(Slurm(place.command_seconds), place, resources)  # raises what a run that is submitted would meet
    launcher, environment = step_on_node(home, place, resources)
    process = JsonLinesProcess(
        "engine.executors.slurm.probe", log_file=home.logs / "cluster-check.log", arguments=(str(home.root),),
        environment=environment, restarts=False, launcher=launcher,
    )  # fmt: skip
    has_waited = threading.Event()
    timer = threading.Timer(wait_seconds, has_waited.set)
    timer.start()
    with contextlib.closing(process):
        try:
            return ProbeReport.model_validate(process.call("look_around", {}, stopped=has_waited))
        except CancelledRequestError as error:
            raise ClusterError(
                f"No node reported within {wait_seconds:g} s; the job was cancelled.", "Give --wait more seconds."
            ) from error
        except WorkerError as error:
            raise ClusterError(
                f"The node reported nothing. {error.what}", f"Is the Python of {CLUSTER_FILE} there? {error.fix}"
            ) from error
        finally:
            timer.cancel()


def look_around(home: Path) -> ProbeReport:
    """Return the resources of this machine, and whether it has the home."""
    memory = memory_now()
    devices = list_cuda_devices(load_nvml(), memory)
    return ProbeReport(
        job=os.environ.get("SLURM_JOB_ID", ""),
        host=platform.node(),
        python=platform.python_version(),
        versions={name: library_version(name) for name in _LIBRARIES},
        gpus=tuple(ProbeGpu(name=device.name, memory_gib=device.total_bytes / 2**30) for device in devices),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=memory.total_bytes / 2**30,
        has_internet=_reaches_internet(),
        has_home=os.access(home, os.R_OK | os.W_OK),
    )


def _reaches_internet() -> bool:
    try:
        with socket.create_connection(_INTERNET, timeout=_INTERNET_SECONDS):
            return True
    except OSError:
        return False


if __name__ == "__main__":
    serve({"look_around": lambda *_: look_around(Path(sys.argv[1])).model_dump(mode="json")})
