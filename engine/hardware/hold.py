"""Taking a device for a worker: whoever is just leaving it is given a moment, whoever may give way is asked to."""

import time
from collections.abc import Callable

from engine.errors import DeviceError
from engine.hardware.lease import LeaseBook, LeaseHolder

_LOOK_SECONDS = 0.25


def hold_device(
    book: LeaseBook,
    device: str,
    holder: LeaseHolder,
    patience_seconds: float,
    on_wait: Callable[[LeaseHolder], None] = lambda _: None,
) -> None:
    """Take a device, and wait for it a while.

    Args:
        book: The leases of the home.
        device: As `engine.hardware.lease.lease_name` gives it.
        holder: Who gets it; the lease ends with its process.
        patience_seconds: How long to wait for somebody else to leave.
        on_wait: Told who has it, each time that is looked at.

    Raises:
        DeviceError: If somebody else holds it still; says who.
    """
    patience_ends = time.monotonic() + patience_seconds
    while True:
        try:
            book.take([device], holder)
            return
        except DeviceError:
            if time.monotonic() > patience_ends:
                raise
        present = book.holder(device)
        if present is not None:
            book.ask_to_give_way(device)
            on_wait(present)
        time.sleep(_LOOK_SECONDS)
