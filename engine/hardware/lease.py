"""Who holds which device: one holder at a time, for training, chat, evaluation and export alike."""

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import DeviceError
from engine.files import write_atomically
from engine.hardware.device import Device
from engine.paths import LoratoryHome
from engine.processes.identity import ProcessIdentity
from engine.processes.lock import FileLock

Purpose = Literal["training", "chat", "evaluation", "export", "measurement"]


class LeaseHolder(BaseModel):
    """The process that has a device, and what for. The lease ends with the process, however that ends."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    purpose: Purpose
    title: str  # what people call it: a run's name, a model
    process: ProcessIdentity
    run_id: str | None = None
    since: float = 0.0  # seconds since the epoch
    gives_way: bool = False  # lets go when asked, as an idle chat does

    @property
    def why_wait(self) -> str:
        """What those are told who wait for the device."""
        return f"Waiting for the device, which is in use for {self.purpose} ({self.title})."


class LeaseBook:
    """The leases of all devices, kept in the home so that every process of ours sees the same.

    Args:
        home: The Loratory home.
    """

    def __init__(self, home: LoratoryHome) -> None:
        self._folder = home.server / "leases"

    def take(self, devices: Iterable[str], holder: LeaseHolder) -> None:
        """Give devices to a process: all of them or none. What it holds already stays its own.

        Args:
            devices: Names as `lease_name` gives them.
            holder: Who gets them; its process must be alive.

        Raises:
            DeviceError: If somebody else holds one of them; says who.
            StorageError: If the book cannot be written.
        """
        wanted = tuple(devices)
        with self._open():
            for device in wanted:
                present = self._read(device)
                if present is not None and present.process != holder.process:
                    raise DeviceError(
                        f"{device_words(device)} is in use for {present.purpose} ({present.title}).",
                        "Wait until it is free, or stop what uses it.",
                    )
            stamped = holder if holder.since else holder.model_copy(update={"since": time.time()})
            for device in wanted:
                self._wanted_mark(device).unlink(missing_ok=True)
                write_atomically(self._file(device), stamped.model_dump_json())

    def hand_over(self, devices: Iterable[str], giver: ProcessIdentity, holder: LeaseHolder) -> None:
        """Pass devices on, for example from the process that started a worker to that worker.

        Raises:
            DeviceError: If the giver does not hold them.
            StorageError: If the book cannot be written.
        """
        wanted = tuple(devices)
        with self._open():
            for device in wanted:
                present = self._read(device)
                if present is None or present.process != giver:
                    raise DeviceError(f"{device_words(device)} is no longer ours to pass on.", "Try again.")
            stamped = holder if holder.since else holder.model_copy(update={"since": time.time()})
            for device in wanted:
                write_atomically(self._file(device), stamped.model_dump_json())

    def release(self, process: ProcessIdentity) -> None:
        """Give back everything that a process holds; does nothing where it holds nothing."""
        if not self._folder.is_dir():
            return
        with self._open():
            for file in self._folder.glob("*.json"):
                holder = _parse(file)
                if holder is not None and holder.process == process:
                    file.unlink(missing_ok=True)
                    file.with_suffix(".wanted").unlink(missing_ok=True)

    def holder(self, device: str) -> LeaseHolder | None:
        """Who has a device now; None where nobody living does."""
        return self._read(device)

    def holder_of_run(self, run_id: str) -> LeaseHolder | None:
        """The living process that holds a device for a run."""
        for file in self._folder.glob("*.json"):
            holder = _parse(file)
            if holder is not None and holder.run_id == run_id and holder.process.is_alive():
                return holder
        return None

    def ask_to_give_way(self, device: str) -> bool:
        """Tell a holder that somebody waits; returns whether it is one that gives way."""
        holder = self._read(device)
        if holder is None or not holder.gives_way:
            return False
        self._wanted_mark(device).touch(mode=0o600)
        return True

    def is_asked_to_give_way(self, process: ProcessIdentity) -> bool:
        """Whether somebody waits for a device that this process holds; for holders that give way."""
        for mark in self._folder.glob("*.wanted"):
            holder = _parse(mark.with_suffix(".json"))
            if holder is not None and holder.process == process:
                return True
        return False

    def _open(self) -> FileLock:
        """Looking a device up and taking it must not be torn apart by another process that does the same."""
        return FileLock(self._folder / "lock")

    def _read(self, device: str) -> LeaseHolder | None:
        holder = _parse(self._file(device))
        return holder if holder is not None and holder.process.is_alive() else None

    def _file(self, device: str) -> Path:
        return self._folder / f"{device.replace(':', '-')}.json"

    def _wanted_mark(self, device: str) -> Path:
        return self._file(device).with_suffix(".wanted")


def lease_name(device: Device) -> str:
    """Name of a device in the lease book: `cpu`, `mps`, `cuda:0` …"""
    return f"cuda:{device.index}" if device.kind == "cuda" else device.kind


def device_words(name: str) -> str:
    """The same for people."""
    return {"cpu": "The CPU", "mps": "Apple's GPU"}.get(name) or f"GPU {name.partition(':')[2]}"


def _parse(file: Path) -> LeaseHolder | None:
    with contextlib.suppress(OSError, ValidationError):
        return LeaseHolder.model_validate_json(file.read_bytes())
    return None
