"""Work in a process of its own that holds its device for as long as it lives."""

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import WorkerError
from engine.hardware.device import Device, visible_only
from engine.hardware.lease import (
    UNTIL_A_CHAT_LEAVES_SECONDS,
    LeaseBook,
    LeaseHolder,
    Purpose,
    Wait,
    hold_devices,
    lease_name,
)
from engine.paths import LoratoryHome
from engine.processes.json_lines import JsonLinesProcess
from engine.processes.liveness import ProcessIdentity
from engine.processes.spawn import Access


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

    def new_process(self) -> JsonLinesProcess:
        """Return the process, which sees one device and whose libraries are quiet; it is not started yet."""
        quiet = {
            "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return JsonLinesProcess(
            self.module,
            log_file=self.home.server / f"{self.purpose}.log",
            arguments=(str(self.home.root),),
            environment={**quiet, **visible_only((self.device,))},
            access=self.access,
            restarts=False,
        )

    def start(self, process: JsonLinesProcess, wait: Wait) -> None:
        """Start the process, and hold the device where the work needs one.

        Raises:
            DeviceError: If the device stays in use.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        process.start()
        if not self.holds_device:
            return
        identity = ProcessIdentity.of(process.pid or 0)
        if identity is None:
            fix = f"See its log {process.log_file.name}."
            raise WorkerError(f"The process for the {self.purpose} ended without a result.", fix)
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
            method: Handler of the worker, which gets `params`.
            stopped: Set by another thread that wants no more of it; the process is gone some seconds later.
            on_wait: Told who has the device while it is waited for.

        Raises:
            EngineError: As raised by the handler, of the same class.
            DeviceError: If the device stays in use.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        with contextlib.closing(self.new_process()) as process:
            self.start(process, Wait(UNTIL_A_CHAT_LEAVES_SECONDS, on_wait, stopped))
            return process.call(method, params, on_progress=on_progress, stopped=stopped)
