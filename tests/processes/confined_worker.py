"""A worker for tests: computes in C code that holds the interpreter's lock, allocates, counts, answers."""

import os
import re
import time
from pathlib import Path

from loratory.engine.processes.limits import limited
from loratory.engine.processes.messages import JsonObject, Request, Steps, serve


def stick(params: JsonObject, request: Request) -> JsonObject:
    """Never end, and let no other thread run."""
    request.work_with("sticky")
    request.progress({"pid": os.getpid()})
    with limited(params["seconds"], 1 << 30):
        re.match(r"(.+)+$", "a" * 60 + "\nb")
    return {}


def allocate(params: JsonObject, request: Request) -> JsonObject:
    with limited(10, 256 << 20):
        return {"length": len("a" * params["bytes"])}


def count(params: JsonObject, request: Request) -> Steps:
    """Count to a number, or until there is a file."""
    for number in range(params["to"]):
        if request.is_cancelled() or ("until" in params and Path(params["until"]).exists()):
            break
        request.progress({"number": number})
        time.sleep(0.005)
        yield
    return {"pid": os.getpid()}


def echo(params: JsonObject, request: Request) -> JsonObject:
    return {"pid": os.getpid()}


if __name__ == "__main__":
    serve({"stick": stick, "allocate": allocate, "count": count, "echo": echo})
