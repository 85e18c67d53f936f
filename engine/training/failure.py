"""Why a run ends: errors with their cause and fix, and requests of people and the system."""

import errno
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Literal

import torch

from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, DatasetError, DeviceError, EngineError, ModelError, shorten
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.history.events import FailedData, StoppedBy
from loratory.engine.runs.prediction import advice_on_memory
from loratory.engine.runs.run import RunFolder
from loratory.engine.training import faults

_CAUSES: Mapping[type[EngineError], Literal["config", "dataset", "model", "unexpected"]] = {
    ConfigError: "config",
    DatasetError: "dataset",
    ModelError: "model",
    DeviceError: "config",
    EngineError: "unexpected",
}
# Messages of libraries that have no exception for memory that ran out.
_OUT_OF_MEMORY_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "defaultcpuallocator",
    "not enough memory",
    "failed to allocate",
    "cublas_status_alloc_failed",
    "could not create a primitive",  # oneDNN, where it cannot map memory for a kernel
)
_DIVERGENCE_FIX = "Lower the learning rate to a third, or warm up longer; the last checkpoint before it is kept."
_DISK_FULL_PHRASES = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122")


class DivergedError(EngineError):
    """The loss is NaN or infinite, or rises without bound."""


class CancelledError(BaseException):
    """The run must end at once.

    A signal raises it in the middle of anything, also of code that catches every `Exception`.
    """


def check_loss(step: int, loss: float, grad_norm: float | None, first_loss: float, vocabulary: int | None) -> None:
    """End a run that cannot recover.

    A model that guesses evenly has a loss of ln(vocabulary). Two nats above that, and above twice where the run began, it
    is confidently wrong about everything. Losses over preferences, without a vocabulary, have no such bound.

    Raises:
        DivergedError: If the loss is not finite, or beyond that bound.
    """
    if not math.isfinite(loss):
        what = f"The loss became {loss} at step {step}: the weights are NaN or infinite."
    elif grad_norm is not None and not math.isfinite(grad_norm):
        what = (
            f"The gradient became {grad_norm} at step {step}, although the loss was {loss:.3f}: the weights are NaN or "
            "infinite."
        )
    elif vocabulary is not None and loss > max(math.log(vocabulary) + 2.0, 2.0 * first_loss):
        what = (
            f"The loss rose to {loss:.2f} at step {step}, from {first_loss:.2f} at the beginning; even guessing gives "
            f"{math.log(vocabulary):.2f}."
        )
    else:
        return
    raise DivergedError(what, _DIVERGENCE_FIX)


def check_held_out(step: int, loss: float) -> None:
    """End a run whose held-out loss shows NaN or infinite weights; it may be measured where no step is logged.

    Raises:
        DivergedError: If the loss is not finite.
    """
    if math.isfinite(loss):
        return
    if step == 0:
        fix = "Set model.compute_dtype to float32 and model.attn_implementation to eager, or choose another model."
        raise DivergedError(f"The held-out loss of the base model is {loss}, before anything was trained.", fix)
    what = f"The held-out loss became {loss} at step {step}: the weights are NaN or infinite."
    raise DivergedError(what, _DIVERGENCE_FIX)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the device or in RAM."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and _mentions(error, _OUT_OF_MEMORY_PHRASES)


