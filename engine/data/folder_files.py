"""What lies in a folder and below it, looked at no further than a folder of data goes."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from engine.data.access import shown_name
from engine.data.file_endings import family_of
from engine.errors import DatasetError

# What stands beside the data in a repository and is no data: words about it, and what libraries note down.
_DOCUMENT = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation|contributing|code[_-]of[_-]conduct|data(set)?[_-]?card)"
    r"(?![a-z]).*|.*[_-](readme|licen[cs]e)",
    re.IGNORECASE,
)
_NOTED_DOWN = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"}
)

MAX_FILES = 4096  # each is opened before the first row is read
MAX_ENTRIES = 50_000


def describes_data(file: Path) -> bool:
    """Whether a file is a README, a licence or the like by its name, or what a library notes down about a dataset."""
    name = file.name.lower()
    is_document = family_of(file.name) == "text" and _DOCUMENT.fullmatch(file.stem) is not None
    return is_document or name in _NOTED_DOWN


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
