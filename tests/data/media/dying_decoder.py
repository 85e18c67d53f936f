"""A decoder that ends as those of damaged images do."""

import os
import signal
from pathlib import Path

from loratory.engine.processes.limits import DEADLINE_SIGNAL
from loratory.engine.processes.messages import serve


def store(params, _request):
    number = signal.SIGSEGV if Path(params["source"]).read_bytes() == b"dies" else DEADLINE_SIGNAL
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    serve({"store": store})
