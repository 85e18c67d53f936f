"""Heavy worker processes without their seconds of imports: they are forked from one process that has imported everything.

A forked worker has read and computed nothing of a model more than a new one, and is in every respect a process of its own:
a child of the test's, with its own session, descriptors, environment and exit code. A worker whose environment could have
changed what an import does is started again, and so is each one that a `loratory` command or a server started by a test needs.

Run as a script, this file serves; imported, it is the client.
"""

import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import re
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from loratory.engine.chat import session as chat
from loratory.engine.evaluation import job as evaluation
from loratory.engine.export import job as export
from loratory.engine.inspector import session as inspector
from loratory.engine.runs import job as training
from loratory.engine.runs.run import RUN_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = sys.executable  # tests put other programs in its place
WORKERS = (
    chat.WORKER_MODULE,
    evaluation.WORKER_MODULE,
    export.WORKER_MODULE,
    inspector.MODELS_WORKER_MODULE,
    training.WORKER_MODULE,
)
# Workers of tests that share their steps, see `tests.training.forked_ranks`.
RANKS = (
    "tests.training.faulty_rank",
    "tests.training.sharded_ranks",
    "tests.training.two_ranks",
)
HELD_CHAT = "tests.chat.held_worker"
# Workers of tests that import little, whatever their environment; there are hundreds.
LIGHT = (
    "tests.processes.answering_worker",
    "tests.processes.confined_worker",
    "tests.processes.interleaving_worker",
    "tests.supervision.fake_worker",
)
# What each fork server imports, and may fork: data workers never see torch, servers without a page even less.
KINDS = {
    "heavy": (*WORKERS, *RANKS, HELD_CHAT),
    "data": (inspector.DATA_WORKER_MODULE,),
    "light": LIGHT,
    "supervisor": ("tests.faults.server",),
}

_RUNS_MODULE = re.compile(r"runpy\.run_module\('([\w.]+)', run_name='__main__'\)$")
_MOST_BYTES = 1 << 18  # of one order
_MOST_DESCRIPTORS = 16
# At once, of each kind: memory for one after the other. The one that was not asked for longest ends.
_MOST_SERVERS = {"heavy": 3, "data": 2, "light": 1, "supervisor": 2}
_FIRST_FREE_DESCRIPTOR = 200  # above those that a worker is given
_SET_CHILD_SUBREAPER = 36  # of prctl
# Imports read them; most workers have them, those of a training give them to themselves.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# Variables that no import reads, so a worker's may differ from its server's.
_READ_LATE = (
    *_QUIET,
    "LORATORY_", "TOKENIZERS_PARALLELISM", "CUDA_DEVICE_ORDER", "PYTHONUNBUFFERED", "HOME", "TMPDIR", "GLIBC_",
    "PYTEST_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_",
)  # fmt: skip

# The address of a stand-in, which one test has: a server would have imported everything for a single worker.
_OF_ONE_TEST = "HF_ENDPOINT"

Environment = dict[str, str]
Key = tuple[str, frozenset[tuple[str, str]]]  # a kind, and the variables that imports may read


class ForkServer:
    """A process that has imported what heavy workers need, and forks them.

    Args:
        environment: The variables that it starts with.
        kind: One of `KINDS`.
    """

    def __init__(self, environment: Environment, kind: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = {**environment, **_QUIET, "PYTHONPATH": str(REPOSITORY)}
        self._process = subprocess.Popen(
            [PYTHON, "-P", __file__, str(theirs.fileno()), kind],
            env={
                name: value for name, value in own.items() if name != RUN_VARIABLE
            },  # it outlives the run that came first
            cwd=REPOSITORY,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()

    def fork(self, argv: list[str], environment: Environment, descriptors: dict[int, int]) -> int:
        """Start a worker as a child of this process.

        Args:
            argv: Its command line.
            environment: All of its variables.
            descriptors: What it gets, by the number that it gets it under.

        Returns:
            Its process id.
        """
        order = {
            "module": _module_of(argv),
            "arguments": argv[4:],
            "environment": environment,
            "folder": str(Path.cwd()),
            "targets": list(descriptors),
        }
        _adopt_orphans(True)  # the process between the server and the worker ends at once
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], list(descriptors.values()))
            return int(self._socket.recv(_MOST_BYTES))
        finally:
            _adopt_orphans(False)

    def close(self) -> None:
        """End the server; workers live on."""
        with suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)  # whatever this process forked may still have our end open
        self._socket.close()
        self._process.wait()


