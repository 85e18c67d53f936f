"""Asking the Hugging Face Hub something: with a deadline, and with what goes wrong said in words."""

import errno
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

from engine.errors import EngineError, HubUnreachableError, ModelAccessError, ModelError, StorageError

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
