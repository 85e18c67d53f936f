"""The one table of what goes wrong when the Hugging Face Hub is asked for something, or takes a push or a Space."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from engine.errors import (
    DatasetAccessError,
    DatasetError,
    EngineError,
    HubUnreachableError,
    ModelAccessError,
    ModelError,
    PushError,
    StorageError,
)
from engine.paths import looks_in_working_folder

_LOGIN_FIX = (
    "Make one with write access at https://huggingface.co/settings/tokens, then `hf auth login` or set HF_TOKEN."
)
_SPACE_LOGIN_FIX = (
    "Set the secret HF_TOKEN in the Space's settings to a token with write access to its owner's buckets."
)


class HubFault(Enum):
    """What went wrong: which error of its `Subject` it is, a sentence with the fact, one with the fix."""

    GATED = (
        "access",
        "{name} is gated: its owner asks you to accept terms first.",
        "Accept them at https://huggingface.co/{path} and log in with `hf auth login` or HF_TOKEN.",
    )
    MISSING = (
        "access",
        "There is no {kind} {name} on the Hub, or it is private or gated.",
        "Check the id; for a private or gated {kind} log in with `hf auth login` or HF_TOKEN.",
    )
    NO_REVISION = (
        "error",
        "{name} has no revision {revision}.",
        "Leave the revision empty, or name a branch, tag or commit that it has.",
    )
    FORBIDDEN = (
        "access",
        "The Hub refuses access to {name} ({detail}).",
        "Check your token and its rights with `hf auth whoami`, then log in again.",
    )
    RATE_LIMITED = ("unreachable", "Rate limited by the Hub ({detail}).", "Wait {wait}{again}.")
    DOWN = ("unreachable", "The Hub is out of order ({detail}).", "Wait until it is back{again}.")
    REFUSED = ("error", "The Hub does not give {name} ({detail}).", "Check the id, or choose another {kind}.")
    OFFLINE = (
        "unreachable",
        "{name} needs the Hub, which may not be asked (HF_HUB_OFFLINE is set).",
        "Unset HF_HUB_OFFLINE, or choose {local}.",
    )
    UNREACHABLE = (
        "unreachable",
        "{name} {absent} ({detail}).",
        "Check the name and the network connection, or choose {local}.",
    )
    NOT_STORED = (
        "storage",
        "{name} cannot be stored in the Hub's cache ({detail}).",
        "Free some space, or set HF_HOME to a folder that has it.",
    )

    # Of jobs alone.
    JOBS_TOKEN = (
        "access",
        "The Hub does not accept your token ({detail}).",
        "Log in with `hf auth login` or HF_TOKEN; in a lab, give a token of yours on the Train tab.",
    )
    NO_CREDIT = (
        "access",
        "Hugging Face starts no job: the account has no credit for it ({detail}).",
        "Add credit at https://huggingface.co/settings/billing, or train on this machine.",
    )
    NO_JOBS_RIGHT = (
        "access",
        "Your token may not use jobs and buckets of {name} ({detail}).",
        "Choose an account or organisation of yours in jobs.namespace, or a token with write access and the right to jobs.",
    )

    # Of a Space's mirror alone.
    MIRROR_TOKEN = ("access", "Hugging Face does not accept the token of this Space ({detail}).", _SPACE_LOGIN_FIX)
    MIRROR_RIGHT = (
        "access",
        "The token of this Space may not write to the bucket {name}, or its storage is full ({detail}).",
        f"Free some space at https://huggingface.co/settings/billing, or: {_SPACE_LOGIN_FIX}",
    )
    MIRROR_FULL = (
        "error",
        "The account has no room for the bucket {name} ({detail}).",
        "Delete runs, or add storage at https://huggingface.co/settings/billing; saving is tried again by itself.",
    )
    MIRROR_GONE = (
        "error",
        "The bucket {name} does not exist any more ({detail}).",
        "Restart the Space to make another one; what is only here is lost with a restart, so download it first.",
    )
    MIRROR_REFUSED = (
        "error",
        "Hugging Face refuses to save to the bucket {name} ({detail}).",
        "Check the bucket at https://huggingface.co/{path}; saving is tried again by itself.",
    )
    MIRROR_AWAY = (
        "unreachable",
        "The bucket {name} cannot be reached ({detail}).",
        "Saving is tried again by itself; check https://status.huggingface.co if it lasts.",
    )

    # Of a Space alone.
    NO_PLAN = (
        "access",
        "The account has no plan or credit for this Space ({detail}{quote}).",
        "cpu-basic needs a PRO or Team plan and other hardware credit (https://huggingface.co/settings/billing); "
        "--sdk gradio --hardware zero-a10g needs neither.",
    )
    NO_SPACE = (
        "access",
        "There is no Space {name} that your token can see ({detail}{quote}).",
        "Check the name and the token's rights; `loratory space create` makes a new one.",
    )
    SPACE_REFUSED = ("error", "The Hub refuses this for {name} ({detail}{quote}).", "Correct what it names.")

    # Of a push alone, or of a Space.
    NO_TOKEN = ("access", "{doing} needs a Hugging Face token, and there is none.", _LOGIN_FIX)
    WRONG_TOKEN = ("access", "The Hub does not accept your token ({detail}{quote}).", _LOGIN_FIX)
    NO_ROOM = ("error", "The account has no room or plan for this ({detail}{quote}).", "Free some space on the Hub.")
    READ_ONLY = (
        "access",
        "Your token may not write to {name} ({detail}{quote}).",
        "Choose a repository of your own, or a token with write access to this one.",
    )
    NO_REPOSITORY = (
        "access",
        "The Hub finds no {name} that you may write to ({detail}{quote}).",
        "Check the owner's name and whether your account belongs to it.",
    )
    CHANGED = (
        "error",
        "{name} was changed by another push at the same time ({detail}).",
        "Push again; what has arrived is not sent a second time.",
    )
    TOO_LARGE = ("error", "The Hub finds a file too large ({detail}{quote}).", "Push an adapter, or in 16 bits.")
    PUSH_REFUSED = (
        "error",
        "The Hub refuses the push to {name} ({detail}{quote}).",
        "Nothing was committed; correct what it names, then push again.",
    )
    CARD_REFUSED = ("error", "The Hub refuses the model card{quote}.", "Change what it names, then push again.")
    LOST = ("unreachable", "The connection to the Hub ({name}) was lost {detail}.", "Check the network{again}.")
    NONSENSE = (
        "unreachable",
        "The Hub's answer makes no sense ({detail}).",
        "Check that {name} is a Hugging Face Hub, or update huggingface_hub.",
    )
    FILE_UNREADABLE = ("storage", "A file of the export cannot be read ({detail}).", "Push again.")


class Fault(NamedTuple):
    """One thing that went wrong."""

    fault: HubFault
    detail: str = ""  # such as "HTTP 503", or the name of an error
    quote: str = ""  # the server's own words, after ": "
    wait: str = "some minutes"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the Hub was asked for."""

    kind: str  # in words
    folder: str = ""  # in the addresses of the Hub's pages
    absent: str = "needs the Hub, which cannot be reached"  # what else is true where the Hub cannot be reached
    local: str  # what can be had without the Hub
    doing: str = ""  # what needs a token or the Hub; it begins sentences
    again: str = ", then try again"  # once the Hub serves again
    error: type[EngineError] = PushError  # raised in general
    access: type[EngineError] = PushError  # raised where a login may help
    unreachable: type[EngineError] = HubUnreachableError  # raised where asking later may help
    storage: type[EngineError] = StorageError  # raised where the disk is full or read-only
    in_lab: str = ""  # what helps where a login would, in a lab: its server has none
    refusals: Mapping[int, HubFault] = field(
        default_factory=dict
    )  # by HTTP status, where they mean something here alone
    refused: HubFault = HubFault.REFUSED  # any other refusal, where the server's words are quoted
    away: HubFault = HubFault.UNREACHABLE  # no answer at all

    def explain(self, fault: Fault, name: str, revision: str | None = None) -> EngineError:
        """Return the error that people see."""
        role, what, fix = fault.fault.value
        words = {**vars(self), **fault._asdict(), "name": name, "revision": revision, "path": f"{self.folder}{name}"}
        error: type[EngineError] = getattr(self, role)
        if error is self.access and self.in_lab and not looks_in_working_folder():
            fix = self.in_lab
        return error(what.format(**words), fix.format(**words))

    @contextmanager
    def explained(self, name: str, revision: str | None = None) -> Iterator[None]:
        """Turn what goes wrong while the Hub is asked into errors that people understand.

        Args:
            name: Of what it is asked for; it begins sentences.

        Raises:
            EngineError: As the attributes name them: `unreachable` without an answer, or with one outside the table;
                `error` or `access` for a refusal; `storage` if what the Hub sent could not be written.
        """
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            # Its text may quote what was sent, the token among it.
            raise self.explain(self._fault_in(error), name, revision) from None

    def _fault_in(self, error: Exception) -> Fault:
        status = status_of(error)
        if status is not None and status in self.refusals:
            return Fault(self.refusals[status], f"HTTP {status}")
        # What is not in the table comes from a network library, and means no answer at all.
        fault = find_fault(error) or Fault(HubFault.UNREACHABLE, type(error).__name__)
        return fault._replace(fault=self.away) if fault.fault is HubFault.UNREACHABLE else fault


