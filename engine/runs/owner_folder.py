"""The folder of one owner's runs, looked at only when something may have appeared in it, or gone."""

import time

from engine.runs.store import RunStore

_UNSETTLED_SECONDS = 2.0  # a folder changed so recently may change again without another modification time
_LOOK_AGAIN_SECONDS = 30.0  # however unchanged a folder looks: network filesystems cache its times


class OwnerFolder:
    """When an owner's folder was last looked at, so that an unchanged one costs nothing.

    Args:
        store: The owner's runs.
    """

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.known: set[str] = set()
        self._modified = 0
        self._looked = 0.0

    def has_changed(self) -> bool:
        """Whether to look; whoever asks does so."""
        try:
            modified = self.store.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return bool(self.known)  # gone with all that was in it, or away: what comes back is taken in anew
        now = time.time()
        settled = now - modified / 1e9 > _UNSETTLED_SECONDS
        if modified == self._modified and settled and now - self._looked < _LOOK_AGAIN_SECONDS:
            return False
        self._modified, self._looked = modified, now
        return True
