"""A bucket as the one process has it that saves there: what is in it, and in which order it changes."""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from engine.errors import EngineError, PushError
from engine.files import read_model
from engine.paths import LoratoryHome
from engine.space.mirror_files import MirrorFiles, Source
from engine.space.mirror_index import (
    CHECKPOINTS,
    DATA,
    HOME_INDEX,
    LARGEST_INDEX_BYTES,
    MARKER,
    MARKER_NAME,
    MIRROR,
    RUNS,
    Bucket,
    Contents,
    Index,
    Marker,
    data_name,
    named_by,
)

_LARGEST_PUT_BYTES = 64_000_000  # of one request; a single file may be larger
_LARGEST_PUT_FILES = 500
_CHECK_SECONDS = 5.0  # between two looks at whether the bucket is still ours
_LAG_SECONDS = (0.0, 1.0, 2.0)  # before each look at what was put just now, as a list may lag behind
_LARGEST_MARKER_BYTES = 10_000


class MirrorBucket:
    """Writes to the bucket of a Space.

    Args:
        space: As owner/name.
        on_new: Gets the names of indexes that are about to be put.

    Attributes:
        indexes: In the bucket, by name.
    """

    def __init__(self, bucket: Bucket, home: LoratoryHome, space: str, on_new: Callable[[Iterable[str]], None]) -> None:
        self._bucket = bucket
        self._home = home
        self._space = space
        self._on_new = on_new
        self._instance = secrets.token_hex(8)
        self._marker = ""  # hash of ours, once this process has the bucket
        self._last_check = 0.0  # when that was looked at last
        self._there: set[str] = set()  # hashes of contents
        self._damaged: set[str] = set()  # those that are there in name alone
        self._refused: dict[str, Index] = {}  # those that are too large
        self._foreign: set[str] = set()  # contents that indexes may name which cannot be read
        self._is_unsure = False  # a request failed, or contents are there that no index names
        self.indexes: dict[str, Index] = {}
        self.is_taken = False  # by another process

    def take(self) -> None:
        """Make the bucket ours.

        Raises:
            PushError: If it is another Space's.
            EngineError: If it cannot be read or written.
        """
        self._bucket.make()
        marker = self._read_marker()
        if marker is not None and marker.space != self._space:
            raise PushError(
                f"The bucket {self._bucket.name} has the runs of the Space {marker.space}, not of {self._space}; nothing is "
                "restored from it or saved to it.",
                "Set the variable LORATORY_BUCKET of this Space to another bucket, or hand that one over with "
                f"`hf buckets rm {self._bucket.name}/{MARKER_NAME}`.",
            )
        ours = Marker(space=self._space, instance=self._instance)
        self._bucket.put({MARKER_NAME: ours.model_dump_json().encode()})
        for seconds in _LAG_SECONDS:
            time.sleep(seconds)
            file = self._bucket.list(MIRROR).get(MARKER)
            if file is not None and self._read_marker() == ours:
                self._marker = file.xet_hash
                return
        raise self._name_conflict()

    def know(self, contents: Contents) -> None:
        """Begin with what is there."""
        self._there = set(contents.data)
        self.indexes = dict(contents.indexes)
        self._foreign = self._there - named_by(self.indexes.values()) if contents.unreadable else set()
        self._is_unsure = bool(self._garbage())

    def distrust(self, damaged: set[str]) -> None:
        """Send these contents again, even if the bucket lists them."""
        self._damaged |= damaged
        self._there -= damaged

    def differs(self, name: str, index: Index) -> bool:
        """Whether an index is to be sent, or contents that it names."""
        is_known = index in (self.indexes.get(name, Index()), self._refused.get(name))
        return not is_known or bool(self._damaged & named_by([index]))

    def write(self, changes: Mapping[str, MirrorFiles], deletions: Iterable[str]) -> set[str]:
        """Send what was found, and remove runs that are gone; asks nothing where there is nothing to do.

        Returns:
            Indexes that were not put: their files changed on the way.

        Raises:
            EngineError: If the bucket cannot be written; what arrived is whole, and the rest is to be sent again.
        """
        deletions = [name for name in deletions if name in self.indexes]
        if not (changes or deletions or self._is_unsure):
            return set()
        self._require_ours()
        if self._is_unsure:
            self._list_again()
        self._is_unsure = True
        self._send({name: self._light(name, one) for name, one in changes.items()})
        failures = self._send(changes)
        self._remove(deletions)
        self._collect()
        self._is_unsure = False
        return failures

    def _light(self, name: str, changes: MirrorFiles) -> MirrorFiles:
        """Return what was found with the checkpoints that are there already: new ones take long, and may be replaced."""
        checkpoints = {path for path in changes.index.files if CHECKPOINTS in path}
        if all(part.sha256 in self._there for path in checkpoints for part in changes.index.files[path].parts):
            return changes
        files = {path: file for path, file in changes.index.files.items() if path not in checkpoints}
        before = self.indexes.get(name, Index()).files
        files |= {path: file for path, file in before.items() if CHECKPOINTS in path}
        return MirrorFiles(Index(files=dict(sorted(files.items()))), changes.sources)

    def _send(self, changes: Mapping[str, MirrorFiles]) -> set[str]:
        """Put contents, then the indexes that name them."""
        sources = {
            part.sha256: (part.size, one.sources[part.sha256])
            for one in changes.values()
            for part in one.index.parts
            if part.sha256 not in self._there and part.sha256 in one.sources
        }
        batch, size = dict[str, Source](), 0
        for sha256, (more, source) in sources.items():
            if batch and (size + more > _LARGEST_PUT_BYTES or len(batch) >= _LARGEST_PUT_FILES):
                self._put_contents(batch)
                batch, size = {}, 0
            batch[sha256], size = source, size + more
        self._put_contents(batch)
        ready: dict[str, bytes] = {}
        failures = set()
        for name, one in changes.items():
            if not self.differs(name, one.index):
                continue
            content = one.index.model_dump_json(exclude_defaults=True).encode()
            if len(content) > LARGEST_INDEX_BYTES:
                self._refused[name] = one.index
            elif all(part.sha256 in self._there for part in one.index.parts):
                ready[name] = content
            else:
                failures.add(name)
        if ready:
            self._on_new(ready)
            self._require_ours()
            self._bucket.put(ready)
            self.indexes |= {name: changes[name].index for name in ready}
        return failures

    def _put_contents(self, batch: Mapping[str, Source]) -> None:
        contents: dict[str, bytes | Path] = {}
        for sha256, source in batch.items():
            with contextlib.suppress(OSError):  # gone meanwhile
                contents[sha256] = source.read()
        if not contents:
            return
        try:
            self._bucket.put({data_name(sha256): content for sha256, content in contents.items()})
        except EngineError:
            present = {one: source for one, source in batch.items() if source.path.exists()}
            if len(present) == len(batch):
                raise
            self._put_contents(present)  # a checkpoint was replaced by the next one, which the next look finds
            return
        uploaded_hashes = {sha256 for sha256, content in contents.items() if batch[sha256].is_still(sha256, content)}
        self._there |= uploaded_hashes
        self._damaged -= uploaded_hashes

    def _remove(self, deletions: Iterable[str]) -> None:
        """Remove the indexes of deleted runs; contents that no index names are then collected."""
        names = [name for name in deletions if name in self.indexes]
        if names:
            self._require_ours()
            self._bucket.remove(names)
            for name in names:
                del self.indexes[name]

    def _garbage(self) -> set[str]:
        return self._there - named_by(self.indexes.values()) - self._foreign

    def _collect(self) -> None:
        """Remove contents that no index names, such as of older checkpoints."""
        garbage = self._garbage()
        if garbage:
            self._require_ours()
            self._there -= garbage
            self._bucket.remove([data_name(one) for one in sorted(garbage)])

    def _read_marker(self) -> Marker | None:
        file = self._bucket.list(MIRROR).get(MARKER)
        if file is None or file.size > _LARGEST_MARKER_BYTES:
            return None
        place = self._home.server / ".mirror-marker"
        try:
            place.unlink(missing_ok=True)
            self._bucket.get([(file, place)])
            return read_model(place, Marker)
        finally:
            place.unlink(missing_ok=True)

    def _require_ours(self) -> None:
        """Refuse to write where another process has taken the bucket: the same Space started again, or another one."""
        if time.monotonic() - self._last_check < _CHECK_SECONDS:
            return
        for seconds in _LAG_SECONDS:
            time.sleep(seconds)
            file = self._bucket.list(MIRROR).get(MARKER)
            if file is not None and file.xet_hash == self._marker:
                self._last_check = time.monotonic()
                return
        raise self._name_conflict()

    def _name_conflict(self) -> PushError:
        self.is_taken = True
        return PushError(
            f"Another process has begun to save to the bucket {self._bucket.name}; this one saves nothing any more.",
            "Reload the page, as the Space was started again. If that does not help, restart the Space.",
        )

    def _list_again(self) -> None:
        """Find out what is there after a request that failed: it may have been done all the same."""
        runs = self._bucket.list(RUNS)
        self._there = set(self._bucket.list(DATA)) - self._damaged
        for name in [name for name in self.indexes if name != HOME_INDEX]:
            if name.removeprefix(f"{RUNS}/") not in runs:
                del self.indexes[name]
