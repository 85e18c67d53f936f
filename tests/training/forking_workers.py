"""Real workers in real processes, many of them, without importing torch for each: they are forked from one that has.

What is forked has imported everything and computed nothing, so that it is as good as a fresh process, and can be killed
as one. Run as a script it serves; imported, it is the client.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class ForkingWorkers:
    """Starts training workers; close it at the end."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.training.forking_workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, run: Path, fault: str = "") -> int:
        """Begin an attempt at a run; returns the process id."""
        return int(self._ask({"start": str(run), "fault": fault}))

    def wait(self, pid: int) -> int:
        """Exit code of an attempt; negative for a signal."""
        return int(self._ask({"wait": pid}))

    def run(self, run: Path, fault: str = "") -> int:
        """An attempt from beginning to end; returns its exit code."""
        return self.wait(self.start(run, fault))

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def _ask(self, question: dict[str, object]) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import engine.training.session  # noqa: F401 - the import that takes seconds
    from engine.training import worker

    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = os.fork()
            if answer == 0:
                _be_a_worker(worker, question["start"], question["fault"])
        else:
            _, status = os.waitpid(question["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        answers.write(f"{answer}\n")
        answers.flush()


def _be_a_worker(worker, run: str, fault: str) -> None:
    if fault:
        os.environ["LORATORY_TEST_FAULT"] = fault
    os.setsid()
    log = os.open(Path(run) / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = worker.EXIT_FAILED
    try:
        code = worker.main([run])
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
