"""What goes wrong when the Hugging Face Hub is asked for something or takes something, by cause; and how long to ask again."""

import errno
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeVar

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

Answer = TypeVar("Answer")

_SILENCE_SECONDS = 60.0  # of a server, while something is written; the Hub's library would wait forever


class HubFault(Enum):
    """What went wrong: which error of its `Subject` it is, a sentence with the fact, one with the fix."""

    GATED = ("access", "{name} is gated: its owner asks you to accept terms first.", "Accept them at {page}. {login}")
    MISSING = ("access", "The Hub has no {kind} {name} that {token} can access.", "{missing}")
    NO_REVISION = ("error", "{name} has no revision {revision}.", "Name a branch, tag or commit that it has.")
    NO_TOKEN = ("access", "{name} needs a Hugging Face token, and there is none.", "{login}")
    WRONG_TOKEN = ("access", "The Hub does not accept {token} ({detail}).", "{login}")
    FORBIDDEN = ("access", "The Hub does not let {token} {use} {name} ({detail}).", "{login}")
    NO_ROOM = ("error", "The account has no credit, plan or room for {name} ({detail}).", "{room}")
    CHANGED = (
        "changed",
        "{name} was changed by another request at the same time ({detail}).",
        "Wait a moment, then try again.",
    )
    RATE_LIMITED = ("unreachable", "Rate limited by the Hub ({detail}).", "Wait {wait}{again}.")
    DOWN = ("unreachable", "The Hub is out of order ({detail}).", "Wait until it is back{again}.")
    OFFLINE = ("unreachable", "{name} needs the Hub, and HF_HUB_OFFLINE is set.", "Unset it, or choose {instead}.")
    UNREACHABLE = ("unreachable", "{name} {absent} ({detail}).", "Check the name and the network, or choose {instead}.")
    NOT_STORED = ("storage", "{name} cannot be stored or read ({detail}).", "Free space, or set HF_HOME elsewhere.")
    REFUSED = ("error", "The Hub refuses this for {name} ({detail}).", "Check the name and its page on the Hub.")


_NOT_NOW = frozenset({HubFault.RATE_LIMITED, HubFault.DOWN, HubFault.UNREACHABLE})


class Fault(NamedTuple):
    """One thing that went wrong."""

    cause: HubFault
    detail: str = ""  # such as "HTTP 503: what the server says", or the name of an error
    wait_seconds: float | None = None  # that the Hub asks for; None where it does not say


