"""Taking devices for a worker: whoever is just leaving it is given a moment, whoever may give way is asked to."""

import time
from collections.abc import Callable, Sequence

from engine.errors import DeviceError
from engine.hardware.lease import LeaseBook, LeaseHolder

_LOOK_SECONDS = 0.25


def hold_devices(
    book: LeaseBook,
    devices: Sequence[str],
    holder: LeaseHolder,
    patience_seconds: float,
    on_wait: Callable[[LeaseHolder], None] = lambda _: None,
) -> None:
    """Take devices, all or none, and wait for them a while.

    Args:
        book: The leases of the home.
        devices: As `engine.hardware.lease.lease_name` gives them.
        holder: Who gets them; the lease ends with its process.
        patience_seconds: How long to wait for somebody else to leave.
        on_wait: Told who has it, each time that is looked at.

    Raises:
        DeviceError: If somebody else holds one of them still; says who.
    """
    patience_ends = time.monotonic() + patience_seconds
    while True:
        try:
            book.take(devices, holder)
            return
        except DeviceError:
            if time.monotonic() > patience_ends:
                raise
        for device in devices:
            present = book.holder(device)
            if present is not None and present.process != holder.process:
                book.ask_to_give_way(device)
                on_wait(present)
        time.sleep(_LOOK_SECONDS)