_REFUSALS = {
    401: HubFault.WRONG_TOKEN,
    403: HubFault.READ_ONLY,
    412: HubFault.CHANGED,
    413: HubFault.TOO_LARGE,
}  # of what is written to the Hub
MODEL = Subject(
    kind="model",
    local="a local folder or the demo model",
    in_lab="Check the id and accept its terms at https://huggingface.co/{path}, then download it in the Model tab "
    "under “Gated or private model”.",
    error=ModelError,
    access=ModelAccessError,
)
DATASET = Subject(
    kind="dataset",
    folder="datasets/",
    absent="is not a file here, and the Hub cannot be reached",
    in_lab="Check the id; download a gated or private dataset in the Data tab with your own token.",
    local="a file or one of the samples",
    error=DatasetError,
    access=DatasetAccessError,
    unreachable=DatasetError,
    storage=DatasetError,
)
PUSH = Subject(
    kind="repository",
    doing="Pushing",
    local="an export into a folder",
    again="; push again then, and only what is missing is sent",
    refusals={**_REFUSALS, 402: HubFault.NO_ROOM, 404: HubFault.NO_REPOSITORY, 409: HubFault.CHANGED},
    refused=HubFault.PUSH_REFUSED,
)
JOBS = Subject(
    kind="bucket",
    folder="buckets/",
    local="this machine to train on",
    again="; the job continues meanwhile",
    refusals={401: HubFault.JOBS_TOKEN, 402: HubFault.NO_CREDIT, 403: HubFault.NO_JOBS_RIGHT},
)
MIRROR = Subject(
    kind="bucket",
    folder="buckets/",
    absent="cannot be reached",
    local="another bucket",
    again="; saving is tried again by itself",
    refusals={
        **dict.fromkeys((400, 405, 410, 413, 422), HubFault.MIRROR_REFUSED),
        401: HubFault.MIRROR_TOKEN,
        402: HubFault.MIRROR_FULL,
        403: HubFault.MIRROR_RIGHT,
        404: HubFault.MIRROR_GONE,
        409: HubFault.MIRROR_AWAY,
        507: HubFault.MIRROR_FULL,
    },
    away=HubFault.MIRROR_AWAY,
)
SPACE = Subject(
    kind="Space",
    folder="spaces/",
    doing="A Space",
    local="--dry-run",
    refusals={**_REFUSALS, 402: HubFault.NO_PLAN, 404: HubFault.NO_SPACE},
    refused=HubFault.SPACE_REFUSED,
)

# By name, for `datasets` and the Hub's library choose among HTTP libraries, and to import none of them here.
_BY_NAME = {
    "GatedRepoError": HubFault.GATED,
    "RevisionNotFoundError": HubFault.NO_REVISION,
    "DatasetNotFoundError": HubFault.MISSING,
    "RepositoryNotFoundError": HubFault.MISSING,
    "OfflineModeIsEnabled": HubFault.OFFLINE,
}
_BY_STATUS = {401: HubFault.FORBIDDEN, 403: HubFault.FORBIDDEN, 429: HubFault.RATE_LIMITED}
_NO_CONNECTION = frozenset(
    ("LocalEntryNotFoundError", "TransportError", "TimeoutException", "TimeoutError", "ConnectionError", "gaierror")
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
        status = status_of(link)
        if status is not None and status >= 400:
            other = HubFault.DOWN if status >= 500 else HubFault.REFUSED
            return Fault(_BY_STATUS.get(status, other), f"HTTP {status}")
        if isinstance(link, OSError) and link.errno in _NOT_STORED:
            return Fault(HubFault.NOT_STORED, (link.strerror or "I/O error").lower())
    return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an answer that became an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, down to the first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__
