"""A worker for tests: answers, fails, prints where it should not, dies and hangs when told to."""

import os
import signal
import sys
import time

from loratory.engine.errors import ConfigError, DatasetError, Problem
from loratory.engine.processes.messages import JsonObject, Request, serve


def echo(params: JsonObject, request: Request) -> JsonObject:
    print("a library prints")
    os.write(1, b"and another writes to the raw descriptor\n")
    return {"echo": params, "pid": os.getpid()}


def environment(params: JsonObject, request: Request) -> JsonObject:
    return {"environment": dict(os.environ)}


def fail(params: JsonObject, request: Request) -> JsonObject:
    if params["how"] == "dataset":
        raise DatasetError("The file is empty.", "Choose another.")
    if params["how"] == "config":
        raise ConfigError([Problem("a.b", "it is 1."), Problem("c.d", "it is 2.")])
    raise KeyError("/home/somebody/secret")


def die(params: JsonObject, request: Request) -> JsonObject:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leave_child(params: JsonObject, request: Request) -> JsonObject:
    """Leave a child that keeps the pipe open for a moment, as data loaders do."""
    if os.fork() == 0:
        time.sleep(0.6)
        os._exit(0)
    return {"pid": os.getpid()}


def wait(params: JsonObject, request: Request) -> JsonObject:
    while not request.is_cancelled():
        request.progress({"waits": True})
        time.sleep(0.02)
    return {"cancelled": True}


def be_silent(params: JsonObject, request: Request) -> JsonObject:
    """One word, and no look at whether anybody still wants more."""
    request.progress({"begun": True})
    time.sleep(params["seconds"])
    return {}


if __name__ == "__main__":
    print("started", sys.argv[1:], file=sys.stderr, flush=True)
    serve(
        {
            "echo": echo,
            "environment": environment,
            "fail": fail,
            "die": die,
            "wait": wait,
            "leave_child": leave_child,
            "be_silent": be_silent,
        }
    )
