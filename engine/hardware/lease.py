"""Who holds which device: one holder at a time, for training, chat, evaluation and export."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from loratory.engine.errors import DeviceError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.device import Device
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock, ProcessIdentity, boot_id
from loratory.engine.processes.messages import CancelledRequestError

Purpose = Literal["training", "chat", "evaluation", "export", "measurement"]

_WANTED_SECONDS = 10.0  # a waiting process asks several times a second


class LeaseHolder(BaseModel, frozen=True):
    """The process that has a device, and what for. The lease ends with the process, however that ends."""

    purpose: Purpose
    title: str  # what people call it: a run's name, a model
    process: ProcessIdentity
    run_id: str | None = None  # what for, where one process holds devices for several
    since: float = 0.0  # seconds since the epoch
    preemptible: bool = False  # releases the device when asked, as an idle chat does
    owner: str = ""  # the person who uses it; empty without accounts

    @property
    def why_wait(self) -> str:
        """The message for those who wait for the device."""
        return f"Waiting for the device, which is in use {self.use}."

    @property
    def use(self) -> str:
        """`for training (Run X)`; `by ann for training` where the title is another person's."""
        title = f" ({self.title})" if self.title else ""
        by = f"by {self.owner} " if self.owner and not self.title else ""
        return f"{by}for {self.purpose}{title}"

    def as_seen_by(self, person: str) -> "LeaseHolder":
        """Return it without its title where that is another person's; an empty name is that of a home without accounts."""
        return self if person in ("", self.owner) else self.model_copy(update={"title": ""})

    def is_the_same_as(self, other: "LeaseHolder") -> bool:
        """Whether it is one process that holds for one thing; a server starts many runs, and takes devices for each."""
        return self.process == other.process and self.run_id == other.run_id


