"""A bucket as the one process has it that saves there: what is in it, and in which order it changes."""

import secrets
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from engine.errors import EngineError, PushError
from engine.files import read_model, stamp_of
from engine.hub import RunBucket
from engine.paths import LoratoryHome
from engine.space.mirror_index import (
    CHECKPOINTS,
    HOME,
    MARKER,
    MIRROR,
    RUNS,
    Contents,
    Index,
    Marker,
    StoredFile,
    unit_of,
)
from engine.space.mirror_scan import place_of

if TYPE_CHECKING:
    from huggingface_hub import BucketFile

_CHECK_SECONDS = 5.0  # between two looks at whether the bucket is still ours
_LAG_SECONDS = (0.0, 1.0, 2.0)  # before each look at what was put just now, as a list may lag behind
_LARGEST_MARKER_BYTES = 10_000
_NOTHING = Index(format=2, files={})


class MirrorBucket:
    """Writes to the bucket of a Space.

    Args:
        space: As owner/name.

    Attributes:
        indexes: In the bucket, by name.
        is_taken: By another process.
    """

    def __init__(self, bucket: RunBucket, home: LoratoryHome, space: str) -> None:
        self._bucket = bucket
        self._home = home
        self._marker = Marker(space=space, instance=secrets.token_hex(8))
        self._marker_hash = ""  # once this process has the bucket
        self._last_check = float("-inf")  # when that was looked at last
        self._stored: set[str] = set()  # what is or may be below `home/`
        self.indexes: dict[str, Index] = {}
        self.is_taken = False

    def take(self) -> None:
        """Make the bucket ours.

        Raises:
            PushError: If it is another Space's.
            EngineError: If it cannot be read or written.
        """
        self._bucket.make()
        marker = self._read_marker(self._bucket.list(MIRROR).get(MARKER))
        if marker is not None and marker.space != self._marker.space:
            raise PushError(
                f"The bucket {self._bucket.name} has the runs of the Space {marker.space}, not of {self._marker.space}; "
                "nothing is restored from it or saved to it.",
                "Set the variable LORATORY_BUCKET of this Space to another bucket, or hand that one over with "
                f"`hf buckets rm {self._bucket.name}/{MIRROR}/{MARKER}`.",
            )
        self._bucket.put({f"{MIRROR}/{MARKER}": self._marker.model_dump_json().encode()})
        self._require_ours()

    def know(self, contents: Contents) -> None:
        """Begin with what is there; what an index that cannot be read may name stays."""
        self.indexes = dict(contents.indexes)
        self._stored = set(contents.stored)
        if contents.unreadable:
            self._stored &= self._named()

    def write(self, changes: Mapping[str, Index], deletions: Collection[str] = ()) -> None:
        """Send what was found, and remove runs that are gone; asks nothing where there is nothing to do.

        Raises:
            EngineError: If the bucket cannot be written; what is not in an index by then is to be sent again.
        """
        changes = {name: index for name, index in changes.items() if index != self.indexes.get(name)}
        deletions = [name for name in deletions if name in self.indexes]
        if not (changes or deletions or self._stored - self._named()):
            return
        for name in [name for name, index in changes.items() if self._send(name, self._without_new(name, index))]:
            self._send(name, changes[name])
        self._remove(deletions)
        for name in deletions:
            del self.indexes[name]
        garbage = self._stored - self._named()
        self._remove([f"{HOME}/{path}" for path in garbage])
        self._stored -= garbage

    def _without_new(self, name: str, index: Index) -> Index:
        """Return an index with the checkpoints that are there: new ones take long, and may be replaced meanwhile."""
        files = {path: file for path, file in index.files.items() if CHECKPOINTS not in path}
        before = self.indexes.get(name, _NOTHING)
        files |= {path: file for path, file in before.files.items() if CHECKPOINTS in path}
        return index.model_copy(update={"files": files})

    def _send(self, name: str, index: Index) -> bool:
        """Put an index after its files, unless one of them changed on the way; returns whether it is there."""
        before = self.indexes.get(name, _NOTHING)
        if index == before:
            return True
        files = {path: file for path, file in index.stored.items() if file != before.files.get(path)}
        places = {path: place_of(self._home, path) for path in files}
        self._require_ours()
        self._stored |= files.keys()
        try:
            self._bucket.put({f"{HOME}/{path}": place for path, place in places.items()})
        except EngineError:
            if all(place.exists() for place in places.values()):
                raise
        if not all(self._is_still(path, file) for path, file in files.items()):
            return False  # as a checkpoint that was replaced by the next one: the next look finds that
        self._require_ours()
        self._bucket.put({name: index.model_dump_json(exclude_none=True).encode()})
        self.indexes[name] = index
        return True

    def _is_still(self, path: str, file: StoredFile) -> bool:
        """Whether what was sent fits its index; a file that is useful alone may be newer, as a log that grows is."""
        stamp = stamp_of(place_of(self._home, path))
        return stamp is not None and (unit_of(path) == path or stamp[1:] == (file.size, file.changed))

    def _named(self) -> set[str]:
        return {path for index in self.indexes.values() for path in index.stored}

    def _remove(self, names: Collection[str]) -> None:
        """Remove files, of which a request that failed may have removed some before."""
        if not names:
            return
        self._require_ours()
        try:
            self._bucket.remove(sorted(names))
        except EngineError:
            there = {f"{folder}/{name}" for folder in (RUNS, HOME) for name in self._bucket.list(folder)}
            if not there.isdisjoint(names):
                raise

    def _read_marker(self, file: "BucketFile | None") -> Marker | None:
        if file is None or file.size > _LARGEST_MARKER_BYTES:
            return None
        place = self._home.server / ".mirror-marker"
        place.unlink(missing_ok=True)
        self._bucket.get([(file, place)])
        return read_model(place, Marker)

    def _require_ours(self) -> None:
        """Refuse to write where another process has taken the bucket: the same Space started again, or another one."""
        if time.monotonic() - self._last_check < _CHECK_SECONDS:
            return
        for seconds in _LAG_SECONDS:
            time.sleep(seconds)
            file = self._bucket.list(MIRROR).get(MARKER)
            if file is not None and (file.xet_hash == self._marker_hash or self._read_marker(file) == self._marker):
                self._marker_hash, self._last_check = file.xet_hash, time.monotonic()
                return
        self.is_taken = True
        raise PushError(
            f"Another process has begun to save to the bucket {self._bucket.name}; this one saves nothing any more.",
            "Reload the page, as the Space was started again. If that does not help, restart the Space.",
        )