def is_disk_full(error: BaseException) -> bool:
    """Return whether the disk or the person's share of it was full; also where only a library's message says so."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)) or _mentions(
            cause, _DISK_FULL_PHRASES
        ):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _mentions(error: BaseException, phrases: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(phrase in text for phrase in phrases)


def explain(error: BaseException, config: RunConfig | None, home: LoratoryHome | None = None) -> FailedData:
    """Describe what happened, and what to do about it.

    The configuration is missing where it could not be read. Without a home, where the memory estimate finds the model's
    modules, advice on memory is general.
    """
    if isinstance(error, DivergedError):
        return FailedData(cause="diverged", what=error.what, fix=error.fix)
    if is_out_of_memory(error):
        return _out_of_memory(error, config, home)
    if is_disk_full(error):
        fix = "Free some space, then resume; earlier checkpoints are intact."
        return FailedData(cause="disk_full", what="The disk is full.", fix=fix)
    if isinstance(error, EngineError):
        cause = next(cause for kind, cause in _CAUSES.items() if isinstance(error, kind))
        return FailedData(cause=cause, what=error.what, fix=error.fix)
    line = next(iter(str(error).strip().splitlines()), "")
    line = shorten(line, 200)
    what = f"Something unexpected happened ({type(error).__name__}: {line})."
    fix = "The end of worker.log shows where; if the settings look right, please report it."
    return FailedData(cause="unexpected", what=what, fix=fix)


def _out_of_memory(error: BaseException, config: RunConfig | None, home: LoratoryHome | None) -> FailedData:
    text = str(error).lower()
    where = "GPU" if isinstance(error, torch.OutOfMemoryError) or "cuda" in text else "machine"
    advice = "See `loratory estimate` for what would make it fit."
    if config is not None:
        estimated = advice_on_memory(config, home) if home is not None else None
        advice = estimated or f"{_smaller(config)} `loratory estimate` shows what helps most."
    what = f"The {where} ran out of memory."
    if "mps" in text:  # "MPS backend out of memory (MPS allocated: …, max allowed: …)"
        what = "Apple's GPU ran out of memory, which it shares with all programs."
        advice = f"{advice} Closing other programs helps as well."
    return FailedData(cause="out_of_memory", what=what, fix=advice)


def _smaller(config: RunConfig) -> str:
    training = config.training
    if training.per_device_train_batch_size > 1:
        rows = training.per_device_train_batch_size
        accumulate = math.ceil(rows * training.gradient_accumulation_steps / (rows // 2))
        return (
            f"Set per_device_train_batch_size to {rows // 2} and gradient_accumulation_steps to {accumulate}: the same "
            "result in smaller passes."
        )
    if not training.gradient_checkpointing and config.adapter.traits.gradient_checkpointing:
        return "Switch gradient_checkpointing on: a third slower, and far less memory."
    return f"Set max_length to {max(8, training.max_length // 2)}: the longest rows need the most memory."


# Launchers and schedulers deliver one request more than once: to a process, to its group, to the job.
REPEAT_SECONDS = 5.0


class StopRequests:
    """Requests to save and end, or to end at once.

    A first SIGTERM or SIGINT requests to save and end, as `control/stop` does. Another one within five seconds is the same
    request; a later one ends at once. Where a launcher started several processes, every further SIGTERM is the launcher's:
    it kills after its own timeout.
    """

    def __init__(self, folder: RunFolder, world_size: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._has_launcher = world_size > 1
        self._clock = clock
        self._signalled: signal.Signals | None = None
        self._first = 0.0
        self._cancelled = False

    @property
    def stopped_by(self) -> StoppedBy:
        """Return who requested it."""
        if self._signalled is None:
            return "request"
        return "sigterm" if self._signalled == signal.SIGTERM else "sigint"

    @property
    def reason(self) -> str:
        """Return the request as a sentence."""
        return f"The system asked to end ({self._signalled.name})." if self._signalled else "Stopped on request."

    def listen(self) -> None:
        """Handle signals from now on; only in the main thread."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_signal)
            signal.signal(signal.SIGINT, self._on_signal)

    def stop_wanted(self) -> bool:
        """Return whether the run must save what it has and end. Cheap enough for every step."""
        return self._signalled is not None or self._folder.stop_request.exists()

    def check_cancel(self) -> None:
        """Return unless the run must end at once. Cheap enough for every pass through the model.

        Raises:
            CancelledError: If it must.
        """
        if self._folder.cancel_request.exists():
            raise CancelledError

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signalled is None:
            self._signalled, self._first = signal.Signals(number), self._clock()
            return
        is_repeated = self._clock() - self._first < REPEAT_SECONDS or faults.is_armed("signal:repeated")
        is_the_launchers = self._has_launcher and number == signal.SIGTERM
        if not (is_repeated or is_the_launchers or self._cancelled):
            self._cancelled = True
            raise CancelledError
