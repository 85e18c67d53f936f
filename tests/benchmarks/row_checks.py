"""How quick row checks are: `python -m tests.benchmarks.row_checks [--rows N] [--only NAME]`.

Makes chat-like rows (wanted for 100,000 rows and all checks on two cores: 60 s and 600 MB), then runs in fresh processes: reading
without a check, each check alone, and all of them. Prints seconds, those beyond reading, and the peak memory of the process.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.passes.check import finish, pass_steps
from loratory.engine.data.passes.reader import DatasetReader
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.run import CHECKS, row_check_steps
from loratory.engine.data.workshop.checks.settings import CheckSettings

READING, ALL = "reading", "all"
SYLLABLES = "ba ko mi ter lan ves dor in al que ster om pi ra nu sho the and of to is for with on at by".split()


def main() -> None:
    """Make the rows, measure, print one line for each check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--only", default="", help="a check, or 'all'")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        file = make_file(Path(temporary) / "rows.jsonl", arguments.rows)
        size = file.stat().st_size / 1e6
        print(f"{arguments.rows:,} rows, {size:,.0f} MB; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        reading = 0.0
        for name in [READING, *([arguments.only] if arguments.only else [*CHECKS, ALL])]:
            command = [sys.executable, "-m", "tests.benchmarks.row_checks", "--measure", name, str(file)]
            seconds, cpu, peak = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            reading = cpu if name == READING else reading
            print(
                f"{name:<16}{seconds:7.1f} s, {cpu:6.1f} s of CPU, {cpu - reading:6.1f} beyond reading, peak {peak:,.0f} MB"
            )


def make_file(path: Path, count: int) -> Path:
    """Write rows of some hundred words; one of fifty nearly repeats the one before it."""
    draw = random.Random(1)
    stems = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(20_000)]
    weights = [1 / (rank + 5) for rank in range(len(stems))]  # as in a language, few words are frequent
    stock = draw.choices(stems, weights, k=1_000_000)
    with path.open("w") as file:
        for number in range(count):
            if number % 50 == 0 or number % 50 > 1:
                start, length = draw.randrange(900_000), draw.randint(50, 250)
                text = stock[start : start + length]
                draw.shuffle(text)
            text[draw.randrange(len(text))] = draw.choice(
                ("2024-05-17", "ok", "call +49 30 901820", "a@b.org", "naïve")
            )
            question, answer = " ".join(text[: len(text) // 4]), " ".join(text[len(text) // 4 :])
            turns = [{"role": "user", "content": f"{question}?"}, {"role": "assistant", "content": f"{answer}."}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def measure(name: str, file: str) -> tuple[float, float, float]:
    """Run one check, or all; returns seconds, seconds of the processor, and the peak of this process in MB."""
    config, options = DatasetConfig(source=file), SourceOptions()
    start, cpu = time.perf_counter(), time.process_time()
    if name == READING:
        finish(pass_steps(DatasetReader(config, options), 42))
    else:
        names = [] if name == ALL else [name]
        finish(row_check_steps(config, options, CheckSettings(), names, seed=42))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return seconds, cpu, peak * 1024 / 1e6


if __name__ == "__main__":
    main()
