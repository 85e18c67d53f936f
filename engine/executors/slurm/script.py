"""A job: the options of `sbatch`, and the script, which has no secrets, because Slurm stores and shows it."""

import math
import shlex

from engine.executors.local import Nodes, training_command
from engine.executors.slurm.place import ClusterPlace
from engine.executors.slurm.record import JobResources, SlurmRecord
from engine.processes.spawn import LIBRARY_ENVIRONMENT, allocator_environment, environment_for
from engine.runs.run import ATTEMPT_VARIABLE, RUN_VARIABLE, Run

# Of the server's machine, or decided by Slurm; a proxy's address may hold a password.
NOT_PASSED = frozenset(
    """
    TERM TMPDIR TEMP TMP XDG_RUNTIME_DIR LD_PRELOAD CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES
    ROCR_VISIBLE_DEVICES OMP_NUM_THREADS HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy
    """.split()
)
_ENDPOINT = "@ENDPOINT@"
# The first node's name, and a port that two jobs on one node do not share.
_MEET = '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"'
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def job_options(run: Run, record: SlurmRecord, place: ClusterPlace) -> list[str]:
    """Return the options of `sbatch` for a job: held, never requeued by Slurm itself, with an empty environment."""
    options = {
        "comment": record.comment(run),
        "job-name": f"loratory-{run.id[-4:]}",
        "output": str(run.folder.log).replace("%", "%%"),  # otherwise Slurm replaces what follows
        "chdir": str(run.folder.path),
        "open-mode": "append",
        "export": "NIL",
        # Reaches the steps of srun only, which is why the script becomes one.
        "signal": f"TERM@{record.warning_seconds}",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    return ["--parsable", "--hold", "--no-requeue", *arguments, *resource_options(record.resources, place)]


def resource_options(resources: JobResources, place: ClusterPlace) -> list[str]:
    """Return the options of `sbatch` that decide where and when a job can start."""
    options = {
        "nodes": str(resources.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(cores_of(resources)),
        "mem": f"{math.ceil(resources.memory_gib * 1024)}M",
        "time": str(math.ceil(resources.limit_minutes)),
        **place_options(place),
    }
    if resources.gpus:
        options["gpus-per-node"] = (
            f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else str(resources.gpus)
        )
    return [f"--{name}={value}" for name, value in options.items()]


def cores_of(resources: JobResources) -> int:
    """Return the cores in each node."""
    return resources.cpus * max(1, resources.gpus)


def place_options(place: ClusterPlace) -> dict[str, str]:
    """Return the options that the admin sets for every job."""
    options = {
        "partition": place.partition, "account": place.account, "qos": place.qos, "constraint": place.constraint
    }  # fmt: skip
    return {name: value for name, value in options.items() if value}


def job_script(run: Run, record: SlurmRecord, place: ClusterPlace) -> str:
    """Return the script of a job: the environment, the admin's lines, then the worker in place of the shell."""
    variables = {name: value for name, value in environment_for(()).items() if name not in NOT_PASSED}
    variables |= {
        **LIBRARY_ENVIRONMENT,
        **allocator_environment(),
        ATTEMPT_VARIABLE: str(record.attempt),
        RUN_VARIABLE: run.id,
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # For torch's launcher, which kills workers that have not saved within 30 s of a SIGTERM.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(record.warning_seconds),
        **(OFFLINE if place.offline else {}),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    words = map(shlex.quote, worker_arguments(run, record, place))
    command = " ".join(_MEET if word == _ENDPOINT else word for word in words)
    resources = record.resources
    # --export=ALL: of this script's environment, not of the server's; srun would follow sbatch's NIL. It takes no number
    # of cores from sbatch either, since 22.05. One process per node needs no MPI, whose plugin may be missing.
    start = (
        f"exec srun --export=ALL --kill-on-bad-exit=1 --mpi=none --nodes={resources.nodes} --ntasks={resources.nodes} "
        f"--ntasks-per-node=1 --cpus-per-task={cores_of(resources)}"
    )
    return "\n".join(("#!/bin/bash", *lines, *place.setup, f"{start} {command}", ""))


def worker_arguments(run: Run, record: SlurmRecord, place: ClusterPlace) -> list[str]:
    """Return the command line of the worker on each node."""
    resources = record.resources
    nodes = Nodes(resources.nodes, _ENDPOINT, record.number)
    return training_command(run.folder.path, max(1, resources.gpus), nodes, place.interpreter)
