"""A model on a compute node: `srun` runs a worker and forwards its stdin and stdout.

No record and no follower: the step ends with the pipe, and so with the server.
"""

import shutil

from engine.config.run import DatasetConfig, ModelConfig, RunConfig
from engine.errors import ClusterError
from engine.executors.slurm.commands import which_slurm
from engine.executors.slurm.place import read_place
from engine.executors.slurm.record import JobResources
from engine.executors.slurm.script import NOT_PASSED, OFFLINE, resource_options
from engine.hardware.device_job import OtherMachine
from engine.paths import LoratoryHome
from engine.processes.spawn import Launcher
from engine.runs.places import SlurmCluster


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
    if shutil.which("srun") is None:
        raise ClusterError("srun is not on this machine.", "Install Slurm's commands here, or choose this machine.")
    config = run or RunConfig(model=ModelConfig(id="-"), dataset=DatasetConfig(source="-"))
    if not place.gpu_types:
        config = config.model_copy(update={"run": config.run.model_copy(update={"devices": "cpu"})})
    device = SlurmCluster(lambda: place, tuple).options(config)[0][0]
    is_gpu = device.kind == "cuda"
    resources = JobResources.of(config, place).model_copy(
        update={
            "gpus": int(is_gpu), "gpu_type": device.name if is_gpu else "", "nodes": 1,
            "limit_minutes": place.work_hours * 60,
        }
    )  # fmt: skip
    return OtherMachine(
        device=device,
        launcher=Launcher((
            "env", *(f"--unset={name}" for name in sorted(NOT_PASSED)),
            "srun", "--job-name=loratory-work", "--comment=loratory work", "--kill-on-bad-exit=1", f"--chdir={home.root}",
            *resource_options(resources, place),
            "bash", "-c", "\n".join((*place.setup, 'exec "$@"')), "bash", place.interpreter,
        ), mark="srun: error: "),
        environment={**which_slurm(), **(OFFLINE if place.offline else {})},
        words=f"Asking Slurm for a node with {resources.words}.",
    )  # fmt: skip
