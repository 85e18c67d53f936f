"""What went wrong with a dataset on the Hub, in two sentences that are true of it."""

import re
from collections.abc import Iterator

from engine.data.access import shown_name
from engine.errors import DatasetAccessError, DatasetError, EngineError

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
