"""Errors in two sentences: what happened, then how to fix it.

Raised in `engine`, shown once: on the page by `loratory.ui.components`, in the terminal by `loratory.engine.cli`. No message holds a
secret or the path of another person's files.
"""

import contextlib
import reprlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class EngineError(Exception):
    """An error that a person can understand and fix.

    Args:
        what: One sentence with the values that matter: what happened.
        fix: One sentence: what to do about it.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix


def shorten(text: str, most: int = 60) -> str:
    """Return a text of at most so many characters, with … for what is cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def brief_repr(value: object, most: int = 60) -> str:
    """Return a value as Python writes it, at most so many characters; what is deeper or longer is never written out."""
    writer = reprlib.Repr()
    writer.maxlevel, writer.maxstring, writer.maxlist, writer.maxtuple = 3, 4 * most, most // 3, most // 3
    return shorten(writer.repr(value), most)


class Problem(NamedTuple):
    """One thing that is wrong with a configuration."""

    field: str  # dotted, as in `training.learning_rate`; "" when it concerns the whole
    message: str  # what is wrong with the given value, and what would be right


class ConfigError(EngineError):
    """A configuration is refused; `problems` lists everything that is wrong with it, by field."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  {field or 'config'}: {message}" for field, message in self.problems)
        count = len(self.problems)
        super().__init__(
            what=f"The configuration has {count} problem{'' if count == 1 else 's'}:\n{lines}\n",
            fix="Correct the settings named above.",
        )


class DatasetError(EngineError):
    """A dataset cannot be read, or has no row to train on."""


class DatasetAccessError(DatasetError):
    """The Hub does not give a dataset to a process without a login: it is private, gated or does not exist."""


class ModelError(EngineError):
    """A model cannot be found, reached, read or trained."""


class HubUnreachableError(ModelError):
    """The Hub did not answer, and this machine has no copy."""


class SignInNeededError(HubUnreachableError):
    """A request in a person's name needs them to sign in at Hugging Face first."""


class ModelAccessError(ModelError):
    """The Hub does not give a model to a process without a login: it is private, gated or does not exist."""


class MemoryUnknownError(ModelError):
    """A model whose layer structure the memory estimate does not support; it may still train."""


class ModelLimitError(ModelError):
    """A model's chat template, tokenizer or configuration needs more time, memory or room than any in use.

    `subject` is what the process was working with, as text that changes with the files.
    """

    subject = ""


class RunError(EngineError):
    """A run does not exist, or is not in a state that allows the request."""


class SupersededError(RunError):
    """A later worker has the run, so the one that asks may write nothing more there."""


class DeviceError(EngineError):
    """A device is missing, busy, or does not support the request."""


class GpuQuotaError(DeviceError):
    """No GPU is assigned because a quota is used up."""


class StorageError(EngineError):
    """A folder cannot be written, or the disk is full."""


@contextlib.contextmanager
def explain_os_errors(what: str, fix: str, error_class: type[EngineError] = StorageError) -> Iterator[None]:
    """Raise an OSError of the block as an EngineError: `what` with the system's reason in brackets, then `fix`."""
    try:
        yield
    except OSError as error:
        raise error_class(f"{what} ({error.strerror}).", fix) from error


class PushError(EngineError):
    """A result cannot be put on the Hub: it is refused, may not be shown, or the Hub does not answer."""


class AccountError(EngineError):
    """An account, an invitation or a session does not exist, or does not allow the request."""


class WorkerError(EngineError):
    """A process of ours ended, hung, or sent an invalid answer."""


class ClusterError(EngineError):
    """A cluster is not set up, or its scheduler refuses the request."""


class ClusterUnreachableError(ClusterError):
    """A cluster's scheduler did not answer."""
