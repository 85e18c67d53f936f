"""Taking devices for a worker: whoever is just leaving it is given a moment, whoever may give way is asked to."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.errors import DeviceError
from engine.hardware.lease import LeaseBook, LeaseHolder
from engine.processes.json_lines import CancelledRequestError

# An idle chat lets go of its device within a minute.
UNTIL_A_CHAT_LEAVES_SECONDS = 75.0

_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Wait:
    """How to wait for somebody else to leave.

    Args:
        seconds: How long.
        on_wait: Told who has the device, each time that is looked at.
        stopped: Set by another thread that no longer wants it.
    """

    seconds: float
    on_wait: Callable[[LeaseHolder], None] = lambda _: None
    stopped: threading.Event = field(default_factory=threading.Event)


def hold_devices(book: LeaseBook, devices: Sequence[str], holder: LeaseHolder, wait: Wait) -> None:
    """Take devices, all or none, and wait for them a while.

    Args:
        book: The leases of the home.
        devices: As `engine.hardware.lease.lease_name` gives them.
        holder: Who gets them; the lease ends with its process.
        wait: For how long, and who is told.

    Raises:
        DeviceError: If somebody else holds one of them still; says who.
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
                book.ask_to_give_way(device)
                wait.on_wait(present)
        wait.stopped.wait(_LOOK_SECONDS)
