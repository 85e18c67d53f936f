"""What lies in a folder and below it, looked at no further than a folder of data goes."""

import os
from collections.abc import Iterator
from pathlib import Path

from engine.data.access import shown_name
from engine.errors import DatasetError

MAX_FILES = 4096  # each is opened before the first row is read
MAX_ENTRIES = 50_000


def files_below(folder: Path) -> Iterator[Path]:
    """Files, and links that may lead to some; hidden ones and those of hidden folders are left out.

    Raises:
        DatasetError: If there is more in it than anybody keeps in a folder of data.
    """
    waiting = [folder]
    seen = 0
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MAX_ENTRIES:
                        raise DatasetError(
                            f"The folder {shown_name(folder.name)} holds more than {MAX_ENTRIES:,} files and folders.",
                            "Choose the folder further down that holds the data alone.",
                        )
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        yield Path(entry.path)
        except OSError:  # a folder of somebody else's
            continue
