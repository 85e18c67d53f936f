"""Forecasts before a start: free GPUs of each type, and when the run would begin."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.executors.slurm.commands import FIELD_END, Slurm, takes_jobs
from engine.executors.slurm.discovery import gpus_in
from engine.executors.slurm.place import ClusterPlace
from engine.executors.slurm.record import JobResources
from engine.executors.slurm.script import resource_options

_NODE_FIELDS = ("NodeList", "Gres", "GresUsed", "StateLong")
_START = re.compile(r"to start at (\d+)(?: using .*? on nodes (\S+))?")


class ExpectedStart(NamedTuple):
    """When Slurm would start a run, were it submitted now."""

    time: float  # seconds since the epoch
    nodes: str = ""


def free_gpus(slurm: Slurm, place: ClusterPlace) -> Mapping[str, int]:
    """Return how many GPUs of each type no job has, in nodes that take jobs.

    Raises:
        ClusterUnreachableError: If Slurm did not answer.
    """
    form = ",".join(f"{name}:{FIELD_END}" for name in _NODE_FIELDS)
    partition = (f"--partition={place.partition}",) if place.partition else ()
    lines = slurm.ask("sinfo", "--noheader", "--Node", *partition, f"--Format={form}").splitlines()
    nodes = {parts[0].strip(): parts for line in lines if len(parts := line.split(FIELD_END)) > len(_NODE_FIELDS)}
    free = Counter[str]({kind.name: 0 for kind in place.gpu_types})
    for _, has, used, state, *_ in nodes.values():  # a node of several partitions comes once for each
        if takes_jobs(state):
            free.update(dict(gpus_in(has)))
            free.subtract(dict(gpus_in(used)))
    return {kind.name: max(0, free[kind.name]) for kind in place.gpu_types}


def expected_start(slurm: Slurm, place: ClusterPlace, config: RunConfig) -> ExpectedStart | None:
    """Return when a run would start by Slurm's current plan; None if it makes no promise.

    Raises:
        ClusterError: If no node ever has what the run asks for (NeverStartsError), or Slurm refuses it otherwise.
        ClusterUnreachableError: If Slurm did not answer.
    """
    options = resource_options(JobResources.of(config, place), place)
    match = _START.search(slurm.expected_start("#!/bin/sh\n", ["--export=NIL", *options]))
    return ExpectedStart(float(match[1]), match[2] or "") if match else None
