"""What a job is: the options of `sbatch`, and the script, which holds no secret, for Slurm keeps and shows it."""

import math
import shlex

from engine.executors.local import Nodes, training_command
from engine.executors.slurm.place import ClusterPlace
from engine.executors.slurm.record import SlurmRecord
from engine.processes.spawn import LIBRARY_ENVIRONMENT, allocator_environment, environment_for
from engine.runs.run import ATTEMPT_VARIABLE, RUN_VARIABLE, Run

# Of the server's machine, or decided by Slurm; a proxy's address may hold a password.
_NOT_PASSED = frozenset(
    """
    TERM TMPDIR TEMP TMP XDG_RUNTIME_DIR LD_PRELOAD CUDA_VISIBLE_DEVICES NVIDIA_VISIBLE_DEVICES HIP_VISIBLE_DEVICES
    ROCR_VISIBLE_DEVICES OMP_NUM_THREADS HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy
    """.split()
)
_ENDPOINT = "@ENDPOINT@"
# The first node's name, and a port that two jobs on one node do not share.
_MEET = '"$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 20000))"'
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def job_options(run: Run, record: SlurmRecord, place: ClusterPlace) -> list[str]:
    """Return the options of `sbatch` for a job: held, never requeued by Slurm itself, with an empty environment."""
    asked = record.resources
    options = {
        "comment": record.comment(run),
        "job-name": f"loratory-{run.id[-4:]}",
        "output": f"{_literal(str(run.folder.log))}",
        "chdir": str(run.folder.path),
        "open-mode": "append",
        "export": "NIL",
        "nodes": str(asked.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(asked.cpus * max(1, asked.gpus)),
        "mem": f"{math.ceil(asked.memory_gib * 1024)}M",
        "time": str(math.ceil(asked.limit_minutes)),
        # Reaches the steps of srun only, which is why the script becomes one.
        "signal": f"TERM@{record.warning_seconds}",
        "partition": place.partition,
        "account": place.account,
        "qos": place.qos,
        "constraint": place.constraint,
    }
    if asked.gpus:
        options["gpus-per-node"] = f"{asked.gpu_type}:{asked.gpus}" if asked.gpu_type else str(asked.gpus)
    given = [f"--{name}={value}" for name, value in options.items() if value]
    return ["--parsable", "--hold", "--no-requeue", *given]


def job_script(run: Run, record: SlurmRecord, place: ClusterPlace) -> str:
    """Return the script of a job: the environment, the admin's lines, then the worker in place of the shell."""
    variables = {name: value for name, value in environment_for(()).items() if name not in _NOT_PASSED}
    variables |= {
        **LIBRARY_ENVIRONMENT,
        **allocator_environment(),
        ATTEMPT_VARIABLE: str(record.attempt),
        RUN_VARIABLE: run.id,
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **(_OFFLINE if place.offline else {}),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    quoted = map(shlex.quote, worker_arguments(run, record, place))
    command = " ".join(_MEET if word == _ENDPOINT else word for word in quoted)
    # --export=ALL: of this script's environment, not of the server's; srun would follow sbatch's NIL.
    start = "exec srun --export=ALL --kill-on-bad-exit=1 --ntasks-per-node=1"
    return "\n".join(("#!/bin/bash", *lines, *place.setup, f"{start} {command}", ""))


def worker_arguments(run: Run, record: SlurmRecord, place: ClusterPlace) -> list[str]:
    """Return the command line of the worker on each node."""
    asked = record.resources
    nodes = Nodes(asked.nodes, _ENDPOINT, record.number)
    return training_command(run.folder.path, max(1, asked.gpus), nodes, place.interpreter)


def _literal(path: str) -> str:
    """Return a path in which Slurm replaces nothing."""
    return path.replace("%", "%%")
