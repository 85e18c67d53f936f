"""Datasets checked in a process of their own, with what each took in time and memory."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loratory.engine.data.contract import DatasetReport

MAX_SECONDS = 5.0
MAX_GROWN_BYTES = 500 << 20
# Of kinds that a library unpacks, within the kernel's limit on each step.
MAX_UNPACKED_BYTES = 1200 << 20
MAX_UNPACK_SECONDS = 12.0


@dataclass(frozen=True)
class Reading:
    """What came of one file.

    Args:
        report: Where it was read.
        what: Where it was refused, and `fix` next to it.
        seconds: Of the processor, so what runs next to a test does not count.
        grown_bytes: The most that the process held beyond what it held before.
    """

    report: DatasetReport | None
    what: str
    fix: str
    seconds: float
    grown_bytes: int


def read_measured(paths: Mapping[str, Path]) -> dict[str, Reading]:
    """Check every file in one process, one after the other."""
    # Arrow's allocator gives memory back some milliseconds later, or not before the peak: at once, it is what is held.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "MIMALLOC_PURGE_DELAY": "0"}
    request = json.dumps({name: str(path) for name, path in paths.items()})
    process = subprocess.run(
        [sys.executable, "-m", "tests.data.measured_reading"],
        input=request.encode(), env=environment, capture_output=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    answers = json.loads(process.stdout)
    return {
        name: Reading(
            DatasetReport.model_validate_json(answer["report"]) if answer["report"] else None,
            *(answer[key] for key in ("what", "fix", "seconds", "grown_bytes")),
        )
        for name, answer in answers.items()
    }


def _main() -> None:
    import time

    import psutil
    import pyarrow.parquet  # noqa: F401  # its memory belongs to no case

    from loratory.engine.config.run import DatasetConfig
    from loratory.engine.data.passes.check import check_steps, finish
    from loratory.engine.data.source import SourceOptions
    from loratory.engine.errors import DatasetError
    from loratory.engine.processes.limits import peak_process_bytes

    answers = {}
    for name, path in json.load(sys.stdin).items():
        _forget_peak()
        before, start = psutil.Process().memory_info().rss, time.process_time()
        report = what = fix = ""
        try:
            report = finish(check_steps(DatasetConfig(source=path), SourceOptions(), seed=42)).model_dump_json()
        except DatasetError as error:
            what, fix = error.what, error.fix
        seconds, grown = time.process_time() - start, peak_process_bytes() - before
        answers[name] = {"report": report, "what": what, "fix": fix, "seconds": seconds, "grown_bytes": grown}
    print(json.dumps(answers))


def _forget_peak() -> None:
    """Restart the count of the peak here; where the system cannot, it is that of all cases so far."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    _main()
