"""Start our processes: argv as a list, a session of their own, output to a file, no secret unless it is for their work."""

import contextlib
import fcntl
import os
import re
import select
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from loratory.engine.errors import WorkerError, explain_os_errors, shorten

PRODUCT_CACHE_CAPACITY = 128
LIBRARY_ENVIRONMENT = {
    # How OpenMP's threads wait for each other, hundreds of times a step. By itself, in a busy loop: next to one other process
    # a step that took 1.4 s took 6 to 17 s. Asleep at once: each is woken late, on a virtual machine most of all. So they look
    # for a moment and then sleep. On two cores with AMX, trained tokens per second alone and next to
    # one busy process: 186 and 170 with a count of 1,000, 227 and 154 with this one, 269 and 96 with 10,000, 287 alone with
    # 100,000. GOMP_SPINCOUNT is read by GNU's OpenMP, torch's on Linux.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "2500",
    # On a CPU, 16-bit products are compiled for each size of batch. oneDNN and PyTorch each keep the newest 1,024 of them, up
    # to 600 MB, unless these say otherwise.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(PRODUCT_CACHE_CAPACITY),
    "LRU_CACHE_CAPACITY": str(PRODUCT_CACHE_CAPACITY),
    # bitsandbytes, which PEFT imports, compiles functions that neither CPU nor CUDA calls. Without it a worker starts a fifth
    # sooner: torch's compiler stays unloaded until `compile_layers` asks for it.
    "TORCHDYNAMO_DISABLE": "1",
    # transformers from 5.25 on would download compiled kernels from the Hub and run them: code of others, not reviewed
    # here, and in place of the kernels that `loratory.engine.training.kernels` has compared.
    "USE_HUB_KERNELS": "0",
}

