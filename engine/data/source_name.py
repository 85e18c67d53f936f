"""What the name of a dataset means, told without opening anything."""

from pathlib import Path

from engine.data.file_endings import names_file
from engine.models.hub_id import is_hub_id


def is_on_hub(source: str) -> bool:
    """Return whether a name means a dataset on the Hub: it looks like an id and not like a file, and no file has it."""
    name = source.strip()
    return is_hub_id(name) and not names_file(name) and not _is_there(name)


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, a home that nobody has
        return False
