"""An inspector under attack: how long it takes to answer, what its processes hold, and how others fare meanwhile."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.errors import EngineError
from loratory.engine.inspector.session import Inspector
from loratory.engine.paths import LoratoryHome
from tests.tiny_model import make_tiny_model

ROWS = 100
PEAK_BYTES = 2_000_000_000
# Tells an answer from a hang on a machine however busy. `tests.benchmarks.hostile_inputs` measures against the limits that a
# person would notice, 10 s for the answer and 2 s for others.
_HANGS_AFTER_SECONDS = 600.0

HostileFile = str | bytes | Callable[[Path], None]  # text, bytes, or what writes the file


@dataclass(frozen=True)
class Target:
    """An inspector that is attacked, and what must continue to work meanwhile."""

    inspector: Inspector
    dataset: DatasetConfig
    good_model: ModelConfig

    def preview(self, model: ModelConfig, count: int = 3) -> str:
        """Return what is wrong with the rows of a page."""
        page = self.inspector.preview(self.dataset, model, 64, count=count)
        return " ".join(row.problem or "" for row in page.rows)

    def good_page(self) -> None:
        """Ask for a page of the good model, which has nothing wrong with it."""
        page = self.inspector.preview(self.dataset, self.good_model, 64, count=3)
        assert all(row.sequences and not row.problem for row in page.rows)

    def wait_until_calm(self) -> None:
        """Wait until all data processes answer: what an earlier attack ended has then started again."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            self.good_page()
            started = [process._running for process in self.inspector._data.processes]
            if all(process is None or not process.is_alive or process.last_answer is not None for process in started):
                return
            time.sleep(0.05)


@contextmanager
def attacked_inspector(folder: Path) -> Iterator[Target]:
    """Start an inspector with a dataset and a good model, all below an empty folder."""
    home = LoratoryHome(folder / "home")
    home.make_writable()
    rows = [{"instruction": f"Question of row {n:03d}?", "output": f"Answer {n}."} for n in range(ROWS)]
    data = home.root / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ModelConfig(id=str(make_tiny_model(folder / "good-model")))
    target = Target(Inspector(home), DatasetConfig(source=str(data)), model)
    try:
        target.good_page()
        yield target
    finally:
        target.inspector.close()


def make_hostile_model(good: ModelConfig, folder: Path, **files: HostileFile) -> ModelConfig:
    """Copy the good model, with other files in it; `a__b_json` names `a/b.json`."""
    copy = folder / "hostile-model"
    shutil.copytree(good.id, copy)
    for name, content in files.items():
        path = copy / name.replace("__", "/").replace("_json", ".json").replace("_jinja", ".jinja")
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
    return ModelConfig(id=str(copy))


class Attack(NamedTuple):
    """What came of one hostile question."""

    message: str  # the error, or what the answer says
    seconds: float
    peak_bytes: int  # resident, of the largest process of the inspector
    waited_seconds: float  # the longest that a good question next to it took


def attack(inspector: Inspector, hostile: Callable[[], str], good: Callable[[], None]) -> Attack:
    """Ask something hostile, and good questions for as long as it is not answered, one at least."""
    answers: list[tuple[str, float]] = []
    start = time.monotonic()

    def request() -> None:
        try:
            message = hostile()
        except EngineError as error:
            message = str(error)
        answers.append((message, time.monotonic() - start))

    asking = threading.Thread(target=request, daemon=True)
    end = threading.Event()
    peaks: list[int] = [0]

    def watch() -> None:
        while not end.is_set():
            peaks.append(max(map(_resident_bytes, inspector.pids), default=0))
            end.wait(0.02)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    asking.start()
    longest_wait = 0.0
    while not longest_wait or asking.is_alive():
        before = time.monotonic()
        good()
        longest_wait = max(longest_wait, time.monotonic() - before)
        asking.join(0.05)
    end.set()
    watching.join()
    message, seconds = answers[0]
    return Attack(message, seconds, max(peaks), longest_wait)


def require_survived(came: Attack) -> None:
    """Fail where the attack hung, took the memory, or kept others waiting."""
    assert came.seconds < _HANGS_AFTER_SECONDS
    assert came.peak_bytes < PEAK_BYTES
    assert came.waited_seconds < _HANGS_AFTER_SECONDS / 3


def _resident_bytes(pid: int) -> int:
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
    return 0
