"""The Hugging Face Hub: its errors by cause, repeated requests, and a bucket of a person or a Space."""

from __future__ import annotations

import errno
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from loratory.engine.errors import (
    DatasetAccessError,
    DatasetError,
    EngineError,
    HubUnreachableError,
    ModelAccessError,
    ModelError,
    PushError,
    StorageError,
)
from loratory.engine.paths import searches_working_folder

if TYPE_CHECKING:
    from huggingface_hub import BucketFile, HfApi


Answer = TypeVar("Answer")

_SILENCE_SECONDS = 60.0  # of a server, while something is written; the Hub's library would wait forever


class HubFault(Enum):
    """The cause: which error of its `Subject` it is, a sentence with the fact, one with the fix."""

    GATED = ("access", "{name} is gated: its owner asks you to accept terms first.", "Accept them at {page}. {login}")
    MISSING = ("access", "The Hub has no {kind} {name} that {token} can access.", "{missing}")
    NO_REVISION = ("error", "{name} has no revision {revision}.", "Name a branch, tag or commit that it has.")
    NO_TOKEN = ("access", "{name} needs a Hugging Face token, and there is none.", "{login}")
    WRONG_TOKEN = ("access", "The Hub does not accept {token} ({detail}).", "{login}")
    FORBIDDEN = ("access", "The Hub does not let {token} {use} {name} ({detail}).", "{login}")
    NO_ROOM = ("error", "The account has no credit, plan or room for {name} ({detail}).", "{room}")
    CHANGED = ("conflict", "{name} was changed by another request at the same time ({detail}).", "Try again.")
    RATE_LIMITED = ("unreachable", "Rate limited by the Hub ({detail}).", "Wait {wait}, then try again.")
    DOWN = ("unreachable", "The Hub is out of order ({detail}).", "Wait until it is back, then try again.")
    OFFLINE = ("unreachable", "{name} needs the Hub, and HF_HUB_OFFLINE is set.", "Unset it, or choose {instead}.")
    UNREACHABLE = (
        "unreachable",
        "The Hub cannot be reached for {name} ({detail}).",
        "Check the name and the network, or choose {instead}.",
    )
    NOT_STORED = ("storage", "{name} cannot be stored or read ({detail}).", "Free space, or set HF_HOME elsewhere.")
    REFUSED = ("error", "The Hub refuses this for {name} ({detail}).", "Check the name and its page on the Hub.")


_NOT_NOW = frozenset({HubFault.RATE_LIMITED, HubFault.DOWN, HubFault.UNREACHABLE})


class Fault(NamedTuple):
    """One error of the Hub."""

    cause: HubFault
    detail: str = ""  # such as "HTTP 503: the server's message", or the name of an error
    wait_seconds: float | None = None  # that the Hub asks for


class RetryPolicy(NamedTuple):
    """How often a request is repeated, and after which wait."""

    attempts: int = 6
    first_wait_seconds: float = 1.0  # doubles each time
    longest_wait_seconds: float = 300.0  # the request fails where the server asks for more
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The kind of thing that was requested: the nouns of the sentences, and what helps."""

    kind: str
    folder: str = ""  # in the addresses of the Hub's pages
    token: str = "your token"  # noqa: S105 - a noun
    use: str = "read"  # what the token does with it
    login: str = "Log in with `hf auth login` or HF_TOKEN."
    missing: str = "Check the id; if it is private or gated, log in with `hf auth login` or HF_TOKEN."
    room: str = "Free space, or see https://huggingface.co/settings/billing."
    instead: str  # what can be had without the Hub
    in_lab: str = ""  # what helps where a login would, in a lab: its server has none
    error: type[EngineError] = PushError  # raised in general
    access: type[EngineError] = PushError  # raised where a login may help
    unreachable: type[EngineError] = HubUnreachableError  # raised where asking later may help
    conflict: type[EngineError] = PushError  # raised where two write at the same time
    storage: type[EngineError] = StorageError  # raised where the disk is full or read-only

    def explain(self, fault: Fault, name: str, revision: str | None = None) -> EngineError:
        """Return the error that people see."""
        role, what, fix = fault.cause.value
        minutes = (fault.wait_seconds or 0.0) / 60
        values = {**vars(self), **fault._asdict(), "name": name, "revision": revision or "of that name"}
        values["page"] = f"https://huggingface.co/{self.folder}{name}"
        values["wait"] = f"{minutes:.0f} minutes" if minutes >= 2 else "some minutes"
        error: type[EngineError] = getattr(self, role)
        if role == "access" and self.in_lab and not searches_working_folder():
            fix = self.in_lab
        return error(what.format(**values), fix.format(**values))

    @contextmanager
    def explain_errors(self, name: str, revision: str | None = None) -> Iterator[None]:
        """Turn errors of requests to the Hub into errors that people understand; `name` begins sentences.

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

    def retry(
        self,
        name: str,
        request: Callable[[], Answer],
        token: str | None,
        report: Callable[[str], None],
        policy: RetryPolicy,
    ) -> Answer:
        """Repeat a request until it succeeds or the policy ends; refusals are not repeated.

        Args:
            request: May be called several times, and must continue where it stopped.
            token: Never quoted from an answer.
            report: Gets the reason and length of each wait.

        Raises:
            EngineError: As `explain_errors` does.
        """
        from huggingface_hub import get_session

        for attempt in itertools.count(1):
            try:
                get_session().timeout = _SILENCE_SECONDS
                return request()
            except EngineError:
                raise
            except Exception as error:
                fault = self._fault_in(error, token)
                reason = self.explain(fault, name)
                seconds = fault.wait_seconds or policy.first_wait_seconds * 2.0 ** (attempt - 1)
                is_last = attempt == policy.attempts or seconds > policy.longest_wait_seconds
                if is_last or fault.cause not in _NOT_NOW:
                    raise reason from None
            report(f"{reason.what} Trying again in {max(1, round(seconds))} s.")
            policy.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")


