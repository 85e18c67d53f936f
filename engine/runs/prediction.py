"""How much memory a run needs on each device that it may get, and which of them the queue would give it."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.data.contract import RowLengths
from engine.errors import DeviceError, EngineError, MemoryUnknownError
from engine.hardware.device import Device
from engine.hardware.devices import first_that_fits, list_devices
from engine.hardware.lease import lease_name
from engine.memory.advice import advise
from engine.memory.device_need import DeviceNeed
from engine.memory.estimate import GIB, Estimator
from engine.models.inventory_cache import known_inventory
from engine.models.shape import ModelShape
from engine.paths import LoratoryHome

_log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """The memory that a run needs on the device that the queue would choose if all were free."""

    devices: tuple[Device, ...]
    need: DeviceNeed  # on that of them where it is the most
    by_name: dict[str, int]  # bytes on each kind of device that it may get


def predict(
    shape: ModelShape, config: RunConfig, options: Sequence[tuple[Device, ...]], rows: RowLengths | None = None
) -> Prediction:
    """Return the needs of a run on the first option with enough memory, by the rule of the queue.

    Without known `rows`, all of them are as long as `max_length` allows.

    Raises:
        ConfigError: If there are more devices than layers to spread over them.
        DeviceError: If each option is smaller than what the run needs there.
        MemoryUnknownError: If the model's layer structure is not supported.
    """
    by_option = {option: needs_of(shape, config, option, rows) for option in options}
    by_name: dict[str, int] = {}
    too_small: dict[tuple[Device, ...], DeviceError] = {}
    for option, needs in by_option.items():
        for device, need in zip(option, needs, strict=True):
            by_name[device.name] = max(need.expected_bytes, by_name.get(device.name, 0))
            if need.expected_bytes > device.total_bytes:
                too_small.setdefault(option, _too_small(config, device, need))
    possible = [option for option in options if option not in too_small]
    if not possible:
        raise too_small[max(options, key=lambda option: option[0].total_bytes)]
    devices = first_that_fits(possible, lambda device: by_name[device.name]) or possible[0]
    return Prediction(devices, max(by_option[devices], key=lambda need: need.expected_bytes), by_name)


def most_likely(
    shape: ModelShape, config: RunConfig, options: Sequence[tuple[Device, ...]], rows: RowLengths | None = None
) -> tuple[Device, ...]:
    """Return the devices that the queue would give a run; the best where it fits none, or its needs are unknown."""
    if len(options) == 1:
        return options[0]
    try:
        return predict(shape, config, options, rows).devices
    except (DeviceError, MemoryUnknownError):
        return options[0]


def _too_small(config: RunConfig, device: Device, need: DeviceNeed) -> DeviceError:
    where = f" on {lease_name(device)}" if config.run.spread_over > 1 else ""
    return DeviceError(
        f"This run needs about {need.expected_bytes / GIB:.1f} GiB{where}, and {device.name} has "
        f"{device.total_bytes / GIB:.1f} GiB in all.",
        "See `loratory estimate` for what would make it fit: often nf4, shorter rows or checkpointing.",
    )


def needs_of(
    shape: ModelShape, config: RunConfig, devices: Sequence[Device], rows: RowLengths | None = None
) -> tuple[DeviceNeed, ...]:
    """Return the expected memory on each of the run's devices, in order.

    Raises:
        ConfigError: If there are more devices than layers to spread over them.
        MemoryUnknownError: If the model's layer structure is not supported.
    """
    if config.run.spread_over == 1:
        return tuple(Estimator(shape, device, rows).need(config) for device in devices)
    estimator = Estimator(shape, devices[0], rows)
    return estimator.split_needs(estimator.workload(config), len(devices))


# A run that was expected to fit and did not needs clearly less than before, however much the device seemed to have.
_ROOM_SHARE = 0.9


def advice_on_memory(
    config: RunConfig, home: LoratoryHome, device: Device | None = None, rows: RowLengths | None = None
) -> str | None:
    """Return the estimate's first advice that makes this run fit, as a sentence; None if there is none.

    Without known `rows`, all of them are as long as `max_length` allows. `device` is where it ran; unless given, the first GPU, or the processor.
    """
    try:
        shape = known_inventory(config.model, home)
        if shape is None:
            return None
        device = device or _device_of(config)
        need = Estimator(shape, device, rows).need(config).needed_bytes
        room = min(device.total_bytes, round(need * _ROOM_SHARE))
        changes = advise(shape, config, dataclasses.replace(device, free_bytes=room), rows).changes
    except (EngineError, OSError, MemoryError):
        return None
    except Exception:  # the reason is reported without advice, too
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
