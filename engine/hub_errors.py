"""The one table of what goes wrong with the Hugging Face Hub, and a deadline for its answers."""

import errno
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engine.data.files.access import shown_name
from engine.errors import (
    DatasetAccessError,
    DatasetError,
    EngineError,
    HubUnreachableError,
    ModelAccessError,
    ModelError,
    StorageError,
)

Answer = TypeVar("Answer")


def within_seconds(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """Wait so long for an answer and no longer, whatever it hangs on: name lookup, a proxy or a slow server.

    Raises:
        TimeoutError: If there is no answer in time; the question is then left to itself.
        Exception: Whatever `ask` raises.
    """
    answer: Future[Answer] = Future()

    def put() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=put, daemon=True).start()
    return answer.result(seconds)


@contextmanager
def hub_errors_explained(asked_for: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong while the Hub is asked for something into errors that people understand.

    Args:
        asked_for: Stands at the beginning of sentences; a Hub id where a model is asked for.
        revision: That was asked for.

    Raises:
        HubUnreachableError: If it gave no answer, or one that says nothing about what was asked for.
        ModelError: If it answered with a refusal.
        StorageError: If what it sent could not be written.
    """
    try:
        yield
    except EngineError:
        raise
    except GatedRepoError as error:
        raise ModelAccessError(
            f"{asked_for} is gated: its owner asks you to accept terms first.",
            f"Accept them at https://huggingface.co/{asked_for} and log in with `hf auth login` or HF_TOKEN.",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{asked_for} has no revision {revision}.",
            "Leave the revision empty, or name a branch, tag or commit that it has.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelAccessError(
            f"There is no model {asked_for} on the Hub, or it is private.",
            "Check the id; for a private model log in with `hf auth login` or HF_TOKEN.",
        ) from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(
            f"{asked_for} needs the Hub, which may not be asked (HF_HUB_OFFLINE is set).",
            "Unset HF_HUB_OFFLINE, or choose a local folder or the demo model.",
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(asked_for, error) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise StorageError(
                f"{asked_for} cannot be stored in the Hub's cache ({error.strerror}).",
                "Free some space, or set HF_HOME to a folder that has it.",
            ) from error
        # The network libraries differ between releases of huggingface_hub; what is left here is no answer at all.
        raise HubUnreachableError(
            f"{asked_for} needs the Hub, which cannot be reached ({type(error).__name__}).",
            "Check the network connection, or choose a local folder or the demo model.",
        ) from error


def _refusal(asked_for: str, error: HfHubHTTPError) -> ModelError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return ModelAccessError(
            f"The Hub refuses access to {asked_for} (HTTP {status}).",
            "Check your token and its rights with `hf auth whoami`, then log in again.",
        )
    if status == 429:
        return HubUnreachableError(
            "The Hub answers too many requests (HTTP 429).", "Wait some minutes, then try again."
        )
    if status >= 500:
        return HubUnreachableError(f"The Hub is out of order (HTTP {status}).", "Try again later.")
    return ModelError(f"The Hub does not give {asked_for} (HTTP {status}).", "Check the id, or choose another model.")


# By name, because the Hub's library chooses among HTTP libraries.
_NO_CONNECTION = frozenset({"TransportError", "TimeoutException", "TimeoutError", "ConnectionError", "gaierror"})

_LOCAL_PATH = re.compile(r"(?<![\w:/.@-])(?:[A-Za-z]:)?[/\\](?:[^\s'\"/\\]+[/\\])+[^\s'\"]*")


def explain_hub_error(error: Exception, name: str) -> EngineError:
    """Say what an error of the `datasets` library, or of what it stands on, means for the dataset `name`."""
    chain = list(_chain(error))
    for link in chain:  # an error of ours that the library wrapped
        if isinstance(link, EngineError):
            return link
    name = shown_name(name)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    all_kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "GatedRepoError"}:
        return DatasetAccessError(
            f"There is no dataset {name} on the Hub, or it is private or gated.",
            "Check the name; for a gated one, accept its terms on the Hub and log in with `hf auth login`.",
        )
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError"}:
        return DatasetError(
            f"{name} holds no data files that can be read.",
            "Choose a dataset that is stored as Parquet, JSON, CSV, Arrow or text.",
        )
    if "LocalEntryNotFoundError" in all_kinds or all_kinds & _NO_CONNECTION:
        return DatasetError(
            f"The dataset {name} is no file here, and the Hub cannot be reached ({type(chain[-1]).__name__}).",
            "Check the path or the connection, or choose a file or one of the samples.",
        )
    if (status := next((code for link in chain if (code := _status(link))), None)) is not None:
        kind = DatasetAccessError if status in (401, 403) else DatasetError
        return kind(
            f"The Hub answered the request for {name} with HTTP {status}.",
            "Try again later; if it stays, look at the dataset's page on the Hub.",
        )
    return _explain_content(error, chain[-1], name)


def _explain_content(error: Exception, cause: BaseException, name: str) -> DatasetError:
    kinds = {kind.__name__ for kind in type(error).__mro__ + type(cause).__mro__}
    if kinds & {"DatasetBuildError", "CastError", "ArrowException"}:
        return DatasetError(
            f"The data files of {name} cannot be read as rows: {_reason(cause)}.",
            "Choose another subset or revision, or download the files and choose those that are whole.",
        )
    if "DatasetsError" in kinds:
        return DatasetError(
            f"{name} is not what its description says: {_reason(cause)}.", "Choose another revision or dataset."
        )
    if "ValueError" in kinds:  # no such subset or split; the library's message lists those that exist
        return DatasetError(f"{name} cannot be opened: {_reason(cause)}.", "Correct the subset, split or revision.")
    if "RuntimeError" in kinds:  # a repository that needs its own Python code
        return DatasetError(f"{name} cannot be opened: {_reason(cause)}.", "Choose a dataset that is stored as files.")
    if isinstance(cause, OSError):
        reason = (cause.strerror or _reason(cause)).lower()
        return DatasetError(
            f"The files of {name} could not be fetched or read ({reason}).",
            "Check the room on the disk and the permissions of the cache of Hugging Face, and try again.",
        )
    return DatasetError(
        f"{name} cannot be read: {_reason(cause)}.", "Choose another revision, or download its files and choose those."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, down to the first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _reason(error: BaseException) -> str:
    """The first line of a message, without paths of this machine."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = _LOCAL_PATH.sub("(a file)", lines[0])[:200].rstrip(".: ") if lines else ""
    return words or type(error).__name__
