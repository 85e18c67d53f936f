"""Work in a process of its own that holds its device, and the model that it reads, for as long as it lives."""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from loratory.engine.errors import StorageError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.hardware.device import Device, visible_only
from loratory.engine.hardware.lease import (
    UNTIL_A_CHAT_LEAVES_SECONDS,
    LeaseBook,
    LeaseHolder,
    Purpose,
    Wait,
    hold_devices,
    lease_name,
)
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.json_lines import JsonLinesProcess
from loratory.engine.processes.liveness import ProcessIdentity
from loratory.engine.processes.spawn import Access, Launcher

_NOTES = "models-in-use"


@dataclass(frozen=True)
class OtherMachine:
    """A machine that shares the home, and how a worker is started there which is asked from here."""

    device: Device  # as the worker there sees it
    launcher: Launcher
    environment: Mapping[str, str]  # in addition to what such workers get
    wait_message: str  # a sentence for who waits for it


@dataclass(frozen=True)
class DeviceJob:
    """What is done where."""

    home: LoratoryHome  # its root is the worker's argument
    module: str  # of the worker, which calls `serve`
    purpose: Purpose  # names the worker's log as well
    title: str  # what people call it
    device: Device  # the only one that the worker sees
    holds_device: bool = True  # off where the work needs none
    access: frozenset[Access] = frozenset()  # what the worker may log in to
    preemptible: bool = False  # ends where a run waits for the device
    environment: Mapping[str, str] = field(default_factory=dict)  # in addition to what such workers get
    model: str = ""  # that the worker reads: its id on the Hub or in the catalogue, or its folder
    machine: OtherMachine | None = None  # that does it; no secret goes there, and what it holds is not ours to lease

    def new_process(self) -> JsonLinesProcess:
        """Return the process, which sees one device and whose libraries are quiet; it is not started yet."""
        quiet = {
            "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        machine = self.machine
        environment = visible_only((self.device,)) if machine is None else machine.environment
        return JsonLinesProcess(
            self.module,
            log_file=self.home.logs / f"{self.purpose}.log",
            arguments=(str(self.home.root),),
            environment={**quiet, **environment, **self.environment},
            access=self.access if machine is None else (),
            restarts=False,
            launcher=machine.launcher if machine is not None else None,
        )

    def start(self, process: JsonLinesProcess, wait: Wait) -> None:
        """Start the process, and hold the device where the work needs one.

        Raises:
            DeviceError: If the device stays in use.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        process.start()
        identity = ProcessIdentity.from_pid(process.pid or 0)
        if identity is None:
            raise process.death()
        if self.model:
            note_model(self.home, self.model, self.purpose, identity)
        if not self.holds_device or self.machine is not None:
            return
        owner = self.home.owner
        holder = LeaseHolder(
            purpose=self.purpose, title=self.title, process=identity, owner=owner, preemptible=self.preemptible
        )
        hold_devices(LeaseBook(self.home), (lease_name(self.device),), holder, wait)

    def run(
        self,
        method: str,
        params: dict[str, Any],
        stopped: threading.Event,
        on_progress: Callable[[dict[str, Any]], None],
        on_wait: Callable[[LeaseHolder], None],
    ) -> dict[str, Any]:
        """Start the process, hold the device, ask once, and end the process.

        Args:
            stopped: Set by another thread that wants no more of it; the process is gone some seconds later.
            on_wait: Called with the holder of the device while this waits for it.

        Raises:
            EngineError: As raised by the handler, of the same class.
            DeviceError: If the device stays in use.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        with contextlib.closing(self.new_process()) as process:
            self.start(process, Wait(UNTIL_A_CHAT_LEAVES_SECONDS, on_wait, stopped))
            return process.call(method, params, on_progress=on_progress, stopped=stopped)


class ModelInUse(BaseModel, frozen=True):
    """A model that a process reads until it ends: no run has it, so nothing else shows that it is needed."""

    model: str
    owner: str  # the person whose work it is; empty where there are no accounts
    purpose: Purpose
    process: ProcessIdentity


def note_model(home: LoratoryHome, model: str, purpose: Purpose, process: ProcessIdentity) -> None:
    """Note that a process reads a model for a home's person; a note that cannot be written does not stop the work."""
    models_in_use(home)  # removes the notes of processes that have ended
    with contextlib.suppress(StorageError, OSError):
        use = ModelInUse(model=model, owner=home.owner, purpose=purpose, process=process)
        write_atomically(home.server / _NOTES / f"{uuid.uuid4().hex}.json", use.model_dump_json(), makes_folder=True)


def models_in_use(home: LoratoryHome) -> list[ModelInUse]:
    """Return the models that chats, evaluations, exports and measurements read now; of other machines, all that is noted."""
    models = []
    for file in (home.server / _NOTES).glob("*.json"):
        use = read_model(file, ModelInUse)
        if use is not None and use.process.liveness() != "gone":
            models.append(use)
        else:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return models
