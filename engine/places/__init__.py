"""All places where runs train and their executors, by name, and where else a model can be loaded. A new one is added here."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from loratory.engine.config.run import WorkPlace
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.device_job import OtherMachine
from loratory.engine.paths import LoratoryHome
from loratory.engine.places.huggingface_jobs.account import HardwareList, LoginOf, logins_of
from loratory.engine.places.huggingface_jobs.job import JobsExecutor
from loratory.engine.places.local import LocalContext, LocalExecutor
from loratory.engine.places.run_place import Flavors, HuggingFaceJobs, RunPlace, SlurmCluster, ThisMachine
from loratory.engine.places.slurm.job import SlurmExecutor
from loratory.engine.places.slurm.place import read_place
from loratory.engine.places.slurm.script import node_machine
from loratory.engine.places.ssh.job import SshExecutor
from loratory.engine.places.ssh.machine import SshMachines
from loratory.engine.runs.job import Executor, WorkerCommand
from loratory.engine.runs.run import RunFolder
from loratory.engine.runs.summary import RunSummary

ExecutorFactory = Callable[[LocalContext], Mapping[str, Executor]]

# By the name that `run.where` gives them.
PLACES: Mapping[str, type[RunPlace]] = {
    place.name: place for place in (ThisMachine, SshMachines, SlurmCluster, HuggingFaceJobs)
}


def make_executors(
    context: LocalContext, command: WorkerCommand | None = None, login_of: LoginOf | None = None
) -> Mapping[str, Executor]:
    """Return every executor of a home, by name.

    Args:
        command: Another way to start workers on this machine, for tests.
        login_of: Returns a person's login at Hugging Face.
    """
    here, home = LocalExecutor(context, command), context.book.home
    by_name = {
        executor.name: executor
        for executor in (here, JobsExecutor(home, login_of), SlurmExecutor(home), SshExecutor(home))
    }
    return {**by_name, "accelerate": here}  # a launcher of runs here, by which they name their executor


def machine_of(home: LoratoryHome, place: WorkPlace, trained: Path | None) -> OtherMachine | None:
    """Return the machine of a place that a model is loaded on, for the run in a folder; None for this one.

    Raises:
        EngineError: If it cannot be used.
    """
    if place == "local":
        return None
    folder = RunFolder(trained) if trained is not None else None
    run = folder.read_config() if folder is not None and folder.config.is_file() else None
    return node_machine(home, run)


def places_at(
    home: LoratoryHome,
    devices: Callable[[], Sequence[Device]],
    flavors: Flavors | None = None,
    earlier: Callable[[], Iterable[RunSummary]] = tuple,
) -> Mapping[str, RunPlace]:
    """Return every place of a home, by the name that `run.where` gives it.

    Args:
        flavors: Hugging Face's hardware; that which the login of the home's person shows where None.
        earlier: Runs that show how fast a cluster is.
    """
    jobs = HuggingFaceJobs(flavors or HardwareList(lambda: logins_of(home)(home.owner)).refresh)
    every = (ThisMachine(devices), jobs, SlurmCluster(lambda: read_place(home), earlier), SshMachines(home))
    return {place.name: place for place in every}
