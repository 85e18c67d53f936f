"""The Hub's answers to a push, as errors in words; and how long to retry.

huggingface_hub repeats some requests itself, silently and for as long as a server wishes. Here every answer that says
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

from engine.errors import EngineError, HubUnreachableError, PushError, StorageError

Answer = TypeVar("Answer")

_NOT_NOW = frozenset({408, 429, 500, 502, 503, 504})
_RESET = re.compile(r";\s*t=(\d+)")  # of the `ratelimit` header: seconds until requests are allowed again
_NATIVE_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_LOGIN_FIX = (
    "Make one with write access at https://huggingface.co/settings/tokens, then `hf auth login` or set HF_TOKEN."
)


class NotNowError(Exception):
    """The Hub, or the way to it, does not serve now; asking again may help.

    Args:
        status: HTTP status; None where the connection was lost.
        wait_seconds: How long the Hub asks to wait; None where it does not say.
    """

    def __init__(self, status: int | None, wait_seconds: float | None = None) -> None:
        super().__init__(f"HTTP {status}" if status else "connection lost")
        self.status = status
        self.wait_seconds = wait_seconds


class Patience(NamedTuple):
    """How often and how long to ask again."""

    attempts: int = 6
    first_wait_seconds: float = 1.0  # doubles each time
    longest_wait_seconds: float = 300.0  # a server that asks for more is asked again by the person


PATIENCE = Patience()


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
) -> Answer:
    """Ask until there is an answer, or patience is at its end; refusals are not asked again.

    Args:
        ask: May be called several times, and so must be able to go on from where it was.
        patience: How often and how long.
        on_wait: Gets why it waits and how long.
        sleep: Waits for so many seconds.

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
                raise _given_up(error, attempt) from None
            if seconds > 0:
                on_wait(f"{_reason(error)}; asking again in {max(1, round(seconds))} s.")
                sleep(seconds)
            wait *= 2
    raise AssertionError("the last attempt returns or raises")


@contextlib.contextmanager
def push_errors_explained(repository: str, token: str | None) -> Iterator[None]:
    """Turn refusals of a push into errors that people understand; no message holds the token.

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
        raise _explain(repository, _innermost_known(error), token) from None


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
        found = _NATIVE_STATUS.search(str(error))
        status = int(found[1]) if found else None
        if status == 404:
            constants.HF_HUB_DISABLE_XET = True
            raise NotNowError(None, 0.0) from None
        if status in (401, 403):
            raise _may_not_write(repository, f"HTTP {status}") from None
        raise NotNowError(status if status in _NOT_NOW else None) from None


def no_token() -> PushError:
    """Return the error of a missing login."""
    return PushError("Pushing needs a Hugging Face token, and there is none.", _LOGIN_FIX)


def _explain(repository: str, error: BaseException, token: str | None) -> Exception:
    if isinstance(error, EngineError | NotNowError):
        return error
    if isinstance(error, LocalTokenNotFoundError):
        return no_token()
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachableError(
            "Pushing needs the Hub, which may not be asked (HF_HUB_OFFLINE is set).", "Unset HF_HUB_OFFLINE."
        )
    if isinstance(error, HfHubHTTPError):
        return _refusal(repository, error, token)
    if isinstance(error, OSError) and error.filename is not None:
        return StorageError(f"A file of the export cannot be read ({error.strerror}).", "Push again.")
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        said = "; ".join(line.removeprefix("- ").strip() for line in str(error).splitlines()[1:])
        return PushError(
            f"The Hub refuses the model card: {_plain(said, token)}.", "Change what it names, then push again."
        )
    return HubUnreachableError(
        f"The Hub's answer makes no sense ({type(error).__name__}).",
        f"Check that {constants.ENDPOINT} is a Hugging Face Hub, or update huggingface_hub.",
    )


def _refusal(repository: str, error: HfHubHTTPError, token: str | None) -> PushError:
    status = error.response.status_code
    said = _plain(error.server_message or error.response.headers.get("X-Error-Message") or "", token)
    said = f": {said}" if said else ""
    if isinstance(error, RevisionNotFoundError):
        return PushError(f"{repository} has no such branch.", "Leave the branch out, or name one.")
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return PushError(f"The Hub does not accept your token (HTTP 401{said}).", _LOGIN_FIX)
    if status == 402:
        return PushError(f"The account has no room or plan for this (HTTP 402{said}).", "Free some space on the Hub.")
    if status == 403:
        return _may_not_write(repository, f"HTTP 403{said}")
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return PushError(
            f"The Hub finds no {repository} that you may write to (HTTP {status}{said}).",
            "Check the owner's name and whether your account belongs to it.",
        )
    if status in (409, 412):
        return PushError(
            f"{repository} was changed by another push at the same time (HTTP {status}).",
            "Push again; what has arrived is not sent a second time.",
        )
    if status == 413:
        return PushError(f"The Hub finds a file too large (HTTP 413{said}).", "Push an adapter, or in 16 bits.")
    return PushError(
        f"The Hub refuses the push to {repository} (HTTP {status}{said}).",
        "Nothing was committed; mend what it names, then push again.",
    )


def _may_not_write(repository: str, said: str) -> PushError:
    return PushError(
        f"Your token may not write to {repository} ({said}).",
        "Choose a repository of your own, or a token with write access to this one.",
    )


def _innermost_known(error: BaseException) -> BaseException:
    """huggingface_hub wraps what goes wrong with one file into an error of its own; the cause is inside."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EngineError | NotNowError | HfHubHTTPError | OfflineModeIsEnabled):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _given_up(error: NotNowError, attempts: int) -> HubUnreachableError:
    resumed = "push again then, and only what is missing is sent"
    if error.status == 429:
        wait = f"Wait {_words_of_wait(error.wait_seconds)}" if error.wait_seconds else "Wait some minutes"
        return HubUnreachableError(
            "The Hub answers that these are too many requests (HTTP 429).", f"{wait}; {resumed}."
        )
    if error.status is not None:
        return HubUnreachableError(
            f"The Hub is out of order (HTTP {error.status}, {attempts} attempts).", f"Wait until it is back; {resumed}."
        )
    return HubUnreachableError(
        f"The connection to the Hub ({constants.ENDPOINT}) was lost {attempts} times.",
        f"Check the network; {resumed}.",
    )


def _words_of_wait(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _reason(error: NotNowError) -> str:
    if error.status == 429:
        return "The Hub asks to slow down (HTTP 429)"
    if error.status is not None:
        return f"The Hub is out of order (HTTP {error.status})"
    return "The connection to the Hub was lost"


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Return what `Retry-After` says, or the Hub's own `ratelimit` header."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    found = _RESET.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None


def _plain(text: str, token: str | None) -> str:
    """Return a server's words, made safe to show."""
    if token:
        text = text.replace(token, "…")
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "…", text)
    return "".join(character for character in text if character.isprintable()).strip().rstrip(".")[:200]