class ForkServers:
    """One server for each environment in which imports could differ; each starts when it is first needed.

    Args:
        one_test: The variable that names a stand-in of one test, whose environment gets a server when it comes again.
    """

    def __init__(self, one_test: str | None = _OF_ONE_TEST) -> None:
        self._one_test = one_test
        self._servers: dict[Key, ForkServer] = {}  # the one that forked last comes last
        self._met: set[Key] = set()  # keys of one test that were asked for
        self._lock = threading.Lock()  # one worker at a time

    def fork(self, argv: list[str], environment: Environment, descriptors: dict[int, int]) -> int | None:
        """Start a worker and return its process id; None where only a new process will do."""
        module = _module_of(argv)
        kind = next((kind for kind, modules in KINDS.items() if module in modules), None)
        # A server finds modules in the repository alone, and has imported them.
        finds_others = kind != "light" and environment.get("PYTHONPATH", str(REPOSITORY)) != str(REPOSITORY)
        if kind is None or finds_others or (environment.get("CUDA_VISIBLE_DEVICES") and kind != "light"):
            return None
        early = frozenset(
            (name, value)
            for name, value in environment.items()
            if kind != "light" and not name.startswith((*_READ_LATE, "PYTHONPATH"))
        )
        key = kind, early
        with self._lock:
            server = self._servers.pop(key, None)
            if server is None:
                if self._one_test is not None and self._one_test in environment and key not in self._met:
                    self._met.add(key)
                    return None
                matching = [other for other in self._servers if other[0] == kind]
                if len(matching) == _MOST_SERVERS[kind]:
                    self._servers.pop(matching[0]).close()
                server = ForkServer(environment, kind)
            self._servers[key] = server
            return server.fork(argv, environment, descriptors)

    def close(self) -> None:
        """End all servers."""
        for server in self._servers.values():
            server.close()


def _module_of(argv: list[str]) -> str:
    """Return the module that a command line of this Python runs, by its name or in a script; empty where it is another."""
    if argv[:2] != [PYTHON, "-P"] or len(argv) < 4:
        return ""
    if argv[2] == "-m":
        return argv[3]
    match = _RUNS_MODULE.search(argv[3]) if argv[2] == "-c" else None
    return match[1] if match else ""


@contextmanager
def forking_workers(one_test: str | None = _OF_ONE_TEST) -> Iterator[None]:
    """Fork heavy workers wherever this process starts one with `subprocess`; the argument is that of `ForkServers`."""
    if sys.platform != "linux":
        yield
        return
    servers = ForkServers(one_test)
    original = subprocess._fork_exec  # type: ignore[attr-defined]

    def fork_exec(*arguments: Any) -> int:
        argv = [os.fsdecode(word) for word in arguments[0]]
        kept_descriptors, folder, variables, failure = arguments[3], arguments[4], arguments[5] or (), arguments[13]
        if not variables or (folder is not None and os.fsdecode(folder) != str(Path.cwd())):
            return original(*arguments)
        environment = dict(os.fsdecode(variable).split("=", 1) for variable in variables)
        standard = dict(enumerate((arguments[6], arguments[9], arguments[11])))
        descriptors = {
            number: number if descriptor == -1 else descriptor for number, descriptor in standard.items()
        }  # -1 inherits ours
        pid = servers.fork(
            argv, environment, descriptors | {number: number for number in kept_descriptors if number != failure}
        )
        return original(*arguments) if pid is None else pid

    subprocess._fork_exec = fork_exec  # type: ignore[attr-defined]
    yield
    subprocess._fork_exec = original  # type: ignore[attr-defined]
    servers.close()


def _adopt_orphans(do: bool) -> None:
    """Make processes below this one its children when their parents end."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, int(do), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _import_kind(kind: str) -> None:
    """Import what processes of a kind need, also what they import late; each itself is later run as a program."""
    gc.disable()  # until everything is there: it would pass over the objects of the imports again and again
    modules = (*WORKERS, "loratory.engine.training.session") if kind == "heavy" else KINDS[kind]
    for module in modules:
        importlib.import_module(module)
    if kind == "data":
        with sys.modules[inspector.DATA_WORKER_MODULE].torch_hidden():
            importlib.import_module("loratory.engine.inspector.worker.load_tokenizer")
    elif kind == "heavy":
        importlib.import_module("transformers.models.llama.modeling_llama")  # of nearly all models in tests
        # The table of all families that transformers makes for a process' first model: constants, with thousands of patterns.
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
    for module in KINDS[kind]:
        sys.modules.pop(module, None)


def _serve(server: socket.socket) -> None:
    gc.freeze()
    gc.enable()
    while True:
        message, descriptors, _, _ = socket.recv_fds(server, _MOST_BYTES, _MOST_DESCRIPTORS)
        if not message:
            return
        ours, theirs = os.pipe()
        parent = os.fork()
        if parent == 0:
            worker = os.fork()
            if worker == 0:
                server.detach()
                _become_worker(json.loads(message), descriptors)
                return
            os.write(theirs, str(worker).encode())
            os._exit(0)
        os.waitpid(parent, 0)
        server.send(os.read(ours, 100))
        for descriptor in (ours, theirs, *descriptors):
            os.close(descriptor)


def _become_worker(order: dict[str, Any], descriptors: list[int]) -> None:
    os.setsid()
    values = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _FIRST_FREE_DESCRIPTOR) for descriptor in descriptors]
    os.closerange(3, _FIRST_FREE_DESCRIPTOR)
    for target, descriptor in zip(order["targets"], values, strict=True):
        os.dup2(descriptor, target)
    os.closerange(_FIRST_FREE_DESCRIPTOR, _FIRST_FREE_DESCRIPTOR + _MOST_DESCRIPTORS)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [order["module"], *order["arguments"]]
    random.seed()
    np.random.seed()  # torch begins with the same seed in every process
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _import_kind(sys.argv[2])
    _serve(socket.socket(fileno=int(sys.argv[1])))
