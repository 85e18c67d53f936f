"""What a lab does by itself while it is served: look after pages, measure disk space and warn before it runs out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from engine.accounts.lab import read_settings
from engine.errors import EngineError
from engine.paths import LoratoryHome
from engine.runs.disk import DiskUse, disk_warning, free_bytes
from engine.runs.disk_samples import DiskSamples
from ui.front.pages import PersonPages, housekeeping

_MEASURE_SECONDS = 600


@asynccontextmanager
async def upkeep(pages: PersonPages, enabled: Callable[[], set[str]], disk: DiskSamples) -> AsyncIterator[None]:
    """Look after a lab until its server ends."""

    async def measure() -> None:
        while True:
            with suppress(EngineError):  # the accounts are in use: at the next look
                await asyncio.to_thread(disk.measure)
            await asyncio.sleep(_MEASURE_SECONDS)

    async with housekeeping(pages, enabled):
        measuring = asyncio.create_task(measure())
        try:
            yield
        finally:
            measuring.cancel()


def disk_notice(home: LoratoryHome, use: DiskUse | None) -> str:
    """Return what a person should do before disk space runs out; empty while there is enough, or it is not known."""
    try:
        return disk_warning(use, read_settings(home).limits, free_bytes(home)) if use is not None else ""
    except (EngineError, OSError):
        return ""
