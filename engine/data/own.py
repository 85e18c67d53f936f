"""Gated and private datasets that a person of a lab downloads with their own token into their uploads.

There they are normal folders of data files: only their owner can open them, and runs need no token.
"""

import contextlib
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engine.data.files.access import shown_name
from engine.errors import DatasetError, StorageError
from engine.models.own import TokenDownload
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
class OwnDatasetJob(TokenDownload):
    """Download a dataset."""

    hub_id: str  # as `owner/name`
    revision: str | None  # branch, tag or commit; None for the default branch

    def run(self, on_progress: OnModelProgress = ignore_progress) -> OwnDataset:
        """Download the data files.

        Raises:
            DatasetError: If it is not on the Hub, the token does not open it, or it has no data files.
            AccountError: If there are no accounts, or that is not a token.
            StorageError: If it exceeds the person's disk space.
            CancelledRequestError: If it was stopped.
            WorkerError: If the process ended.
        """
        hub_id = require_dataset_id(self.hub_id, self.revision)
        folder = self.home.uploads / _FOLDER / hub_id.replace("/", _SEPARATOR)
        params = {"hub_id": hub_id, "revision": self.revision, "folder": str(folder)}
        self._download(WORKER_MODULE, params, on_progress)
        return OwnDataset(hub_id, folder_size_bytes(folder), folder)


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
    datasets = []
    with contextlib.suppress(OSError):
        for path in sorted((home.uploads / _FOLDER).iterdir() if home.owner else ()):
            if path.is_dir() and not path.is_symlink():
                datasets.append(OwnDataset(path.name.replace(_SEPARATOR, "/", 1), folder_size_bytes(path), path))
    return datasets


def remove_own_dataset(home: LoratoryHome, hub_id: str, sources: Collection[str] = ()) -> None:
    """Remove a downloaded dataset of a home's person.

    Args:
        sources: Of the datasets that their runs need.

    Raises:
        DatasetError: If it is not there, or a run needs it.
        StorageError: If its files cannot be removed.
    """
    dataset = next((one for one in list_own_datasets(home) if one.hub_id == hub_id), None)
    if dataset is None:
        raise DatasetError("That dataset is not among your own.", "Choose one that is listed.")
    if any(Path(source).is_relative_to(dataset.folder) for source in sources):
        raise DatasetError(f"{hub_id} is needed by a run that waits or is at work.", "Wait for its end, or stop it.")
    try:
        shutil.rmtree(dataset.folder)
    except OSError as error:
        raise StorageError(f"{hub_id} cannot be removed ({error.strerror}).", "Ask an admin of the lab.") from error
