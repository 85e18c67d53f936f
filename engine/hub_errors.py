"""The one table of what goes wrong when the Hugging Face Hub is asked for a model or a dataset."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from engine.errors import (
    DatasetAccessError,
    DatasetError,
    EngineError,
    HubUnreachableError,
    ModelAccessError,
    ModelError,
    StorageError,
)


class HubFault(Enum):
    """What went wrong: a sentence with the fact, one with the fix."""

    GATED = (
        "{name} is gated: its owner asks you to accept terms first.",
        "Accept them at https://huggingface.co/{path} and log in with `hf auth login` or HF_TOKEN.",
    )
    MISSING = (
        "There is no {kind} {name} on the Hub, or it is private or gated.",
        "Check the id; for a private or gated {kind} log in with `hf auth login` or HF_TOKEN.",
    )
    NO_REVISION = (
        "{name} has no revision {revision}.",
        "Leave the revision empty, or name a branch, tag or commit that it has.",
    )
    FORBIDDEN = (
        "The Hub refuses access to {name} ({detail}).",
        "Check your token and its rights with `hf auth whoami`, then log in again.",
    )
    RATE_LIMITED = ("Rate limited by the Hub ({detail}).", "Wait some minutes, then try again.")
    DOWN = ("The Hub is out of order ({detail}).", "Try again later.")
    REFUSED = ("The Hub does not give {name} ({detail}).", "Check the id, or choose another {kind}.")
    OFFLINE = (
        "{name} needs the Hub, which may not be asked (HF_HUB_OFFLINE is set).",
        "Unset HF_HUB_OFFLINE, or choose {local}.",
    )
    UNREACHABLE = (
        "{name} {absent} ({detail}).",
        "Check the name and the network connection, or choose {local}.",
    )
    NOT_STORED = (
        "{name} cannot be stored in the Hub's cache ({detail}).",
        "Free some space, or set HF_HOME to a folder that has it.",
    )


class Fault(NamedTuple):
    """One thing that went wrong."""

    fault: HubFault
    detail: str = ""  # such as "HTTP 503", or the name of an error


@dataclass(frozen=True)
class Subject:
    """What the Hub was asked for.

    Attributes:
        kind: In words.
        folder: In the addresses of the Hub's pages.
        absent: What else is true where the Hub cannot be reached.
        local: What can be had without the Hub.
        error: Raised in general.
        access: Raised where a login may help.
        unreachable: Raised where asking later may help.
        storage: Raised where the disk is full or read-only.
    """

    kind: str
    folder: str
    absent: str
    local: str
    error: type[EngineError]
    access: type[EngineError]
    unreachable: type[EngineError]
    storage: type[EngineError]

    def explain(self, found: Fault, name: str, revision: str | None = None) -> EngineError:
        """Return the error that people see."""
        kind = {
            HubFault.GATED: self.access,
            HubFault.MISSING: self.access,
            HubFault.FORBIDDEN: self.access,
            HubFault.RATE_LIMITED: self.unreachable,
            HubFault.DOWN: self.unreachable,
            HubFault.OFFLINE: self.unreachable,
            HubFault.UNREACHABLE: self.unreachable,
            HubFault.NOT_STORED: self.storage,
        }.get(found.fault, self.error)
        words = {"kind": self.kind, "absent": self.absent, "local": self.local, "path": f"{self.folder}{name}"}
        what, fix = (
            text.format(name=name, revision=revision, detail=found.detail, **words) for text in found.fault.value
        )
        return kind(what, fix)


MODEL = Subject(
    "model",
    folder="",
    absent="needs the Hub, which cannot be reached",
    local="a local folder or the demo model",
    error=ModelError,
    access=ModelAccessError,
    unreachable=HubUnreachableError,
    storage=StorageError,
)
DATASET = Subject(
    "dataset",
    folder="datasets/",
    absent="is not a file here, and the Hub cannot be reached",
    local="a file or one of the samples",
    error=DatasetError,
    access=DatasetAccessError,
    unreachable=DatasetError,
    storage=DatasetError,
)

# By name, for `datasets` and the Hub's library choose among HTTP libraries, and to import none of them here.
_BY_NAME = {
    "GatedRepoError": HubFault.GATED,
    "RevisionNotFoundError": HubFault.NO_REVISION,
    "DatasetNotFoundError": HubFault.MISSING,
    "RepositoryNotFoundError": HubFault.MISSING,
    "OfflineModeIsEnabled": HubFault.OFFLINE,
}
_NO_CONNECTION = frozenset(
    {
        "LocalEntryNotFoundError",
        "TransportError",
        "TimeoutException",
        "TimeoutError",
        "ConnectionError",
        "gaierror",
    }
)
_NOT_STORED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})


def find_fault(error: BaseException) -> Fault | None:
    """Return what went wrong with the Hub, by an error or what it was raised from; None for any other error."""
    chain = list(error_chain(error))
    for link in chain:
        kinds = [kind.__name__ for kind in type(link).__mro__]
        fault = next((_BY_NAME[kind] for kind in kinds if kind in _BY_NAME), None)
        if fault is not None:
            return Fault(fault)
        if not _NO_CONNECTION.isdisjoint(kinds):
            return Fault(HubFault.UNREACHABLE, type(chain[-1]).__name__)
        status = getattr(getattr(link, "response", None), "status_code", None)
        if isinstance(status, int) and status >= 400:
            return Fault(_fault_of_status(status), f"HTTP {status}")
        if isinstance(link, OSError) and link.errno in _NOT_STORED:
            return Fault(HubFault.NOT_STORED, (link.strerror or "I/O error").lower())
    return None


def _fault_of_status(status: int) -> HubFault:
    if status in (401, 403):
        return HubFault.FORBIDDEN
    if status == 429:
        return HubFault.RATE_LIMITED
    return HubFault.DOWN if status >= 500 else HubFault.REFUSED


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, down to the first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


@contextmanager
def hub_errors_explained(name: str, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong while the Hub is asked for a model into errors that people understand.

    Args:
        name: Of the model; it begins sentences.
        revision: That was asked for.

    Raises:
        HubUnreachableError: If it gave no answer, or an answer outside this table.
        ModelError: If it answered with a refusal.
        StorageError: If what it sent could not be written.
    """
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        # What is not in the table comes from a network library, and means no answer at all.
        found = find_fault(error) or Fault(HubFault.UNREACHABLE, type(error).__name__)
        raise MODEL.explain(found, name, revision) from error
