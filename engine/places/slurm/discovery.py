"""What a cluster has: a first `cluster.yaml` and free GPUs from `sinfo`, and a probe of a node by `srun`, which runs this module."""

import contextlib
import math
import os
import platform
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel

from loratory.engine.errors import ClusterError, WorkerError
from loratory.engine.files import write_atomically
from loratory.engine.hardware.cuda import list_cuda_devices, load_nvml
from loratory.engine.hardware.device import similar_device
from loratory.engine.hardware.libraries import library_version
from loratory.engine.hardware.processor import memory_now, usable_cores
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.slurm.commands import FIELD_END, Slurm, seconds_of, takes_jobs
from loratory.engine.places.slurm.place import CLUSTER_FILE, ClusterPlace, GpuType, JobResources, read_place
from loratory.engine.places.slurm.script import expected_start, step_on_node
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.messages import CancelledRequestError, serve

_FIELDS = ("Partition", "Available", "Time", "Nodes", "CPUs", "Memory", "Gres", "Features")
_NODE_FIELDS = ("NodeList", "Gres", "GresUsed", "StateLong")
_GPU = re.compile(r"(?:^|,)gpu(?::([A-Za-z][A-Za-z0-9_.-]*))?:(\d+)")
_UNKNOWN_GIB = 8.0  # small, so nothing is promised that may not fit


class NodeGroup(NamedTuple):
    """Nodes of one partition with equal resources."""

    partition: str
    is_default: bool
    is_up: bool
    limit_hours: float | None
    nodes: int
    cpus: int
    memory_gib: float
    gpus: tuple[tuple[str, int], ...]  # type, and how many in each node


def list_groups(slurm: Slurm) -> list[NodeGroup]:
    """Return the partitions of the cluster.

    Raises:
        ClusterUnreachableError: If Slurm did not answer.
    """
    form = ",".join(f"{name}:{FIELD_END}" for name in _FIELDS)
    lines = slurm.run_command("sinfo", "--noheader", f"--Format={form}").splitlines()
    return [_group(line) for line in lines if line.strip()]


def _group(line: str) -> NodeGroup:
    name, available, limit, nodes, cpus, memory, gres, _ = (part.strip() for part in line.split(FIELD_END)[:8])
    seconds = seconds_of(limit)
    return NodeGroup(
        name.rstrip("*"), name.endswith("*"), available == "up", None if seconds is None else seconds / 3600,
        _number(nodes), _number(cpus), _number(memory) / 1024, gpus_in(gres),
    )  # fmt: skip


def gpus_in(gres: str) -> tuple[tuple[str, int], ...]:
    """Return type and number of the GPUs in a list of resources, such as `gpu:a100:4(S:0-1)`."""
    return tuple((kind, int(number)) for kind, number in _GPU.findall(gres))


def _number(text: str) -> int:
    match = re.match(r"\d+", text)  # `64+` where nodes differ
    return int(match[0]) if match else 0


