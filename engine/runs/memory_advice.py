"""What the memory estimate advises a run that ran out of memory."""

import dataclasses
import logging

from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.hardware.devices import list_devices
from engine.memory.advice import advise
from engine.memory.estimate import Estimator
from engine.memory.result import GIB
from engine.models.inventory_cache import known_inventory
from engine.paths import LoratoryHome

_log = logging.getLogger(__name__)

# A run that was expected to fit and did not needs clearly less than before, whatever the device seemed to have.
_ROOM_SHARE = 0.9


def advice_on_memory(config: RunConfig, home: LoratoryHome, device: Device | None = None) -> str | None:
    """The estimate's first advice that makes this run fit, as a sentence; None where it knows of none.

    Args:
        config: Of the run that ran out of memory.
        home: Holds what is known of the model's modules.
        device: Where it ran; the first GPU, else the processor, unless given.
    """
    try:
        shape = known_inventory(config.model, home)
        if shape is None:
            return None
        device = device or _device_of(config)
        need = Estimator(shape, device).need(config).needed_bytes
        room = min(device.total_bytes, round(need * _ROOM_SHARE))
        changes = advise(shape, config, dataclasses.replace(device, free_bytes=room)).changes
    except (EngineError, OSError, MemoryError):
        return None
    except Exception:  # why a run ended is said without advice as well
        _log.exception("no advice on the memory of %s", config.model.id)
        return None
    best = next((change for change in changes if change.verdict == "fits"), changes[0] if changes else None)
    if best is None or best.needed_bytes >= need:
        return None
    return (
        f"{best.change} ({best.cost}): the estimate needs {best.needed_bytes / GIB:.1f} GiB with it instead of "
        f"{need / GIB:.1f}. Set {', '.join(best.overrides)}."
    )


def _device_of(config: RunConfig) -> Device:
    usable = (device for device in list_devices() if device.obstacle is None)
    return next(device for device in usable if device.kind == "cpu" or config.run.devices != "cpu")