class Patience(NamedTuple):
    """How often and how long to ask again."""

    attempts: int = 6
    first_wait_seconds: float = 1.0  # doubles each time
    longest_wait_seconds: float = 300.0  # a server that asks for more is asked again by the person
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the Hub was asked for: the nouns of the sentences, and what helps."""

    kind: str
    folder: str = ""  # in the addresses of the Hub's pages
    token: str = "your token"  # noqa: S105 - a noun
    use: str = "read"  # what the token does with it
    absent: str = "needs the Hub, which cannot be reached"  # what else is true where the Hub cannot be reached
    login: str = "Log in with `hf auth login` or HF_TOKEN."
    missing: str = "Check the id; if it is private or gated, log in with `hf auth login` or HF_TOKEN."
    room: str = "See https://huggingface.co/settings/billing."
    instead: str  # what can be had without the Hub
    again: str = ", then try again"  # once the Hub serves again
    in_lab: str = ""  # what helps where a login would, in a lab: its server has none
    error: type[EngineError] = PushError  # raised in general
    access: type[EngineError] = PushError  # raised where a login may help
    unreachable: type[EngineError] = HubUnreachableError  # raised where asking later may help
    changed: type[EngineError] = PushError  # raised where two write at the same time
    storage: type[EngineError] = StorageError  # raised where the disk is full or read-only

    def explain(self, fault: Fault, name: str, revision: str | None = None) -> EngineError:
        """Return the error that people see."""
        role, what, fix = fault.cause.value
        minutes = (fault.wait_seconds or 0.0) / 60
        values = {**vars(self), **fault._asdict(), "name": name, "revision": revision or "of that name"}
        values["page"] = f"https://huggingface.co/{self.folder}{name}"
        values["wait"] = f"{minutes:.0f} minutes" if minutes >= 2 else "some minutes"
        error: type[EngineError] = getattr(self, role)
        if error is self.access and self.in_lab and not looks_in_working_folder():
            fix = self.in_lab
        return error(what.format(**values), fix.format(**values))

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

    def _fault_in(self, error: Exception, token: str | None = None) -> Fault:
        # What is not in the table comes from a network library, and means no answer at all.
        return find_fault(error, token) or Fault(HubFault.UNREACHABLE, type(error).__name__)

    def retried(
        self, name: str, ask: Callable[[], Answer], token: str | None, report: Callable[[str], None], patience: Patience
    ) -> Answer:
        """Ask until there is an answer, or patience is at its end; refusals are not asked again.

        Args:
            ask: May be called several times, and so must be able to continue from where it was.
            token: What the server says is quoted without it.
            report: Gets why and how long it waits.

        Raises:
            EngineError: As `explained` does.
        """
        from huggingface_hub import get_session

        for attempt in itertools.count(1):
            try:
                get_session().timeout = _SILENCE_SECONDS
                return ask()
            except EngineError:
                raise
            except Exception as error:
                fault = self._fault_in(error, token)
                reason = self.explain(fault, name)
                seconds = fault.wait_seconds or patience.first_wait_seconds * 2.0 ** (attempt - 1)
                is_last = attempt == patience.attempts or seconds > patience.longest_wait_seconds
                if is_last or fault.cause not in _NOT_NOW:
                    raise reason from None
            report(f"{reason.what} Trying again in {max(1, round(seconds))} s.")
            patience.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")


_LOGIN_TO_WRITE = (
    "Log in with `hf auth login` or HF_TOKEN; https://huggingface.co/settings/tokens makes a token with write access."
)
MODEL = Subject(
    kind="model",
    instead="a local folder or the demo model",
    in_lab="Check the id, accept its terms at {page}, then use “Gated or private model” in the Model tab.",
    error=ModelError,
    access=ModelAccessError,
)
DATASET = Subject(
    kind="dataset",
    folder="datasets/",
    absent="is not a file here, and the Hub cannot be reached",
    in_lab="Check the id; download a gated or private dataset in the Data tab with your own token.",
    instead="a file or one of the samples",
    error=DatasetError,
    access=DatasetAccessError,
    unreachable=DatasetError,
    storage=DatasetError,
)
PUSH = Subject(
    kind="repository",
    use="write to",
    login=_LOGIN_TO_WRITE,
    missing="Check the owner's name and whether your account belongs to it.",
    room="Free some space on the Hub, or push an adapter or 16 bits.",
    instead="an export into a folder",
    again="; push again then, and only what is missing is sent",
)
JOBS = Subject(
    kind="account or bucket",
    use="use jobs and buckets of",
    login="Log in with `hf auth login`, HF_TOKEN, or in a lab on the Train tab; the token needs the right to jobs.",
    missing="Choose an account or organization of yours in jobs.namespace.",
    room="Add credit at https://huggingface.co/settings/billing, or train on this machine.",
    instead="this machine to train on",
    again="; the job continues meanwhile",
)
MIRROR = Subject(
    kind="bucket",
    token="the token of this Space",  # noqa: S106 - a noun
    use="write to the bucket",
    absent="cannot be reached",
    login="Set the secret HF_TOKEN in the Space's settings to a token with write access to its owner's buckets, "
    "and free some space there if they are full.",
    missing="Restart the Space to make another one; what is only here is lost with a restart, so download it first.",
    room="Delete runs, or add storage at https://huggingface.co/settings/billing; saving is tried again by itself.",
    instead="another bucket; saving is tried again by itself",
    again="; saving is tried again by itself",
    changed=HubUnreachableError,
)
SPACE = Subject(
    kind="Space",
    use="write to",
    login=_LOGIN_TO_WRITE,
    missing="Check the name and the token's rights; `loratory space create` makes a new one.",
    room="cpu-basic needs a PRO or Team plan and other hardware credit (https://huggingface.co/settings/billing); "
    "--sdk gradio --hardware zero-a10g needs neither.",
    instead="--dry-run",
)

# By name, for `datasets` and the Hub's library choose among HTTP libraries, and to import none of them here.
_BY_NAME = {
    "GatedRepoError": HubFault.GATED,
    "RevisionNotFoundError": HubFault.NO_REVISION,
    "DatasetNotFoundError": HubFault.MISSING,
    "RepositoryNotFoundError": HubFault.MISSING,
    "RemoteEntryNotFoundError": HubFault.REFUSED,  # a file that the Hub lists, and does not have
    "OfflineModeIsEnabled": HubFault.OFFLINE,
    **dict.fromkeys(("LocalEntryNotFoundError", "TransportError", "TimeoutException"), HubFault.UNREACHABLE),
    **dict.fromkeys(("TimeoutError", "ConnectionError", "gaierror"), HubFault.UNREACHABLE),
}
_BY_STATUS = {
    401: HubFault.WRONG_TOKEN,
    403: HubFault.FORBIDDEN,
    404: HubFault.MISSING,
    408: HubFault.DOWN,
    429: HubFault.RATE_LIMITED,
    **dict.fromkeys((402, 413, 507), HubFault.NO_ROOM),
    **dict.fromkeys((409, 412), HubFault.CHANGED),
}
_NOT_STORED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS})
_RESET = re.compile(r";\s*t=(\d+)")  # of the `ratelimit` header: seconds until requests are allowed again
_TOKEN = re.compile(r"hf_[\w.-]{8,}")


def find_fault(error: BaseException, token: str | None = None) -> Fault | None:
    """Return what went wrong with the Hub, by an error or what it was raised from; None for any other error.

    Args:
        token: That the Hub was asked with; its words are quoted only where it is known, and so can be left out.
    """
    chain = list(error_chain(error))
    for link in chain:
        status = status_of(link) or 0
        cause = next((_BY_NAME[kind.__name__] for kind in type(link).__mro__ if kind.__name__ in _BY_NAME), None)
        if cause is None and status >= 400:
            cause = _BY_STATUS.get(status, HubFault.DOWN if status >= 500 else HubFault.REFUSED)
        if cause is not None and not status:
            return Fault(cause, type(chain[-1]).__name__)
        if cause is not None:
            headers = link.response.headers  # type: ignore[attr-defined]  # has a status
            text = getattr(link, "server_message", None) or headers.get("X-Error-Message") or ""
            return Fault(cause, f"HTTP {status}{quoted(text, token)}", _wait_seconds(headers))
        if isinstance(link, OSError) and link.errno in _NOT_STORED:
            return Fault(HubFault.NOT_STORED, (link.strerror or "I/O error").lower())
        if isinstance(link, ValueError) and token:  # such as a model card that the Hub does not accept
            return Fault(HubFault.REFUSED, f"{type(link).__name__}{quoted(str(link), token)}")
    return None


def quoted(text: str, token: str | None) -> str:
    """Return a server's words, made safe to show, after a colon; nothing where it has none, or the token is not known."""
    if not token:
        return ""
    text = _TOKEN.sub("…", text.replace(token, "…"))
    plain = "".join(character for character in text if character.isprintable()).strip().rstrip(".")[:200]
    return f": {plain}" if plain else ""


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


def _wait_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After`, or the Hub's own `ratelimit` header."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    match = _RESET.search(headers.get("ratelimit", ""))
    return float(match[1]) if match else None
