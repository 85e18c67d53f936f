"""What the name of a dataset means, told without opening anything."""

import re
from pathlib import Path

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_FILE_ENDINGS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".md", ".parquet", ".pkl")


def is_on_hub(source: str) -> bool:
    """Whether a name means a dataset on the Hub: it looks like an id, and nothing here has that name. Asks nobody."""
    name = source.strip()
    return not _is_there(name) and _HUB_ID.match(name) is not None and not _looks_like_file(name)


def _is_there(name: str) -> bool:
    try:
        return Path(name).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL byte, a home that nobody has
        return False


def _looks_like_file(name: str) -> bool:
    return name.lower().removesuffix(".gz").endswith(_FILE_ENDINGS)
