"""A bucket as the one process has it that saves there: whose it is, what is in it, and in which order it changes.

mirror/space.json   whose bucket this is
home/<path>         a file of the home
"""

import secrets
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pydantic import BaseModel

from loratory.engine.errors import EngineError, PushError
from loratory.engine.files import FileStamp, read_model, stamp_of
from loratory.engine.hub import RunBucket
from loratory.engine.paths import LoratoryHome
from loratory.engine.space.mirror_files import CHECKPOINTS, local_path, may_mirror

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

HOME = "home"
_MIRROR, _MARKER = "mirror", "space.json"
_CHECK_SECONDS = 5.0  # between two checks that the bucket is still ours
_LAG_SECONDS = (0.0, 1.0, 2.0)  # before each read of what was put just now, as a list may lag behind
_LARGEST_MARKER_BYTES = 10_000


class _Marker(BaseModel, frozen=True):
    """`mirror/space.json`: the Space whose bucket this is, and the process of it that writes there."""

    space: str
    instance: str


class MirrorBucket:
    """Writes to the bucket of a Space.

    Args:
        space: As owner/name.

    Attributes:
        paths: Paths that are or may be below `home/`; what does not belong to a mirror is left alone.
        sent_stamps: Paths that this process knows to be there, with the stamp of the file on this disk.
        is_taken: By another process.
    """

    def __init__(self, bucket: RunBucket, home: LoratoryHome, space: str) -> None:
        self._bucket = bucket
        self._home = home
        self._marker = _Marker(space=space, instance=secrets.token_hex(8))
        self._marker_hash = ""  # once this process has the bucket
        self._last_check = float("-inf")  # when that was checked last
        self.paths: set[str] = set()
        self.sent_stamps: dict[str, FileStamp] = {}
        self.is_taken = False

    def take(self) -> "dict[str, BucketFile]":
        """Make the bucket ours, and return the files below `home/`.

        Raises:
            PushError: If it is another Space's.
            EngineError: If it cannot be read or written.
        """
        self._bucket.make()
        marker = self._read_marker(self._bucket.list(_MIRROR).get(_MARKER))
        if marker is not None and marker.space != self._marker.space:
            raise PushError(
                f"The bucket {self._bucket.name} has the runs of the Space {marker.space}, not of {self._marker.space}; "
                "nothing is restored from it or saved to it.",
                "Set the variable LORATORY_BUCKET of this Space to another bucket, or hand that one over with "
                f"`hf buckets rm {self._bucket.name}/{_MIRROR}/{_MARKER}`.",
            )
        self._bucket.put({f"{_MIRROR}/{_MARKER}": self._marker.model_dump_json().encode()})
        self._require_ours()
        files = self._bucket.list(HOME)
        self.paths = set(filter(may_mirror, files))
        return files

    def send(self, files: Mapping[str, FileStamp]) -> bool:
        """Send what changed, checkpoints last, as they take long; returns whether all of it is there.

        Raises:
            EngineError: If the bucket cannot be written.
        """
        changes = {path: stamp for path, stamp in files.items() if self.sent_stamps.get(path) != stamp}
        short = {path: stamp for path, stamp in changes.items() if CHECKPOINTS not in path}
        return self._put(short) and self._put({path: stamp for path, stamp in changes.items() if path not in short})

    def _put(self, files: Mapping[str, FileStamp]) -> bool:
        if not files:
            return True
        local_paths = {path: local_path(self._home, path) for path in files}
        self._require_ours()
        self.paths |= files.keys()
        try:
            self._bucket.put({f"{HOME}/{path}": local for path, local in local_paths.items()})
        except EngineError:
            if all(local.exists() for local in local_paths.values()):
                raise
            return False  # as a checkpoint that was replaced by the next one: the next scan finds that
        # One that changed on the way is sent again.
        self.sent_stamps |= {path: stamp for path, stamp in files.items() if stamp_of(local_paths[path]) == stamp}
        return True

    def remove(self, paths: Collection[str]) -> None:
        """Remove files, of which a request that failed may have removed some before.

        Raises:
            EngineError: If they cannot be removed.
        """
        if not paths:
            return
        self._require_ours()
        try:
            self._bucket.remove([f"{HOME}/{path}" for path in sorted(paths)])
        except EngineError:
            if not self._bucket.list(HOME).keys().isdisjoint(paths):
                raise
        self.paths.difference_update(paths)
        for path in paths:
            self.sent_stamps.pop(path, None)

    def _read_marker(self, file: "BucketFile | None") -> _Marker | None:
        if file is None or file.size > _LARGEST_MARKER_BYTES:
            return None
        path = self._home.server / ".mirror-marker"
        path.unlink(missing_ok=True)
        self._bucket.get([(file, path)])
        return read_model(path, _Marker)

    def _require_ours(self) -> None:
        """Refuse to write where another process has taken the bucket: the same Space started again, or another one."""
        if time.monotonic() - self._last_check < _CHECK_SECONDS:
            return
        for seconds in _LAG_SECONDS:
            time.sleep(seconds)
            file = self._bucket.list(_MIRROR).get(_MARKER)
            if file is not None and (file.xet_hash == self._marker_hash or self._read_marker(file) == self._marker):
                self._marker_hash, self._last_check = file.xet_hash, time.monotonic()
                return
        self.is_taken = True
        raise PushError(
            f"Another process has begun to save to the bucket {self._bucket.name}; this one saves nothing any more.",
            "Reload the page, as the Space was started again. If that does not help, restart the Space.",
        )
