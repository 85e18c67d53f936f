"""The process that trains: `python -P -m loratory.engine.training.worker RUN_DIR`.

It holds the run's lock for life and reports through the event log alone. Under Accelerate, torchrun or Slurm, the first
process does so for all.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from loratory.engine.errors import EngineError, StorageError, SupersededError, shorten
from loratory.engine.paths import LAB
from loratory.engine.processes.spawn import LIBRARY_ENVIRONMENT
from loratory.engine.runs.activity import reported_activity
from loratory.engine.runs.history.events import FailedData, StatusData
from loratory.engine.runs.history.log import EventWriter, forget_failures, note_failure, noted_failure
from loratory.engine.runs.provenance import home_of_run
from loratory.engine.runs.run import ATTEMPT_VARIABLE, RunFolder

EXIT_FINISHED = 0  # or stopped
EXIT_FAILED = 1  # the log has the reason
EXIT_USAGE = 2
EXIT_HELD_BY_ANOTHER = 3  # another worker has the run
EXIT_CANCELLED = 130

_ENVIRONMENT = {
    # Operations without a kernel on Apple's GPU run on the processor instead of ending the run.
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
}

# Options of mallopt, malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_INT = 2**31 - 1  # mallopt takes an int

_REPORT_SECONDS = 5.0  # a process that ran out of memory needs a moment to report it


def main(arguments: Sequence[str]) -> int:
    """Train the run in the folder that is named; returns the exit code."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python -P -m loratory.engine.training.worker RUN_DIR", file=sys.stderr)
        return EXIT_USAGE
    folder = RunFolder(Path(arguments[0]).resolve())
    if int(os.environ.get("RANK", "0")) > 0:
        _prepare_environment()
        attempt_text = os.environ.get(ATTEMPT_VARIABLE, "")
        return _attempt(folder, int(attempt_text) if attempt_text.isdecimal() else 0, None)
    try:
        claim = folder.claim()
    except EngineError as error:
        print(error, file=sys.stderr)
        return EXIT_HELD_BY_ANOTHER
    _prepare_environment()
    forget_failures(folder.path, claim.attempt)
    try:
        with (
            EventWriter(folder.events, claim.attempt, claim.require_current) as writer,
            reported_activity(folder, claim.attempt),
        ):
            return _attempt(folder, claim.attempt, writer)
    except SupersededError as error:
        print(error, file=sys.stderr)
        return EXIT_HELD_BY_ANOTHER


def _prepare_environment() -> None:
    """Apply settings that must precede the import of torch."""
    # A person's own settings of Accelerate, or its launcher's, would choose another precision, FSDP or DeepSpeed; and the
    # other is set below.
    for name in [name for name in os.environ if name.startswith("ACCELERATE_") or name == "USE_HUB_KERNELS"]:
        del os.environ[name]
    # Without it, memory that is free in pieces cannot serve a large tensor, and runs fail that would fit.
    if "PYTORCH_ALLOC_CONF" not in os.environ:  # its newer name; torch reads both
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # As `loratory.engine.processes.spawn` sets them; here for workers that a person or a cluster starts.
    for name, value in (LIBRARY_ENVIRONMENT | _ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    for name in ("is_gradient_checkpointing", "past_key_values"):  # transformers' earlier names, which PEFT still uses
        warnings.filterwarnings("ignore", f"`{name}` is deprecated", FutureWarning)


def keep_freed_memory() -> None:
    """Let large tensors on a CPU reuse memory that earlier ones freed, where the C library can.

    glibc maps every block beyond 32 MiB again and unmaps it when it is freed. The kernel then clears each page again, in
    every layer of every step, which costs a tenth of a training step.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it, such as musl
            mallopt = ctypes.CDLL(None).mallopt
            for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
                mallopt(option, _LARGEST_INT)


def _attempt(folder: RunFolder, number: int, writer: EventWriter | None) -> int:
    """Train; without a writer as one of several processes that is not the first."""
    if writer is not None:
        writer.append(StatusData(phase="loading_model", message="Starting."))
    keep_freed_memory()
    gc.disable()  # it would scan the objects of the imports again and again, a fifth of the import time
    try:
        from loratory.engine.training.failure import CancelledError, StopRequests, explain
        from loratory.engine.training.placement import MainProcessFailedError, ProcessGroup
        from loratory.engine.training.preparation import Attempt
        from loratory.engine.training.reporting import RunEvents
        from loratory.engine.training.session import TrainingSession
    except (ImportError, OSError, MemoryError) as error:
        traceback.print_exc()
        if writer is not None:
            reason = shorten(
                str(error).rpartition("/")[2] or type(error).__name__, 150
            )  # without the path of a library
            what = f"A library that training needs cannot be loaded ({reason})."
            fix = "Allow this process more memory (ulimit -v), or install Loratory again, then resume."
            writer.append(FailedData(cause="unexpected", what=what, fix=fix))
        return EXIT_FAILED

    gc.freeze()
    gc.enable()
    group = ProcessGroup.from_environment()
    requests = StopRequests(folder, group.world_size)
    requests.listen()
    events = RunEvents(writer, folder.path, requests)
    config, home = None, home_of_run(folder)
    if home.owner:  # this process resolves names as the lab does
        os.environ[LAB] = "1"
    try:
        config = folder.read_config()
        TrainingSession(Attempt(folder, home, config, number), events, requests).run()
    except CancelledError:
        events.last_memory()
        events.stopped("Cancelled.", "cancel")
        return EXIT_CANCELLED
    except SupersededError:
        raise
    except MainProcessFailedError:
        print("The first process failed and reports why.", file=sys.stderr)
        return EXIT_FAILED
    except BaseException as error:
        # The log gets the traceback, the event a sentence.
        traceback.print_exc()
        events.last_memory()
        failed = explain(error, config, home)
        if writer is None:
            note_failure(folder.path, group.rank, number, failed)
        else:
            with contextlib.suppress(StorageError):  # the disk is too full for the event itself
                writer.append(failed if group.world_size == 1 else _first_cause(failed, folder.path, number))
        return EXIT_FAILED
    finally:
        events.close()
    return EXIT_FINISHED


def _first_cause(failed: FailedData, run: Path, attempt: int) -> FailedData:
    """Return the failure that another process noted, where this one only lost the connection."""
    if failed.cause != "unexpected":
        return failed
    deadline = time.monotonic() + _REPORT_SECONDS
    while (record := noted_failure(run, attempt)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return record or failed


if __name__ == "__main__":
    exit_codes = [EXIT_FAILED]

    # Registered first, so called last. The interpreter would search all that was imported for garbage, for two seconds,
    # and the bindings of triton, which transformers loads, would list in the log what that leaves behind.
    @atexit.register
    def end_at_once() -> None:
        """End without tearing the interpreter down."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_codes[-1])

    exit_codes.append(main(sys.argv[1:]))
