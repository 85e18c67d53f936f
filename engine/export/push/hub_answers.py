"""The Hub's answers to a push, or to orders for a Space, as errors in words; and how long to retry.

huggingface_hub repeats some requests itself, silently and for as long as the server asks. Here every answer that means
"not now" comes out as an exception of ours at once, and one place decides whether to wait, reports it, and gives up in time.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._http import default_client_factory

from engine.errors import EngineError
from engine.hub_errors import PUSH, Fault, HubFault, Subject

Answer = TypeVar("Answer")

_NOT_NOW = frozenset({408, 429, 500, 502, 503, 504})
_RESET = re.compile(r";\s*t=(\d+)")  # of the `ratelimit` header: seconds until requests are allowed again
_NATIVE_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")


class NotNowError(Exception):
    """The Hub, or the way to it, does not serve now; asking again may help."""

    def __init__(self, status: int | None, wait_seconds: float | None = None) -> None:
        if status is None:
            super().__init__("The connection to the Hub was lost")
        elif status == 429:
            super().__init__("The Hub asks to slow down (HTTP 429)")
        else:
            super().__init__(f"The Hub is out of order (HTTP {status})")
        self.status = status  # of HTTP; None where the connection was lost
        self.wait_seconds = wait_seconds  # that the Hub asks for; None where it does not say

    def given_up(self, attempts: int, subject: Subject) -> EngineError:
        """Return the error of what ends with this, after so many attempts."""
        if self.status is None:
            return subject.explain(Fault(HubFault.LOST, f"{attempts} times"), constants.ENDPOINT)
        if self.status != 429:
            return subject.explain(Fault(HubFault.DOWN, f"HTTP {self.status}, {attempts} attempts"), "")
        fault = Fault(HubFault.RATE_LIMITED, "HTTP 429")
        if seconds := self.wait_seconds:
            fault = fault._replace(wait=f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds")
        return subject.explain(fault, "")


class Patience(NamedTuple):
    """How often and how long to ask again."""

    attempts: int = 6
    first_wait_seconds: float = 1.0  # doubles each time
    longest_wait_seconds: float = 300.0  # a server that asks for more is asked again by the person


@dataclass
class Traffic:
    """What went over the line."""

    sent_bytes: int = 0  # bodies of uploads that arrived


@contextlib.contextmanager
def hub_client(timeout_seconds: float = 60.0) -> Iterator[Traffic]:
    """Let huggingface_hub use a client that raises `NotNowError`, and counts what is uploaded, in this block."""
    traffic = Traffic()

    def make() -> Any:
        client = default_client_factory()
        client.timeout = timeout_seconds  # of silence, not of a whole upload
        send = client.send

        def send_once(request: Any, **options: Any) -> Any:
            try:
                response = send(request, **options)
            except (EngineError, OfflineModeIsEnabled):
                raise
            except Exception:
                # Its text may quote what was sent, the token among it.
                raise NotNowError(None) from None
            if response.status_code in _NOT_NOW:
                raise NotNowError(response.status_code, _asked_wait(response.headers))
            if request.method == "PUT" and response.is_success:
                traffic.sent_bytes += int(request.headers.get("content-length", 0))
            return response

        client.send = send_once  # type: ignore[method-assign]
        return client

    huggingface_hub.set_client_factory(make)
    try:
        yield traffic
    finally:
        huggingface_hub.set_client_factory(default_client_factory)


def persist(
    ask: Callable[[], Answer],
    patience: Patience,
    on_wait: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    subject: Subject = PUSH,
) -> Answer:
    """Ask until there is an answer, or patience is at its end; refusals are not asked again.

    `ask` may be called several times, and so must be able to continue from where it was; `on_wait` gets why and how long it
    waits, and `sleep` the seconds.

    Raises:
        HubUnreachableError: If the Hub never served.
        Exception: Whatever else `ask` raises.
    """
    wait = patience.first_wait_seconds
    for attempt in range(1, patience.attempts + 1):
        try:
            return ask()
        except NotNowError as error:
            seconds = error.wait_seconds if error.wait_seconds is not None else wait
            if attempt == patience.attempts or seconds > patience.longest_wait_seconds:
                raise error.given_up(attempt, subject) from None
            if seconds > 0:
                on_wait(f"{error}; asking again in {max(1, round(seconds))} s.")
                sleep(seconds)
            wait *= 2
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def push_errors_explained(repository: str, token: str | None, subject: Subject = PUSH) -> Iterator[None]:
    """Turn refusals into errors that people understand; no message holds the token.

    Raises:
        PushError: If the Hub refuses.
        HubUnreachableError: If it may not be asked, or gave an answer that means nothing.
        StorageError: If a file cannot be read.
        NotNowError: If asking again may help.
    """
    try:
        yield
    except (EngineError, NotNowError):
        raise
    except Exception as error:
        raise _explain(subject, repository, _innermost_known(error), token) from None


@contextlib.contextmanager
def native_errors_translated(repository: str) -> Iterator[None]:
    """The same for the native uploader (Xet), whose errors are text; a Hub that has none is sent plain files from then on.

    Raises:
        PushError: If the Hub refuses.
        NotNowError: If asking again may help, in the other way where there is one.
    """
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        match = _NATIVE_STATUS.search(str(error))
        status = int(match[1]) if match else None
        if status == 404:
            constants.HF_HUB_DISABLE_XET = True
            raise NotNowError(None, 0.0) from None
        if status in (401, 403):
            raise PUSH.explain(Fault(HubFault.READ_ONLY, f"HTTP {status}"), repository) from None
        raise NotNowError(status if status in _NOT_NOW else None) from None


def _explain(subject: Subject, repository: str, error: BaseException, token: str | None) -> Exception:
    if isinstance(error, EngineError | NotNowError):
        return error
    if isinstance(error, LocalTokenNotFoundError):
        return subject.explain(Fault(HubFault.NO_TOKEN), "")
    if isinstance(error, OfflineModeIsEnabled):
        return subject.explain(Fault(HubFault.OFFLINE), subject.doing)
    if isinstance(error, HfHubHTTPError):
        return _refusal(subject, repository, error, token)
    if isinstance(error, OSError) and error.filename is not None:
        return subject.explain(Fault(HubFault.FILE_UNREADABLE, str(error.strerror)), "")
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        problems = "; ".join(line.removeprefix("- ").strip() for line in str(error).splitlines()[1:])
        return subject.explain(Fault(HubFault.CARD_REFUSED, quote=quoted(problems, token)), "")
    return subject.explain(Fault(HubFault.NONSENSE, type(error).__name__), constants.ENDPOINT)


def _refusal(subject: Subject, repository: str, error: HfHubHTTPError, token: str | None) -> EngineError:
    status = error.response.status_code
    fault = subject.refusals.get(status, subject.refused)
    if isinstance(error, RevisionNotFoundError):
        fault = HubFault.NO_REVISION
    elif isinstance(error, RepositoryNotFoundError) and status not in (402, 403):
        fault = subject.refusals[404]
    quote = quoted(error.server_message or error.response.headers.get("X-Error-Message") or "", token)
    return subject.explain(Fault(fault, f"HTTP {status}", quote), repository, revision="of that name")


def _innermost_known(error: BaseException) -> BaseException:
    """huggingface_hub wraps what goes wrong with one file into an error of its own; the cause is inside."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EngineError | NotNowError | HfHubHTTPError | OfflineModeIsEnabled):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `Retry-After`, or the Hub's own `ratelimit` header."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    match = _RESET.search(headers.get("ratelimit", ""))
    return float(match[1]) if match else None


def quoted(text: str, token: str | None) -> str:
    """Return a server's words, made safe to show, after a colon; nothing where it has none."""
    if token:
        text = text.replace(token, "…")
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "…", text)
    plain = "".join(character for character in text if character.isprintable()).strip().rstrip(".")[:200]
    return f": {plain}" if plain else ""
