"""Uploads and downloads of the page: in one folder of the home, limited in size and cleaned up."""

import contextlib
import filecmp
import hashlib
import os
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loratory.engine.errors import StorageError, explain_os_errors
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.disk import require_disk_space
from loratory.engine.runs.store import folder_size_bytes
from loratory.ui.views.html import size

LARGEST_FILE_BYTES = 4 * 10**9
_LARGEST_TOTAL_BYTES = 20 * 10**9
_KEPT_SECONDS = 6 * 3600  # uploads move to their own folder at once; a download is done by then


@dataclass(frozen=True)
class Transfers:
    """The disk space of uploads and downloads: files pass through `home.transfers`; uploaded datasets stay in `home.uploads`."""

    home: LoratoryHome
    largest_file_bytes: int = LARGEST_FILE_BYTES
    largest_total_bytes: int = _LARGEST_TOTAL_BYTES
    _pending_bytes: list[int] = field(default_factory=list)  # bytes of each file that is being written
    # Guards _pending_bytes: requests and handlers of all pages.
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self) -> None:
        """Make the folder, for this user alone, and let Gradio use it; call it before any component is built.

        Raises:
            StorageError: If it cannot be made.
        """
        folder = self.home.transfers
        with explain_os_errors(f"The folder {folder} cannot be used", "Make it writable, then start again."):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        self.sweep()

    def sweep(self, now: float | None = None) -> None:
        """Remove files that are older than six hours, also of servers that were killed; `now` is in seconds since the epoch."""
        oldest = (time.time() if now is None else now) - _KEPT_SECONDS
        for folder, _, names in os.walk(self.home.transfers, topdown=False):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # another server sweeps as well
                    if path.lstat().st_mtime < oldest:
                        path.unlink()
            if Path(folder) != self.home.transfers:
                with contextlib.suppress(OSError):  # still in use
                    Path(folder).rmdir()

    @contextmanager
    def room_for(self, bytes_: int, *, instead: str) -> Iterator[None]:
        """Reserve space for a file while it is written; an error names what to do `instead` with one that is too large.

        Raises:
            StorageError: If it is too large, the limit of all files is reached, or the disk is full.
        """
        if bytes_ > self.largest_file_bytes:
            raise StorageError(
                f"The file is {size(bytes_)}; the page moves files of at most {size(self.largest_file_bytes)}.", instead
            )
        with self._lock:
            self._require_room(bytes_)
            self._pending_bytes.append(bytes_)
        try:
            yield
        finally:
            with self._lock:
                self._pending_bytes.remove(bytes_)

    def require_quota(self, bytes_: int) -> None:
        """Refuse an upload that the disk space of a person of a lab does not cover, other uploads under way included.

        Raises:
            StorageError: With the values.
        """
        if self.home.owner:
            with self._lock:
                expected = sum(self._pending_bytes)
            require_disk_space(self.home, self.home.owner, bytes_ + expected)

    def require_uploaded(self, path: Path) -> Path:
        """Return the path of an upload as a browser named it.

        Raises:
            StorageError: If it is any other file of this machine.
        """
        if not path.resolve().is_relative_to(self.home.transfers.resolve()):
            raise StorageError("That file was not uploaded here.", "Upload it again.")
        return path

    def keep_upload(self, upload: Path) -> Path:
        """Move an uploaded dataset to its own folder, under a safe version of its name; the same file is stored once.

        Raises:
            StorageError: If it cannot be stored.
        """
        if self.home.is_guest:
            raise StorageError("Guests can only train on the samples.", "Ask an admin of the lab to become a member.")
        self.require_uploaded(upload)
        folder = self.home.uploads
        name = re.sub(r"[^\w.-]+", "-", upload.name).lstrip("-.")[-120:] or "upload"
        with explain_os_errors(f"The upload {name} cannot be stored", "Free some space, then upload it again."):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            target = folder / name
            number = 1
            while target.exists():
                if filecmp.cmp(upload, target, shallow=False):
                    upload.unlink()
                    return target
                number += 1
                target = folder / f"{number}-{name}"
            shutil.move(upload, target)
        return target

    def make_archive(self, folder: Path, title: str) -> Path:
        """Pack the files of a result into one .zip; safetensors do not shrink, and are stored as they are.

        Raises:
            StorageError: If it would be too large for one download, or there is no room for it.
        """
        files = list_files(folder)
        name = re.sub(r"\W+", "-", title).strip("-")[:60] or "result"
        target = self.home.transfers / hashlib.sha256(str(folder).encode()).hexdigest()
        path, temporary = target / f"{name}.zip", target / f"{name}.unfinished"
        bytes_ = sum((folder / file).stat().st_size for file in files)
        with self.room_for(bytes_, instead="Copy its folder from the path shown above."):
            try:
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                    for file in files:
                        archive.write(folder / file, f"{name}/{file}")
                temporary.replace(path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise StorageError(f"The .zip cannot be written ({error.strerror}).", "Free some space.") from error
        return path

    def _require_room(self, bytes_: int) -> None:
        used_bytes = sum(map(folder_size_bytes, (self.home.transfers, self.home.uploads))) + sum(self._pending_bytes)
        if used_bytes + bytes_ > self.largest_total_bytes:
            raise StorageError(
                f"Uploads and downloads use {size(used_bytes)} of at most {size(self.largest_total_bytes)}; there is no space "
                f"for {size(bytes_)} more.",
                "Delete datasets that you no longer need from the folder uploads in the Loratory home.",
            )
        free = shutil.disk_usage(self.home.root).free
        if bytes_ > free:
            raise StorageError(f"The disk has {size(free)} free; {size(bytes_)} are needed.", "Free some space.")


def list_files(folder: Path) -> list[str]:
    """Return the regular files below `folder`, sorted; links are left out, since they may lead elsewhere."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and not path.parent.is_symlink()
    ]
