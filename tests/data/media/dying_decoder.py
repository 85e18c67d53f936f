"""A decoder that ends as those of damaged images do."""

import os
import signal
from pathlib import Path

from loratory.engine.processes.limits import DEADLINE_SIGNAL
from loratory.engine.processes.messages import serve


def store(params, _request):
    data = Path(params["source"]).read_bytes()
    ended_before = Path(params["source"]).with_name("ended-before")
    if data == b"is ended" and ended_before.exists():
        return {"problem": "it is a text"}
    ended_before.touch()
    os.kill(os.getpid(), {b"dies": signal.SIGSEGV, b"is ended": signal.SIGKILL}.get(data, DEADLINE_SIGNAL))
    raise AssertionError("the signal was ignored")


if __name__ == "__main__":
    serve({"store": store})
