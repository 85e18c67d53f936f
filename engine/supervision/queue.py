"""The waiting runs: their order, and which of them may start on which device now."""

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Literal, NamedTuple

from pydantic import BaseModel

from loratory.engine.config.run import RunSection
from loratory.engine.errors import DeviceError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_options, first_that_fits
from loratory.engine.hardware.lease import LeaseHolder, device_words, lease_name
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.runs.names import run_label
from loratory.engine.runs.run import StateReason

QueueMove = Literal["first", "up", "down", "last"]


class _QueueFile(BaseModel, frozen=True):
    moved: tuple[str, ...] = ()  # run ids that a person put in an order; all other runs follow by age


class QueueOrder:
    """The order of waiting runs: by age, except where a person moved them. Survives restarts.

    In a lab, each person has an order of their own, and `fairness` decides among people.
    """

    def __init__(self, home: LoratoryHome) -> None:
        self._path = home.server / (f"queue-{home.owner}.json" if home.owner else "queue.json")
        self._lock_path = home.server / "queue.lock"

    @property
    def is_saved(self) -> bool:
        """Whether runs were moved."""
        return self._path.exists()

    def sort(self, run_ids: Sequence[str]) -> list[str]:
        """Put waiting runs in order, the next to start first."""
        file = read_model(self._path, _QueueFile) or _QueueFile()
        positions = {run_id: position for position, run_id in enumerate(file.moved)}
        return sorted(run_ids, key=lambda run_id: (positions.get(run_id, len(positions)), run_id))

    def move(self, run_id: str, waiting: Sequence[str], position: int) -> list[str]:
        """Put one waiting run at `position` (0 starts next) and return the new order.

        Raises:
            StorageError: If the order cannot be written.
        """
        with FileLock(self._lock_path):
            order = [other for other in self.sort(waiting) if other != run_id]
            order.insert(max(0, position), run_id)
            write_atomically(self._path, _QueueFile(moved=tuple(order)).model_dump_json())
        return order

    def shift(self, run_id: str, waiting: Sequence[str], where: QueueMove) -> list[str]:
        """Move one waiting run within the queue and return the new order; raises as `move` does."""
        order = self.sort(waiting)
        position = order.index(run_id) if run_id in order else len(order)
        positions = {"first": 0, "up": position - 1, "down": position + 1, "last": len(order)}
        return self.move(run_id, waiting, positions[where])


class WaitingRun(NamedTuple):
    """A run that waits, and what it needs."""

    run_id: str
    section: RunSection
    needed_bytes: int | None  # None where no estimate was made
    needed_on: Mapping[str, int] = {}  # the same by name of a device, where GPUs differ
    starts_anyway: bool = False  # a person asked for it, even if another program uses the device
    owner: str = ""  # in a lab, whose it is
    is_urgent: bool = False
    title: str = ""  # what people call it; empty where only the id is known

    def needs(self, device: Device) -> int | None:
        """Bytes that it needs on a device."""
        return self.needed_on.get(device.name, self.needed_bytes)


class QueuePlan(NamedTuple):
    """A plan for the queue at this moment."""

    starts: Mapping[str, tuple[Device, ...]]  # the devices of each run that may start now
    reasons: Mapping[str, StateReason]  # why each run that does not start waits
    awaited_leases: tuple[str, ...]  # leased devices that a run waits for


class StartRules(NamedTuple):
    """Reasons to delay runs, in addition to their devices' leases and memory."""

    # Given the runs that start before it.
    hold: Callable[[WaitingRun, Collection[str]], StateReason | None] = lambda *_: None
    program_use: Mapping[str, StateReason] = {}  # devices that other programs use, by lease name


_NO_RULES = StartRules()


