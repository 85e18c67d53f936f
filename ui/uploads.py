"""Files that come in through the page: kept under a safe name, in one folder."""

import re
import shutil
from pathlib import Path

from engine.errors import StorageError


def keep_upload(uploaded: Path, folder: Path) -> Path:
    """Move a file that came in through the page into the uploads folder, under a safe version of its name.

    Raises:
        StorageError: If it cannot be kept.
    """
    name = re.sub(r"[^\w.-]+", "-", uploaded.name).lstrip("-.")[-120:] or "upload"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / name
        number = 1
        while target.exists():
            number += 1
            target = folder / f"{number}-{name}"
        shutil.move(uploaded, target)
    except OSError as error:
        raise StorageError(
            f"The upload {name} cannot be kept ({error.strerror}).", "Free some space, then upload it again."
        ) from error
    return target
