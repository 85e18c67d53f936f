"""The private bucket of a person through which runs travel, and the Hub's answers in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, PushError
from engine.hub_errors import JOBS, Fault, HubFault, find_fault

if TYPE_CHECKING:
    from huggingface_hub import BucketFile, HfApi

_REFUSALS = {401: HubFault.WRONG_TOKEN, 402: HubFault.NO_CREDIT, 403: HubFault.NO_JOBS_RIGHT}


@contextmanager
def jobs_errors_explained(name: str) -> Iterator[None]:
    """Turn what goes wrong while Hugging Face is asked about jobs and buckets into errors that people understand.

    Raises:
        HubUnreachableError: If it gave no answer, or "not now": asking again may help.
        PushError: If it refused.
        StorageError: If what it sent could not be written.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise _explained(name, error) from None  # its text may quote what was sent, the token among it


def _explained(name: str, error: Exception) -> EngineError:
    status = _status(error)
    if status in _REFUSALS:
        return JOBS.explain(Fault(_REFUSALS[status], f"HTTP {status}"), name)
    return JOBS.explain(find_fault(error) or Fault(HubFault.UNREACHABLE, type(error).__name__), name)


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def is_missing(error: BaseException) -> bool:
    """Whether the Hub answered that it does not know what was asked for."""
    return _status(error) == 404


class RunBucket:
    """The bucket, as one side uses it.

    Args:
        api: Asks the Hub in the person's name.
        name: As owner/name.
    """

    def __init__(self, api: HfApi, name: str) -> None:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._api = api
        self.name = name

    def make(self) -> None:
        """Create the bucket where it is missing.

        Raises:
            PushError: If it is refused, or is there and public.
            HubUnreachableError: If the Hub does not answer.
        """
        with jobs_errors_explained(self.name):
            self._api.create_bucket(self.name, private=True, exist_ok=True)
            is_private = self._api.bucket_info(self.name).private
        if not is_private:
            raise PushError(
                f"The bucket {self.name} is public, and runs with their data would be readable by everyone.",
                f"Make it private at {self._api.endpoint}/buckets/{self.name}, or rename it.",
            )

    def list(self, folder: str) -> dict[str, BucketFile]:
        """Return the files below a folder, by their names within it; raises as `put` does."""
        with jobs_errors_explained(self.name):
            found = list(self._api.list_bucket_tree(self.name, prefix=f"{folder}/", recursive=True))
        files = (entry for entry in found if entry.type == "file" and entry.path.startswith(f"{folder}/"))
        return {entry.path.removeprefix(f"{folder}/"): entry for entry in files}

    def put(self, files: Mapping[str, bytes | Path]) -> None:
        """Store contents or files of this machine under names, all in one request.

        Raises:
            HubUnreachableError: If the Hub does not answer, or not now.
            PushError: If it refuses.
        """
        if files:
            with jobs_errors_explained(self.name):
                self._api.batch_bucket_files(self.name, add=[(source, name) for name, source in files.items()])

    def get(self, files: Sequence[tuple[BucketFile, Path]]) -> None:
        """Write files as `list` gave them to paths; raises as `put` does, and StorageError where the disk is full."""
        for _, path in files:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with jobs_errors_explained(self.name):
            self._api.download_bucket_files(self.name, list(files))

    def remove(self, names: Sequence[str]) -> None:
        """Delete files; raises as `put` does."""
        if names:
            with jobs_errors_explained(self.name):
                self._api.batch_bucket_files(self.name, delete=list(names))
