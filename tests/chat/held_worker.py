"""The chat's process, whose long answers wait after their first token while a file exists: a test sees them under way.

Started in place of `loratory.engine.chat.worker.main`, with the same argument; the file is `hold` in that home.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loratory.engine.chat.contract import ChatChunk
from loratory.engine.chat.worker.answer import Answer
from loratory.engine.chat.worker.main import ChatWorker
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.messages import serve

MODULE = "tests.chat.held_worker"
LONG_TOKENS = 100  # an answer of so many waits; shorter ones continue next to it
_POLL_SECONDS = 0.01


@contextmanager
def hold_worker(home: LoratoryHome) -> Iterator[Path]:
    """Hold long answers until the block ends; gives the file, for a test that lets them go earlier."""
    file = home.root / "hold"
    home.root.mkdir(parents=True, exist_ok=True)
    file.touch()
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def main(home: LoratoryHome) -> None:
    """Answer as the chat's process does."""
    advance, hold = Answer.advance, home.root / "hold"

    def advance_unless_held(self: Answer) -> ChatChunk | None:
        if self.tokens and self._rules.sampling.max_new_tokens >= LONG_TOKENS and hold.exists():
            time.sleep(_POLL_SECONDS)
            return None  # its turn passes
        return advance(self)

    Answer.advance = advance_unless_held  # type: ignore[method-assign]
    worker = ChatWorker(home)
    serve({"load": worker.load, "generate": worker.generate, "prompt": worker.prompt})


if __name__ == "__main__":
    main(LoratoryHome(Path(sys.argv[1])))