class LeaseBook:
    """The leases of this machine's devices, kept in the home, where every process of ours sees the same.

    Machines that share a home have a folder each, named after the boot: their devices are different ones.
    """

    def __init__(self, home: LoratoryHome, clock: Callable[[], float] = time.time) -> None:
        self.home = home
        self._folder = home.server / "leases" / boot_id()
        self._runs = home.runs
        self._clock = clock

    def take(self, devices: Sequence[str], holder: LeaseHolder) -> None:
        """Give devices, named by `lease_name`, to a living process, if all of them are free or its own for the same thing.

        Raises:
            DeviceError: If one of them is in use; names the holder.
            StorageError: If the book cannot be written; those that were written stay its own, until it asks again or ends.
        """
        with self._open():
            for device in devices:
                present = self.holder(device)
                if present is not None and not present.is_the_same_as(holder):
                    fix = "Wait until it is free, or stop what uses it."
                    raise DeviceError(f"{device_words(device)} is in use {present.as_seen_by(holder.owner).use}.", fix)
            for device in devices:
                self._wanted_mark(device).unlink(missing_ok=True)
                self._write(device, holder)

    def hand_over(self, devices: Sequence[str], giver: ProcessIdentity, holder: LeaseHolder) -> None:
        """Pass devices on, for example from the process that started a worker to that worker.

        Raises:
            DeviceError: If the giver does not hold them for the same thing.
            StorageError: If the book cannot be written.
        """
        with self._open():
            for device in devices:
                present = self.holder(device)
                # The first of several may have been passed on before the disk was full.
                is_ours = present is not None and present.process in (giver, holder.process)
                if present is None or not is_ours or present.run_id != holder.run_id:
                    raise DeviceError(
                        f"{device_words(device)} cannot be passed on, because its lease has ended.", "Try again."
                    )
            for device in devices:
                self._write(device, holder)

    def release(self, process: ProcessIdentity) -> None:
        """Give back everything that a process holds; does nothing where it holds nothing."""
        self._release(lambda holder: holder.process == process)

    def release_run(self, run_id: str) -> None:
        """Give back everything that is held for a run, by its worker or by who was about to start it."""
        self._release(lambda holder: holder.run_id == run_id)

    def _release(self, is_given_back: Callable[[LeaseHolder], bool]) -> None:
        if not self._folder.is_dir():
            return
        with self._open():
            for file in self._folder.glob("*.json"):
                holder = read_model(file, LeaseHolder)
                if holder is not None and is_given_back(holder):
                    file.unlink(missing_ok=True)
                    file.with_suffix(".wanted").unlink(missing_ok=True)

    def holder(self, device: str) -> LeaseHolder | None:
        """Return who has a device now; None where no living process does."""
        holder = read_model(self._file(device), LeaseHolder)
        return holder if holder is not None and self._holds(holder) else None

    def holders(self) -> dict[str, LeaseHolder]:
        """Return the living processes that have a device, by the device's name."""
        entries = {
            file.stem.replace("-", ":"): read_model(file, LeaseHolder) for file in sorted(self._folder.glob("*.json"))
        }
        return {name: holder for name, holder in entries.items() if holder is not None and self._holds(holder)}

    def holder_of_run(self, run_id: str) -> LeaseHolder | None:
        """Return the living process that holds a device for a run."""
        return next((holder for holder in self.holders().values() if holder.run_id == run_id), None)

    def devices_of_run(self, run_id: str) -> tuple[str, ...]:
        """Return the names of the devices that a living process holds for a run."""
        return tuple(device for device, holder in self.holders().items() if holder.run_id == run_id)

    def request_preemption(self, device: str) -> bool:
        """Ask the holder of a device to release it, for a run that waits; returns whether it is preemptible.

        The request expires after some seconds, so a run that still waits repeats it.
        """
        holder = self.holder(device)
        if holder is None or not holder.preemptible:
            return False
        mark, now = self._wanted_mark(device), self._clock()
        mark.touch(mode=0o600)
        os.utime(mark, (now, now))  # by our clock, and not that of a file server
        return True

    def is_preemption_requested(self, process: ProcessIdentity) -> bool:
        """Return whether a run waits for a device that this process holds; for preemptible holders."""
        for mark in self._folder.glob("*.wanted"):
            holder = read_model(mark.with_suffix(".json"), LeaseHolder)
            if holder is not None and holder.process == process:
                with contextlib.suppress(OSError):
                    if abs(self._clock() - mark.stat().st_mtime) < _WANTED_SECONDS:
                        return True
        return False

    def _open(self) -> FileLock:
        """Lock the book: a device that is looked up and taken must not be taken by another process in between."""
        return FileLock(self._folder / "lock")

    def _write(self, device: str, holder: LeaseHolder) -> None:
        entry = holder if holder.since else holder.model_copy(update={"since": self._clock()})
        write_atomically(self._file(device), entry.model_dump_json())

    def _holds(self, holder: LeaseHolder) -> bool:
        liveness = holder.process.liveness()
        if liveness != "unknown":
            return liveness == "alive"
        # Of another container of this machine. A training worker's lock is seen from here; without one it counts as
        # gone: most often its container was replaced by ours.
        locks = self._runs.glob(f"*/{holder.run_id}/lock") if holder.run_id is not None else ()
        return any(FileLock(lock).is_held_by_another() for lock in locks)

    def _file(self, device: str) -> Path:
        return self._folder / f"{device.replace(':', '-')}.json"

    def _wanted_mark(self, device: str) -> Path:
        return self._file(device).with_suffix(".wanted")


def lease_name(device: Device) -> str:
    """Name of a device in the lease book: `cpu`, `mps`, `cuda:0` …"""
    return f"cuda:{device.index}" if device.kind == "cuda" else device.kind


def device_words(name: str) -> str:
    """Return the device's name for people."""
    return {"cpu": "The CPU", "mps": "Apple's GPU"}.get(name) or f"GPU {name.partition(':')[2]}"


# An idle chat releases its device within a minute.
UNTIL_A_CHAT_LEAVES_SECONDS = 75.0


@dataclass(frozen=True)
class Wait:
    """How to wait for devices that are in use."""

    seconds: float
    on_wait: Callable[[LeaseHolder], None] = lambda _: None  # called with the holder of the device at each attempt
    stopped: threading.Event = field(default_factory=threading.Event)  # set by another thread that no longer wants it


def hold_devices(book: LeaseBook, devices: Sequence[str], holder: LeaseHolder, wait: Wait) -> None:
    """Take devices as `LeaseBook.take` does, and wait for them a while.

    Raises:
        DeviceError: If one of them is still in use; names the holder.
        CancelledRequestError: If it was stopped meanwhile.
    """
    patience_ends = time.monotonic() + wait.seconds
    while True:
        if wait.stopped.is_set():
            raise CancelledRequestError
        try:
            book.take(devices, holder)
            return
        except DeviceError:
            if time.monotonic() > patience_ends:
                raise
        for device in devices:
            present = book.holder(device)
            if present is not None and not present.is_the_same_as(holder):
                book.request_preemption(device)
                wait.on_wait(present.as_seen_by(holder.owner))
        wait.stopped.wait(0.25)
