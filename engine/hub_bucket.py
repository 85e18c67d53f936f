"""A private bucket of a person or a Space at Hugging Face, and the Hub's answers in words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import EngineError, PushError
from engine.hub_errors import JOBS, MIRROR, Fault, HubFault, Subject, find_fault

if TYPE_CHECKING:
    from huggingface_hub import BucketFile, HfApi

_MOST_FILES = 200_000  # of one list: a full bucket must not fill our memory


@dataclass(frozen=True)
class BucketWords:
    """What people read where Hugging Face does not do what a bucket is used for.

    Attributes:
        subject: What it is used for.
        refusals: By HTTP status; any other has the words that it has everywhere.
        away: Where there is no answer at all.
    """

    subject: Subject
    refusals: Mapping[int, HubFault]
    away: HubFault = HubFault.UNREACHABLE

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turn what goes wrong while Hugging Face is asked into errors that people understand.

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
            raise self._explain(name, error) from None  # its text may quote what was sent, the token among it

    def _explain(self, name: str, error: Exception) -> EngineError:
        status = _status(error)
        if status is not None and status in self.refusals:
            return self.subject.explain(Fault(self.refusals[status], f"HTTP {status}"), name)
        found = find_fault(error)
        if found is None or found.fault is HubFault.UNREACHABLE:
            found = Fault(self.away, found.detail if found else type(error).__name__)
        return self.subject.explain(found, name)


JOBS_WORDS = BucketWords(JOBS, {401: HubFault.JOBS_TOKEN, 402: HubFault.NO_CREDIT, 403: HubFault.NO_JOBS_RIGHT})
MIRROR_WORDS = BucketWords(
    MIRROR,
    {
        **dict.fromkeys((400, 405, 410, 413, 422), HubFault.MIRROR_REFUSED),
        401: HubFault.MIRROR_TOKEN,
        402: HubFault.MIRROR_FULL,
        403: HubFault.MIRROR_RIGHT,
        404: HubFault.MIRROR_GONE,
        409: HubFault.MIRROR_AWAY,
        507: HubFault.MIRROR_FULL,
    },
    HubFault.MIRROR_AWAY,
)
jobs_errors_explained = JOBS_WORDS.explained


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
        words: For its errors.
    """

    def __init__(self, api: HfApi, name: str, words: BucketWords = JOBS_WORDS) -> None:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._api = api
        self._explained = words.explained
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
            found = list(itertools.islice(tree, _MOST_FILES + 1))
        if len(found) > _MOST_FILES:
            raise PushError(
                f"The bucket {self.name} holds more than {_MOST_FILES:,} files below {folder}.",
                "Remove what does not belong there, or use another bucket.",
            )
        files = (entry for entry in found if entry.type == "file" and entry.path.startswith(f"{folder}/"))
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
