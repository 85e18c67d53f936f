"""A private bucket of a person or a Space at Hugging Face."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import PushError
from engine.hub_errors import JOBS, status_of

if TYPE_CHECKING:
    from huggingface_hub import BucketFile, HfApi

_MOST_FILES = 200_000  # of one list: a full bucket must not fill our memory


def is_missing(error: BaseException) -> bool:
    """Whether the Hub answered that it does not know what was asked for."""
    return status_of(error) == 404


class RunBucket:
    """The bucket, as one side uses it.

    Args:
        name: As owner/name.
        explained: Turns what goes wrong with a bucket of a name into errors in words.
    """

    def __init__(
        self, api: HfApi, name: str, explained: Callable[[str], AbstractContextManager[None]] = JOBS.explained
    ) -> None:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._api = api
        self._explained = explained
        self.name = name

    def make(self) -> None:
        """Create the bucket where it is missing.

        Raises:
            PushError: If it is refused, or is there and public.
            HubUnreachableError: If the Hub does not answer.
        """
        with self._explained(self.name):
            self._api.create_bucket(self.name, private=True, exist_ok=True)
            is_private = self._api.bucket_info(self.name).private
        if not is_private:
            raise PushError(
                f"The bucket {self.name} is public, and runs with their data would be readable by everyone.",
                f"Make it private at {self._api.endpoint}/buckets/{self.name}, or rename it.",
            )

    def list(self, folder: str) -> dict[str, BucketFile]:
        """Return the files below a folder, by their names within it; raises as `put` does, and PushError for too many."""
        with self._explained(self.name):
            tree = self._api.list_bucket_tree(self.name, prefix=f"{folder}/", recursive=True)
            entries = list(itertools.islice(tree, _MOST_FILES + 1))
        if len(entries) > _MOST_FILES:
            raise PushError(
                f"The bucket {self.name} holds more than {_MOST_FILES:,} files below {folder}.",
                "Remove what does not belong there, or use another bucket.",
            )
        files = (entry for entry in entries if entry.type == "file" and entry.path.startswith(f"{folder}/"))
        return {entry.path.removeprefix(f"{folder}/"): entry for entry in files}

    def put(self, files: Mapping[str, bytes | Path]) -> None:
        """Store contents or files of this machine under names, all in one request.

        Raises:
            HubUnreachableError: If the Hub does not answer, or not now.
            PushError: If it refuses.
        """
        if files:
            with self._explained(self.name):
                self._api.batch_bucket_files(self.name, add=[(source, name) for name, source in files.items()])

    def get(self, files: Sequence[tuple[BucketFile, Path]]) -> None:
        """Write files as `list` gave them to paths; raises as `put` does, and StorageError where the disk is full."""
        for _, path in files:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._explained(self.name):
            self._api.download_bucket_files(self.name, list(files))

    def remove(self, names: Sequence[str]) -> None:
        """Delete files; raises as `put` does."""
        if names:
            with self._explained(self.name):
                self._api.batch_bucket_files(self.name, delete=list(names))
