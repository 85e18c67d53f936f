"""How quickly datasets are shown and checked: `python -m tests.benchmarks.data_reading [--folder DIR] [--small]`.

Makes a JSONL file of 1 GB (about a million rows) and a JSON array of 125 MB, then measures in fresh processes: the first
page and a jump, as the inspector's process answers them; the full check without and with token counts; peak memory of the
process that did it. The demo model's tokenizer counts where it is on this machine (`LORATORY_TEST_HOME`), else a small one.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil

from loratory.engine.config.run import DatasetConfig, ModelConfig
from loratory.engine.inspector.session import Inspector
from loratory.engine.models.prepared import DEMO_MODEL_ID, is_demo_prepared
from loratory.engine.paths import LoratoryHome

Answer = TypeVar("Answer")

MB = 1_000_000
LINES_BYTES = 1000 * MB
ARRAY_BYTES = 125 * MB
TOKENS_BYTES = 40 * MB  # checked with token counts; enough to be steady
WORDS = ("the", "rank", "of", "an", "adapter", "sets", "how", "much", "it", "can", "learn", "while", "data", "decides")


def main() -> None:
    """Make the files, measure, print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are made and kept; else they are removed")
    parser.add_argument("--small", action="store_true", help="a fiftieth of the sizes, to try the benchmark itself")
    arguments = parser.parse_args()
    scale = 50 if arguments.small else 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = make_file(folder / f"lines-{LINES_BYTES // scale}.jsonl", LINES_BYTES // scale)
        tokens_file = make_file(folder / f"lines-{TOKENS_BYTES // scale}.jsonl", TOKENS_BYTES // scale)
        array_file = folder / f"array-{ARRAY_BYTES // scale}.json"
        array = make_file(array_file, ARRAY_BYTES // scale, ",\n", ("[", "\n]\n"))
        measure(lines, array, tokens_file, Path(temporary))


def rows(seed: int = 0) -> Iterator[str]:
    """Question and answer rows of about a kilobyte, all different, as JSON."""
    draw = random.Random(seed)
    number = 0
    while True:
        text = " ".join(draw.choices(WORDS, k=150))
        yield json.dumps(
            {"instruction": f"Question {number}: {text[:150]}?", "input": "", "output": f"{text}\n\n{number}."}
        )
        number += 1


def make_file(path: Path, size_bytes: int, separator: str = "\n", ends: tuple[str, str] = ("", "\n")) -> Path:
    """Write a JSONL file of about that size; a JSON array, indented as people's tools write it, between brackets."""
    if not path.exists():
        written_bytes = 0
        with path.open("w") as file:
            file.write(ends[0])
            for row in rows(len(separator)):
                text = row if separator == "\n" else json.dumps(json.loads(row), indent=2)
                written_bytes += file.write(separator + text if written_bytes else text)
                if written_bytes >= size_bytes:
                    break
            file.write(ends[1])
    return path


def measure(lines: Path, array: Path, tokens_file: Path, temporary: Path) -> None:
    """Print the figures."""
    print(f"{os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
    model, models_home = tokenizer_at_hand(temporary)
    for name, path in (("JSONL", lines), ("JSON array", array)):
        with_inspector = Measured(fresh_home(temporary, models_home))
        dataset = DatasetConfig(source=str(path))
        size_mb = path.stat().st_size / MB
        print(f"\n{name}, {size_mb:,.0f} MB")
        print(f"  start of the process:{with_inspector.start_seconds:6.2f} s, once, with the server")
        seconds, page = with_inspector.time(lambda ask, d=dataset: ask.preview(d, count=10))
        print(f"  first page:          {seconds:6.2f} s, process at most {with_inspector.peak_mb():,.0f} MB")
        seconds, _ = with_inspector.time(lambda ask, d=dataset: ask.preview(d, model, 1024, count=10))
        print(
            f"  the same in tokens:  {seconds:6.2f} s, process at most {with_inspector.peak_mb():,.0f} MB (loads {model.id})"
        )
        middle = round(path.stat().st_size / 1100)  # more than half way: rows have about a kilobyte
        seconds, page = with_inspector.time(lambda ask, d=dataset, row=middle: ask.preview(d, first_row=row, count=10))
        print(f"  jump to row {middle:,}: {seconds:.2f} s the first time ({len(page.rows)} rows)")
        seconds, _ = with_inspector.time(
            lambda ask, d=dataset, row=middle: ask.preview(d, first_row=row // 2, count=10)
        )
        print(f"  jump half as far:    {seconds:6.2f} s")
        with_inspector.close()
        checking = Measured(fresh_home(temporary, models_home))
        seconds, report = checking.time(lambda ask, d=dataset: ask.check(d))
        print(
            f"  check without tokens:{seconds:6.1f} s, {size_mb / seconds:,.0f} MB/s, {report.rows:,} rows, "
            f"process at most {checking.peak_mb():,.0f} MB"
        )
        checking.close()
    checking = Measured(fresh_home(temporary, models_home))
    dataset = DatasetConfig(source=str(tokens_file))
    checking.time(lambda ask: ask.preview(dataset, model, 1024, count=1))  # the tokenizer is loaded once a session
    seconds, report = checking.time(lambda ask: ask.check(dataset, model, 1024))
    tokens = report.total_tokens or 0
    print(
        f"\ncheck with tokens of {model.id}: {seconds:.1f} s for {tokens_file.stat().st_size / MB:,.0f} MB, "
        f"{tokens / seconds:,.0f} tokens/s, {report.rows / seconds:,.0f} rows/s, process at most {checking.peak_mb():,.0f} MB"
    )
    checking.close()


class Measured:
    """An inspector whose process is watched."""

    def __init__(self, home: LoratoryHome) -> None:
        self._inspector = Inspector(home)
        self._inspector.start()
        start = time.perf_counter()
        self._inspector.preview(DatasetConfig(source="sample:lab-chats"), count=1)
        self.start_seconds = time.perf_counter() - start  # its imports are over

    def time(self, question: Callable[[Inspector], Answer]) -> tuple[float, Answer]:
        """Return the seconds that an answer takes, and the answer."""
        start = time.perf_counter()
        answer = question(self._inspector)
        return time.perf_counter() - start, answer

    def peak_mb(self) -> float:
        """Return the most memory that the process held so far; on systems that do not report it, what it holds now."""
        pid = self._inspector.pids[0]
        status = Path(f"/proc/{pid}/status")
        if status.exists():
            peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            return int(peak.split()[1]) * 1024 / MB
        return psutil.Process(pid).memory_info().rss / MB

    def close(self) -> None:
        self._inspector.close()


def fresh_home(temporary: Path, models_home: Path) -> LoratoryHome:
    """Make a home without caches, that has the models of another one."""
    root = Path(tempfile.mkdtemp(dir=temporary))
    home = LoratoryHome(root)
    home.make_writable()
    if models_home.is_dir():
        home.models.symlink_to(models_home, target_is_directory=True)
    return home


def tokenizer_at_hand(temporary: Path) -> tuple[ModelConfig, Path]:
    """Return the demo model where it is prepared, else a tiny model made here."""
    prepared = LoratoryHome(Path(os.environ.get("LORATORY_TEST_HOME") or LoratoryHome.from_environment().root))
    if is_demo_prepared(prepared):
        return ModelConfig(id=DEMO_MODEL_ID), prepared.models
    from tests.tiny_model import make_tiny_model

    return ModelConfig(id=str(make_tiny_model(temporary / "tiny-llama"))), prepared.models


if __name__ == "__main__":
    main()
