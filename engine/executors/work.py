"""Choose where to load a model for chat, evaluation or export."""

from collections.abc import Callable, Mapping

from engine.chat.contract import ChatTarget, WorkPlace
from engine.config.run import RunConfig
from engine.executors.slurm.step import node_machine
from engine.hardware.device_job import OtherMachine
from engine.paths import LoratoryHome
from engine.runs.run import RunFolder

# Returns None for this machine. Gets the configuration of the run whose result is loaded, where it is one's.
_WORK_PLACES: Mapping[WorkPlace, Callable[[LoratoryHome, RunConfig | None], OtherMachine | None]] = {
    "local": lambda _home, _run: None,
    "slurm": node_machine,
}


def machine_of(home: LoratoryHome, target: ChatTarget) -> OtherMachine | None:
    """Return the machine that a target names; None for this one.

    Raises:
        EngineError: If it cannot be used.
    """
    folder = RunFolder(target.tuned.folder) if target.tuned is not None else None
    run = folder.read_config() if folder is not None and folder.config.is_file() else None
    return _WORK_PLACES[target.where](home, run)