def propose(groups: Sequence[NodeGroup]) -> ClusterPlace:
    """Return a first description: the default partition, or the one with most GPUs where that has none.

    Raises:
        ClusterError: If no partition takes jobs.
    """
    usable = [group for group in groups if group.is_up and group.nodes]
    if not usable:
        raise ClusterError("No partition of the cluster takes jobs at present.", "Look with `sinfo`.")
    default = next((group.partition for group in usable if group.is_default), usable[0].partition)
    partition = _choose_partition(usable, default)
    nodes = [group for group in usable if group.partition == partition]
    smallest = min(nodes, key=lambda group: group.memory_gib)
    gpus_in_node = max((number for group in nodes for _, number in group.gpus), default=1)
    return ClusterPlace(
        partition="" if partition == default else partition,
        gpu_types=_gpu_types(nodes),
        cpus=max(1, min(8, smallest.cpus // gpus_in_node)),
        memory_gib=max(1.0, round(min(smallest.memory_gib * 0.9, 16.0), 1)),
        limit_hours=min(24.0, *(group.limit_hours or math.inf for group in nodes)),
    )


def _choose_partition(groups: Sequence[NodeGroup], default: str) -> str:
    counts = Counter[str]()
    for group in groups:
        counts[group.partition] += group.nodes * sum(number for _, number in group.gpus)
    ((richest, count),) = counts.most_common(1)
    return default if counts[default] or not count else richest


def _gpu_types(groups: Sequence[NodeGroup]) -> tuple[GpuType, ...]:
    per_node, counts = dict[str, int](), Counter[str]()
    for group in groups:
        for name, number in group.gpus:
            per_node[name] = max(number, per_node.get(name, 0))
            counts[name] += number * group.nodes
    kinds = (
        GpuType(name=name, memory_gib=memory_of(name) or _UNKNOWN_GIB, per_node=number, count=counts[name])
        for name, number in per_node.items()
    )
    return tuple(sorted(kinds, key=lambda kind: kind.memory_gib))


def memory_of(kind: str) -> float | None:
    """Return the GiB of a type of GPU as clusters name them, such as `a100` or `nvidia_h100_80gb`; None where unknown.

    Of those that were sold with several sizes, the smallest that the name allows.
    """
    parts = re.split(r"[^a-z0-9]+", kind.lower())
    sizes = {int(word.removesuffix("gb")) for word in parts if re.fullmatch(r"\d+gb", word)}
    device = similar_device(kind, min(sizes, default=0))
    if device is None or device.capability is None or (sizes and device.sold_gb not in sizes):
        return None
    is_whole_word = device.model.lower() in parts
    return device.memory_gib if len(device.model) > 2 or is_whole_word else None


def to_yaml(place: ClusterPlace) -> str:
    """Return the file of a place, with what each line means."""
    lines = [
        "# The cluster that runs are submitted to. Written by `loratory cluster discover`; edit it, then run",
        "# `loratory cluster check`.",
    ]
    values = place.model_dump(mode="json")
    for name, field in ClusterPlace.model_fields.items():
        lines += [f"# {field.description}", yaml.safe_dump({name: values[name]}, sort_keys=False).rstrip()]
    return "\n".join((*lines, ""))


def unknown_types(place: ClusterPlace) -> list[str]:
    """Return the types of GPU whose memory was assumed."""
    return [kind.name for kind in place.gpu_types if memory_of(kind.name) is None and kind.memory_gib == _UNKNOWN_GIB]


def differences(home: LoratoryHome, proposal: ClusterPlace) -> list[str]:
    """Return the differences between a home's file and what was found, one line each."""
    before, after = read_place(home).model_dump(mode="json"), proposal.model_dump(mode="json")
    return [f"{name}: {before[name]!r}, found {after[name]!r}" for name in after if before[name] != after[name]]


def free_gpus(slurm: Slurm, place: ClusterPlace) -> Mapping[str, int]:
    """Return how many GPUs of each type no job has, in nodes that take jobs.

    Raises:
        ClusterUnreachableError: If Slurm did not answer.
    """
    form = ",".join(f"{name}:{FIELD_END}" for name in _NODE_FIELDS)
    partition = (f"--partition={place.partition}",) if place.partition else ()
    lines = slurm.run_command("sinfo", "--noheader", "--Node", *partition, f"--Format={form}").splitlines()
    nodes = {parts[0].strip(): parts for line in lines if len(parts := line.split(FIELD_END)) > len(_NODE_FIELDS)}
    free = Counter[str]({kind.name: 0 for kind in place.gpu_types})
    for _, has, used, state, *_ in nodes.values():  # a node of several partitions comes once for each
        if takes_jobs(state):
            free.update(dict(gpus_in(has)))
            free.subtract(dict(gpus_in(used)))
    return {kind.name: max(0, free[kind.name]) for kind in place.gpu_types}


def write_place(home: LoratoryHome, place: ClusterPlace) -> None:
    """Write `cluster.yaml`; an earlier one stays as `cluster.yaml.before`.

    Raises:
        StorageError: If the home cannot be written.
    """
    path = home.root / CLUSTER_FILE
    if path.exists():
        write_atomically(path.with_name(f"{CLUSTER_FILE}.before"), path.read_bytes())
    write_atomically(path, to_yaml(place))


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
        "loratory.engine.places.slurm.discovery", log_file=home.logs / "cluster-check.log", arguments=(str(home.root),),
        environment=environment, restarts=False, launcher=launcher,
    )  # fmt: skip
    has_waited = threading.Event()
    timer = threading.Timer(wait_seconds, has_waited.set)
    timer.start()
    with contextlib.closing(process):
        try:
            return ProbeReport.model_validate(process.call("probe_machine", {}, stopped=has_waited))
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


def probe_machine(home: Path) -> ProbeReport:
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
        cores=usable_cores(),
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
    serve({"probe_machine": lambda *_: probe_machine(Path(sys.argv[1])).model_dump(mode="json")})
