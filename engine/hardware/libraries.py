"""Which libraries are installed here."""

import functools
import importlib.metadata


@functools.cache
def library_version(distribution: str) -> str | None:
    """The installed version of a library; None where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