# The system, the user and their language; Python; the way to the network; where models and data are kept, and whether the
# Hub may be asked.
_PASSED_VARIABLES = frozenset(
    """
    PATH HOME USER LOGNAME SHELL LANG LANGUAGE TZ TERM TMPDIR TEMP TMP XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME
    XDG_RUNTIME_DIR VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH LD_PRELOAD DYLD_LIBRARY_PATH DYLD_FALLBACK_LIBRARY_PATH

    PYTHONPATH PYTHONHOME PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX PYTHONIOENCODING PYTHONUTF8
    PYTHONHASHSEED PYTHONNOUSERSITE PYTHONWARNINGS PYTHONMALLOC

    HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE

    HF_HOME HF_ENDPOINT HF_ASSETS_CACHE HUGGINGFACE_HUB_CACHE HUGGINGFACE_ASSETS_CACHE HF_HUB_DISABLE_IMPLICIT_TOKEN
    TRANSFORMERS_OFFLINE TRANSFORMERS_CACHE TRANSFORMERS_VERBOSITY DATASETS_VERBOSITY DO_NOT_TRACK
    USE_TORCH LRU_CACHE_CAPACITY HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES
    """.split()
)
# Our own, of languages, of the Hub's libraries, and of the libraries that compute.
_PASSED_PREFIXES = tuple(
    """
    LORATORY_ LC_ HF_HUB_ HF_XET_ HF_DATASETS_ TOKENIZERS_ RAYON_ ARROW_ BNB_ ACCELERATE_
    CUDA_ CUDNN_ CUBLAS_ NVIDIA_ NCCL_ GLOO_ TORCH_ TORCHINDUCTOR_ PYTORCH_ TRITON_
    OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ NUMEXPR_ VECLIB_ MALLOC_ ONEDNN_
    """.split()
)
_SECRET_WORD = re.compile(
    r"(^|_)(API)?(TOKENS?|KEYS?|SECRETS?|PASS|PASSWORD|PASSWD|CREDENTIALS?|AUTH)(_|$)", re.IGNORECASE
)
# huggingface_hub finds a login in a file as well.
_NO_HUB_LOGIN = {"HF_TOKEN_PATH": os.devnull, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


class Access(Enum):
    """What a process may log in to; the secrets for it stand in the variables whose names match."""

    HUB = re.compile(r"HF_TOKEN|HUGGING_FACE_HUB_TOKEN|HF_TOKEN_PATH|HF_STORED_TOKENS_PATH")
    WANDB = re.compile(r"WANDB_.*")
    TRACKIO = re.compile(r"TRACKIO_.*")
    PACKAGE_INDEX = re.compile(r"PIP_.*")


def environment_for(access: Collection[Access], source: Mapping[str, str] | None = None) -> dict[str, str]:
    """Choose what a process gets of an environment, ours by default: no secrets but those for its `access`."""

    def is_passed(name: str) -> bool:
        if name in _PASSED_VARIABLES or any(member.value.fullmatch(name) for member in access):
            return True
        return name.startswith(_PASSED_PREFIXES) and _SECRET_WORD.search(name) is None

    variables = {name: value for name, value in (os.environ if source is None else source).items() if is_passed(name)}
    return variables if Access.HUB in access else variables | _NO_HUB_LOGIN


def allocator_environment() -> dict[str, str]:
    """Return how glibc allocates in a process that trains, unless the person set it; read as the process starts.

    An aligned tensor leaves scraps of its block. A thread's cache keeps freed scraps apart instead of joining them with their
    neighbours, so holes serve no tensor of their size, and the heap grows with each new length of rows. Other processes keep
    the cache, as it makes tokenizing 7% faster.
    """
    name = "GLIBC_TUNABLES"
    return {name: os.environ.get(name, "glibc.malloc.tcache_count=0")}


def has_hub_login() -> bool:
    """Whether there is a token for the Hub here, in the environment or where `hf auth login` puts it."""
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return True
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_TOKEN_PATH") or Path(cache) / "token").expanduser().is_file()


def give_up_access(access: Access) -> None:
    """Remove the secrets for something from this process's own environment, once it has been talked to."""
    for name in filter(access.value.fullmatch, list(os.environ)):
        del os.environ[name]
    if access is Access.HUB:
        os.environ.update(_NO_HUB_LOGIN)


def worker_argv(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """Command line of one of our modules, run by this very Python; `-P` keeps the current folder off `sys.path`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def spawn(
    argv: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str] | None = None,
    access: Collection[Access] = (),
    answers: bool = False,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that outlives us: own session, no inherited handles, stdout and stderr appended to `log_file`.

    Args:
        log_file: Takes stderr, and stdout unless the process answers.
        environment: Variables in addition to those that `environment_for` passes on.
        access: What it may log in to; no other secret of ours reaches it.
        answers: Whether it has pipes for requests on stdin and answers on stdout.

    Raises:
        WorkerError: If the process cannot be started.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    cap_log(log_file)
    with (
        explain_os_errors(
            f"The process {argv[-1]} could not be started",
            "Free some memory or close other programs, then try again.",
            WorkerError,
        ),
        log_file.open("ab") as log,
    ):
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE if answers else subprocess.DEVNULL,
            stdout=subprocess.PIPE if answers else log,
            stderr=log,
            env={**LIBRARY_ENVIRONMENT, **environment_for(access), **(environment or {})},
            start_new_session=True,
            close_fds=True,
            pass_fds=pass_fds,
        )


def cap_log(log: Path, most_bytes: int = 20_000_000) -> bool:
    """Keep the newest quarter of a log that grew too long; returns whether it was cut.

    The worker appends, and continues behind the new end. A line that it writes in this very moment may be lost.
    """
    try:
        if log.stat().st_size <= most_bytes:
            return False
        with log.open("r+b") as file:
            file.seek(-most_bytes // 4, os.SEEK_END)
            tail = file.read()
            file.seek(0)
            file.write(b"(earlier output was removed)\n" + tail[tail.find(b"\n") + 1 :])
            file.truncate()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Launcher:
    """A command that starts a process on another machine, and passes stdin, stdout and signals on."""

    command: tuple[str, ...]  # with the Python of that machine as its last word
    mark: str  # how a line of the log begins that has the reason of a failure

    def cause(self, log_file: Path, begins: int) -> str:
        """Return the last reason that it wrote after so many bytes of a log, in brackets; empty where it wrote none."""
        with contextlib.suppress(OSError), log_file.open("rb") as file:
            file.seek(begins)
            lines = file.read(_READ_OF_LOG_BYTES).decode(errors="replace").splitlines()
            reasons = [line.removeprefix(self.mark) for line in lines if line.startswith(self.mark)]
            if reasons:
                return f"ended ({shorten(reasons[-1], 200)})"
        return ""


LIFE_LINE = "LORATORY_LIFE_LINE"
_READ_OF_LOG_BYTES = 1_000_000


def spawn_helper(
    argv: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str],
    access: Collection[Access],
    launcher: Launcher | None = None,
) -> tuple[subprocess.Popen[bytes], int | None]:
    """Start a process that is asked over stdin, answers on stdout and ends with us.

    It ends even where we are killed and it is stuck in C code: it has one end of a pipe to which nothing is ever written.
    The kernel closes our end when we end in any way, and then sends the helper a signal that ends it; neither Python
    nor the interpreter's lock takes part.

    Args:
        launcher: Starts it on another machine, where only the end of its stdin reaches it.

    Returns:
        The process, and our end of that pipe, to be closed once it has ended.

    Raises:
        WorkerError: If the process cannot be started.
    """
    if launcher is not None:
        argv = [*launcher.command, *argv[1:]]
    read_end, write_end = (None, None) if launcher is not None else os.pipe()
    try:
        process = spawn(
            argv,
            log_file=log_file,
            environment=environment if read_end is None else {**environment, LIFE_LINE: str(read_end)},
            access=access,
            answers=True,
            pass_fds=() if read_end is None else (read_end,),
        )
    except WorkerError:
        if write_end is not None:
            os.close(write_end)
        raise
    finally:
        if read_end is not None:
            os.close(read_end)
    return process, write_end


def end_with_asker() -> None:
    """Arrange in a worker that it ends with its asker; does nothing where it was started without such a pipe."""
    name = os.environ.pop(LIFE_LINE, None)
    if name is None:
        return
    end = int(name)
    with contextlib.suppress(OSError):
        os.set_inheritable(end, False)
        _signal_when_closed(end, os.getpid())
        closed = select.poll()
        closed.register(end, select.POLLIN)
        if closed.poll(0):  # it was gone before
            os._exit(0)


def end_children_with_us() -> None:
    """Arrange in a process with a session of its own that children which it forks end with it, in whichever way it ends.

    They have the far end of a pipe that only this process holds open; the kernel signals its group, of which they alone
    are left. They also get no stdin: multiprocessing closes it in a child, which hangs where a thread here reads it.
    """
    if os.getpgrp() != os.getpid():
        return
    read_end, write_end = os.pipe()
    _signal_when_closed(read_end, -os.getpgrp())
    stdin = sys.stdin  # referred to, or the child would close it as well

    def in_child() -> None:
        os.close(write_end)
        sys.stdin = None if stdin is not None else stdin

    os.register_at_fork(after_in_child=in_child)


def _signal_when_closed(end: int, process: int) -> None:
    """Let the kernel send SIGIO, which ends a process, once the other end of a pipe is closed; a group where negative."""
    fcntl.fcntl(end, fcntl.F_SETOWN, process)
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)
