"""What Slurm runs: a job's options and script, without secrets because Slurm stores and shows them, or one step.

A step is a model on a compute node: `srun` runs a worker and forwards its stdin and stdout. It has no record and no follower,
as it ends with the pipe, and so with the server.
"""

import math
import shlex
import shutil
from collections.abc import Mapping

from loratory.engine.config.run import DatasetConfig, ModelConfig, RunConfig
from loratory.engine.errors import ClusterError
from loratory.engine.hardware.device_job import OtherMachine
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.slurm.commands import Slurm, which_slurm
from loratory.engine.places.slurm.place import ClusterPlace, JobResources, SlurmRecord, read_place
from loratory.engine.processes.spawn import LIBRARY_ENVIRONMENT, Launcher, allocator_environment, environment_for
from loratory.engine.runs.job import Nodes, training_command
from loratory.engine.runs.run import ATTEMPT_VARIABLE, RUN_VARIABLE, Run

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
    }
    by_admin = {
        "partition": place.partition, "account": place.account, "qos": place.qos, "constraint": place.constraint
    }  # fmt: skip
    options |= {name: value for name, value in by_admin.items() if value}
    if resources.gpus:
        options["gpus-per-node"] = (
            f"{resources.gpu_type}:{resources.gpus}" if resources.gpu_type else str(resources.gpus)
        )
    return [f"--{name}={value}" for name, value in options.items()]


def cores_of(resources: JobResources) -> int:
    """Return the cores in each node."""
    return resources.cpus * max(1, resources.gpus)


def expected_start(slurm: Slurm, place: ClusterPlace, resources: JobResources) -> float | None:
    """Return when a job would start by Slurm's current plan; None if it makes no promise.

    Raises:
        ClusterError: If no node ever has what the job asks for (NeverStartsError), or Slurm refuses it otherwise.
        ClusterUnreachableError: If Slurm did not answer.
    """
    return slurm.expected_start("#!/bin/sh\n", ["--export=NIL", *resource_options(resources, place)])


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
    arguments = map(shlex.quote, worker_arguments(run, record, place))
    command = " ".join(_MEET if word == _ENDPOINT else word for word in arguments)
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


def node_machine(home: LoratoryHome, run: RunConfig | None) -> OtherMachine:
    """Return a node with one GPU like those that a run asks for, or of the smallest type; with none where it asks for none.

    Raises:
        ClusterError: If no cluster was set up, or a guest of a lab asks.
        ConfigError: If cluster.yaml has a mistake.
        DeviceError: If the cluster has no such GPU.
    """
    if home.is_guest:
        raise ClusterError("A guest of the lab uses no cluster.", "Choose this machine.")
    place = read_place(home)
    config = run or RunConfig(model=ModelConfig(id="-"), dataset=DatasetConfig(source="-"))
    if not place.gpu_types:
        config = config.model_copy(update={"run": config.run.model_copy(update={"devices": "cpu"})})
    device = place.devices_for(config)[0]
    gpu = {"gpus": 1, "gpu_type": device.name} if device.kind == "cuda" else {"gpus": 0, "gpu_type": ""}
    changes = {**gpu, "nodes": 1, "limit_minutes": place.work_hours * 60}
    resources = JobResources.from_config(config, place).model_copy(update=changes)
    command, environment = step_on_node(home, place, resources)
    return OtherMachine(device, command, environment, f"Asking Slurm for a node with {resources.label}.")


def step_on_node(
    home: LoratoryHome, place: ClusterPlace, resources: JobResources
) -> tuple[Launcher, Mapping[str, str]]:
    """Return what starts a worker on a node and forwards its stdin and stdout, and the environment that this needs.

    Raises:
        ClusterError: If Slurm's commands are not here.
    """
    if shutil.which("srun") is None:
        raise ClusterError("srun is not on this machine.", "Install Slurm's commands here, or choose this machine.")
    launcher = Launcher((
        "env", *(f"--unset={name}" for name in sorted(NOT_PASSED)),
        "srun", "--job-name=loratory-work", "--comment=loratory work", "--kill-on-bad-exit=1", f"--chdir={home.root}",
        *resource_options(resources, place),
        "bash", "-c", "\n".join((*place.setup, 'exec "$@"')), "bash", place.interpreter,
    ), mark="srun: error: ")  # fmt: skip
    return launcher, {**which_slurm(), **(OFFLINE if place.offline else {})}
