"""Gated and private datasets that a person of a lab downloads with a token of their own, into their uploads.

There they are folders of data files like any other: only their owner opens them, and no run needs the token.
"""

import contextlib
import shutil
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from engine.data.files.access import shown_name
from engine.errors import DatasetError, StorageError
from engine.models.own import NO_ACCOUNTS, download_with_token
from engine.models.prepared import OnModelProgress, ignore_progress
from engine.models.source import is_hub_id, is_revision
from engine.paths import LoratoryHome
from engine.runs.store import folder_size_bytes

WORKER_MODULE = "engine.data.own_download"

_FOLDER = "hub"  # among the uploads
_SEPARATOR = "--"


class OwnDataset(NamedTuple):
    """A dataset among a person's uploads."""

    hub_id: str
    bytes: int
    folder: Path  # to be opened as a dataset


@dataclass(eq=False)
class OwnDatasetJob:
    """One download; can be stopped from another thread, and what has arrived serves the next one.

    Args:
        home: As the person has it.
        hub_id: Of the dataset, as `owner/name`.
        revision: Branch, tag or commit; None for the default branch.
        token: Of the person, for this one download.
    """

    home: LoratoryHome
    hub_id: str
    revision: str | None
    token: SecretStr = field(repr=False)
    _stopped: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, on_progress: OnModelProgress = ignore_progress) -> OwnDataset:
        """Download the data files.

        Raises:
            DatasetError: If it is not on the Hub, the token does not open it, or it has no data files.
            AccountError: If that is not a token.
            StorageError: If it exceeds the person's disk space.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        if not self.home.owner:
            raise DatasetError(*NO_ACCOUNTS)
        hub_id = require_dataset_id(self.hub_id, self.revision)
        token, self.token = self.token, SecretStr("")
        folder = _folder_of(self.home, hub_id)
        params = {"hub_id": hub_id, "revision": self.revision, "folder": str(folder)}
        download_with_token(self.home, WORKER_MODULE, params, token, self._stopped, on_progress)
        return OwnDataset(hub_id, folder_size_bytes(folder), folder)

    def stop(self) -> None:
        """End it within seconds."""
        self._stopped.set()


def require_dataset_id(text: str, revision: str | None) -> str:
    """Return the id of a dataset on the Hub.

    Raises:
        DatasetError: If that is not one, or not a revision.
    """
    hub_id = text.strip()
    if not is_hub_id(hub_id):
        raise DatasetError(
            f"{shown_name(text)!r} is not an id on the Hub.", "An id reads owner/name, as in its address."
        )
    if revision is not None and not is_revision(revision):
        raise DatasetError(
            f"{shown_name(revision)!r} cannot be a revision.", "Name a branch, a tag or a commit of the dataset."
        )
    return hub_id


def list_own_datasets(home: LoratoryHome) -> list[OwnDataset]:
    """Return the datasets that a home's person downloaded, by id."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((home.uploads / _FOLDER).iterdir() if home.owner else ()):
            if path.is_dir() and not path.is_symlink():
                found.append(OwnDataset(path.name.replace(_SEPARATOR, "/", 1), folder_size_bytes(path), path))
    return found


def remove_own_dataset(home: LoratoryHome, hub_id: str, sources: Collection[str] = ()) -> None:
    """Remove a dataset that a home's person downloaded.

    Args:
        home: As the person has it.
        hub_id: As `list_own_datasets` has it.
        sources: Of the datasets that their runs need.

    Raises:
        DatasetError: If it is not there, or a run needs it.
        StorageError: If its files cannot be removed.
    """
    found = next((one for one in list_own_datasets(home) if one.hub_id == hub_id), None)
    if found is None:
        raise DatasetError("That dataset is not among your own.", "Choose one that is listed.")
    if any(Path(source).is_relative_to(found.folder) for source in sources):
        raise DatasetError(f"{hub_id} is needed by a run that waits or is at work.", "Wait for its end, or stop it.")
    try:
        shutil.rmtree(found.folder)
    except OSError as error:
        raise StorageError(f"{hub_id} cannot be removed ({error.strerror}).", "Ask an admin of the lab.") from error


def _folder_of(home: LoratoryHome, hub_id: str) -> Path:
    return home.uploads / _FOLDER / hub_id.replace("/", _SEPARATOR)