def plan_starts(
    queue: Sequence[WaitingRun],
    devices: Sequence[Device],
    holders: Mapping[str, LeaseHolder],
    rules: StartRules = _NO_RULES,
) -> QueuePlan:
    """Decide which waiting runs start now.

    A run starts on a device that is not leased and whose free memory covers what it needs. No run overtakes on the
    same device: where the first in line must wait for memory, later runs do not use that device, otherwise a large run
    would wait for ever.

    Args:
        queue: In the order in which they should start.
        holders: Who holds which device, by lease name; what is held for a run keeps that run itself from nothing.
        rules: Of a lab. A run that is held leaves its device to later ones.
    """
    starts: dict[str, tuple[Device, ...]] = {}
    reasons: dict[str, StateReason] = {}
    awaited_leases: list[str] = []
    reserved: dict[str, WaitingRun] = {}  # devices that runs before this one got or wait for
    for waiting in queue:
        reason = rules.hold(waiting, starts.keys())
        if reason is not None:
            reasons[waiting.run_id] = reason
            continue
        try:
            options = _large_options(devices, waiting)
        except DeviceError as error:
            reasons[waiting.run_id] = StateReason("device_missing", error.what, error.fix)
            continue
        others = {name: holder for name, holder in holders.items() if holder.run_id != waiting.run_id}
        obstacles = Obstacles(others, reserved, {} if waiting.starts_anyway else rules.program_use)
        free = [option for option in options if obstacles.names.isdisjoint(map(lease_name, option))]
        devices_of_run = first_that_fits(free, waiting.needs)
        if devices_of_run is not None:
            starts[waiting.run_id] = devices_of_run
        else:
            reasons[waiting.run_id] = _reason(waiting, options, free, obstacles)
            devices_of_run = tuple(device for option in options for device in option)
            awaited_leases += [name for name in map(lease_name, devices_of_run) if name in others]
        for name in map(lease_name, devices_of_run):
            reserved.setdefault(name, waiting)
    return QueuePlan(starts, reasons, tuple(dict.fromkeys(awaited_leases)))


def _large_options(devices: Sequence[Device], waiting: WaitingRun) -> tuple[tuple[Device, ...], ...]:
    """Leave out GPUs that are too small for a run, which waits for larger ones; raises DeviceError if there are none."""
    options = device_options(devices, waiting.section)
    large = (option for option in options if all((waiting.needs(gpu) or 0) <= gpu.total_bytes for gpu in option))
    return tuple(large) or tuple(options)


class Obstacles(NamedTuple):
    """Why devices are in use, by lease name."""

    holders: Mapping[str, LeaseHolder]
    reserved: Mapping[str, WaitingRun]
    program_use: Mapping[str, StateReason]

    @property
    def names(self) -> Set[str]:
        """The lease names of all devices in use."""
        return self.holders.keys() | self.reserved.keys() | self.program_use.keys()


def _reason(
    waiting: WaitingRun,
    options: Sequence[tuple[Device, ...]],
    free: Sequence[tuple[Device, ...]],
    obstacles: Obstacles,
) -> StateReason:
    if free:
        return _memory_reason(waiting, free)
    names = [lease_name(device) for option in options for device in option]
    before = next((obstacles.reserved[name] for name in names if name in obstacles.reserved), None)
    if before is not None and before.is_urgent and before.owner != waiting.owner:
        return StateReason("urgent_run", f"An urgent run of {before.owner} comes first.")
    for name in names:
        if name in obstacles.holders:
            holder = obstacles.holders[name].as_seen_by(waiting.owner)
            return StateReason("device_in_use", f"{device_words(name)} is in use {holder.use}.")
    for name in names:
        if name in obstacles.program_use:
            return obstacles.program_use[name]
    assert before is not None, "a run waits for something"
    return _earlier_run_reason(waiting, before)


def _memory_reason(waiting: WaitingRun, free: Sequence[tuple[Device, ...]]) -> StateReason:
    device = max((device for option in free for device in option), key=lambda device: device.free_bytes)
    return StateReason(
        "memory",
        f"It needs {_gib(waiting.needs(device) or 0)} GiB, and {device.name} has {_gib(device.free_bytes)} of "
        f"{_gib(device.total_bytes)} GiB free.",
    )


def _earlier_run_reason(waiting: WaitingRun, before: WaitingRun) -> StateReason:
    if before.owner != waiting.owner:
        cause = f"A run of {before.owner} comes first."
        return StateReason("other_persons_run", cause, "Next is the person who used least GPU time lately.")
    name = run_label(before.title, before.run_id) if before.title else before.run_id
    return StateReason("earlier_run", f"{name} comes first.")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