_LOGIN_TO_WRITE = "Log in with `hf auth login` or HF_TOKEN, with a token that has write access."
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
    instead="an export into a folder",
)
JOBS = Subject(
    kind="account or bucket",
    use="use jobs and buckets of",
    login="Log in with `hf auth login`, HF_TOKEN, or in a lab on the Train tab; the token needs the right to jobs.",
    missing="Choose an account or organization of yours in jobs.namespace.",
    instead="this machine to train on",
)
MIRROR = Subject(
    kind="bucket",
    token="the token of this Space",  # noqa: S106 - a noun
    use="write to the bucket",
    login="Set the secret HF_TOKEN of the Space to a token with write access, and free space in the buckets.",
    missing="Restart the Space to make another one; what is only here is lost with a restart, so download it first.",
    instead="another bucket; saving is retried automatically",
    conflict=HubUnreachableError,
)
SPACE = Subject(
    kind="Space",
    use="write to",
    login=_LOGIN_TO_WRITE,
    missing="Check the name and the token's rights; `loratory space create` makes a new one.",
    room="cpu-basic needs a PRO or Team plan, other hardware credit; --sdk gradio --hardware zero-a10g needs neither.",
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
    """Return the cause of an error, or of what it was raised from; None if it did not come from the Hub.

    An answer is quoted only where the token of the request is known, and can be removed.
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
    """Return a server's message, safe to show, after a colon; empty without one, or where the token is not known."""
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


_MOST_FILES = 200_000  # of one list: a full bucket must not fill our memory


class RunBucket:
    """The bucket of a name, owner/name, as one side uses it; `explain_errors` is a method of its `Subject`."""

    def __init__(
        self, api: HfApi, name: str, explain_errors: Callable[[str], AbstractContextManager[None]] = JOBS.explain_errors
    ) -> None:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._api = api
        self._explain_errors = explain_errors
        self.name = name

    def make(self) -> None:
        """Create the bucket where it is missing.

        Raises:
            PushError: If it is refused, or is there and public.
            HubUnreachableError: If the Hub does not answer.
        """
        with self._explain_errors(self.name):
            self._api.create_bucket(self.name, private=True, exist_ok=True)
            is_private = self._api.bucket_info(self.name).private
        if not is_private:
            raise PushError(
                f"The bucket {self.name} is public, and runs with their data would be readable by everyone.",
                f"Make it private at {self._api.endpoint}/buckets/{self.name}, or rename it.",
            )

    def list(self, folder: str) -> dict[str, BucketFile]:
        """Return the files below a folder, by their names within it; raises as `put` does, and PushError for too many."""
        with self._explain_errors(self.name):
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
            with self._explain_errors(self.name):
                self._api.batch_bucket_files(self.name, add=[(source, name) for name, source in files.items()])

    def get(self, files: Sequence[tuple[BucketFile, Path]]) -> None:
        """Write files as `list` gave them to paths; raises as `put` does, and StorageError where the disk is full."""
        for _, path in files:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._explain_errors(self.name):
            self._api.download_bucket_files(self.name, list(files))

    def remove(self, names: Sequence[str]) -> None:
        """Delete files; raises as `put` does."""
        if names:
            with self._explain_errors(self.name):
                self._api.batch_bucket_files(self.name, delete=list(names))
