"""What is added to the state of an attempt when it ends: advice on memory, and the energy that was measured."""

from collections.abc import Callable

from engine.errors import EngineError
from engine.hardware.processor import describe_processor
from engine.paths import LoratoryHome
from engine.runs.followed import FollowedRun
from engine.runs.memory_advice import advice_on_memory
from engine.runs.run import RunState


def with_advice(followed: FollowedRun, state: RunState, home: LoratoryHome) -> RunState:
    """Where the system ended a worker for want of RAM: what the estimate would change, in figures.

    The estimate of a run on a GPU is of the GPU's memory, and says nothing of what filled the RAM.
    """
    if state.reason != "out_of_memory" or state.device != "cpu":
        return state
    try:
        advice = advice_on_memory(followed.run.folder.read_config(), home, describe_processor())
    except EngineError:
        advice = None
    return state if advice is None else state.model_copy(update={"advice": advice})


def with_energy(followed: FollowedRun, state: RunState, meter: Callable[[str], float | None]) -> RunState:
    """Add what the GPUs measured in this attempt; where one attempt was not measured, the whole is unknown.

    Args:
        followed: The attempt, as it stood before its end.
        state: As it stands now.
        meter: Joules that the devices of a lease have used so far, where they measure it.
    """
    began = state.energy_meter_joules
    now = meter(followed.state.device) if began is not None and followed.is_of_this_boot else None
    before = 0.0 if state.attempt == 1 else state.energy_joules
    total = None
    # Meters begin anew when their driver is loaded again.
    if began is not None and now is not None and before is not None and now >= began:
        total = before + now - began
    return state.model_copy(update={"energy_joules": total, "energy_meter_joules": None})
