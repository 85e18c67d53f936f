"""How quick lists and charts of runs are: `python -m tests.benchmarks.runs [--runs 5000] [--steps 1000000]`.

Makes a home in a temporary folder, measures, and removes it. Each figure is the median of several rounds, in a process
that does nothing else; the first table is measured in fresh processes, as a server that was just started draws it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.config.load import config_from_mapping, config_to_yaml
from engine.paths import LoratoryHome
from engine.runs.history.events import EvalData, Event, StatusData, StepData
from engine.runs.history.log import EventWriter
from engine.runs.history.run_history import HistoryReader
from engine.runs.history.steps import smooth, thin
from engine.runs.provenance import Provenance, describe_config
from engine.runs.run import RunFolder, RunState
from engine.runs.store import RunStore
from engine.runs.summary import RunIndex, RunQuery, select_runs

CHART_POINTS = 1000
ROUNDS = 5

FIRST_TABLE = """
import sys, time
from pathlib import Path
from engine.paths import LoratoryHome
from engine.runs.summary import RunIndex
from engine.runs.store import RunStore
began = time.perf_counter()
rows = RunIndex(RunStore(LoratoryHome(Path(sys.argv[1])), "bench")).summaries()
print(len(rows), time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = LoratoryHome(Path(folder))
        measure_list(home, options.runs)
        measure_chart(Path(folder) / "events.jsonl", options.steps)


def measure_list(home: LoratoryHome, count: int) -> None:
    """First table and search over many runs."""
    make_runs(home, count)
    index = RunIndex(RunStore(home, "bench"))
    began = time.perf_counter()
    glance = index.glance(patience_seconds=0.2)
    seconds = time.perf_counter() - began
    say(f"{count:,} runs that were never read, first table: {len(glance.rows):,} newest (wanted: under 1 s)", seconds)
    began = time.perf_counter()
    rows = index.summaries()
    say(f"{count:,} runs, all others drawn up for the first time ever", time.perf_counter() - began)
    fresh = []
    for _ in range(ROUNDS):
        output = subprocess.run(
            [sys.executable, "-c", FIRST_TABLE, str(home.root)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(output[0]) == count
        fresh.append(float(output[1]))
    say(f"{count:,} runs, first table of a fresh server (wanted: under 1 s)", statistics.median(fresh))
    say(f"{count:,} runs, the same table again", median(index.summaries))
    query = RunQuery(words="qwen lora 17", sort="eval_loss", descending=False)
    say(f"{count:,} runs, search and sort (wanted: under 200 ms)", median(lambda: select_runs(rows, query)))
    say(f"{count:,} runs, read again, then search", median(lambda: select_runs(index.summaries(), query)))


def measure_chart(log: Path, steps: int) -> None:
    """Reading and thinning a very long run."""
    write_long_log(log, steps)
    reader = HistoryReader(log)
    began = time.perf_counter()
    history = reader.update()
    say(f"{steps:,} steps, read whole ({log.stat().st_size / 1e6:.0f} MB)", time.perf_counter() - began)
    assert len(history.steps) == steps
    writer = EventWriter(log, 1)
    newest = steps

    def update() -> bytes:
        nonlocal newest
        newest += 1
        writer.append(step_data(newest))
        fresh = reader.update()
        x = fresh.steps.steps
        curves = {}
        for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
            y = fresh.steps.column(name)
            kept = thin(x, y, CHART_POINTS)
            curves[name] = {"x": x[kept].astype(int).tolist(), "y": [float(f"{value:.5g}") for value in y[kept]]}
        smoothed = smooth(fresh.steps.losses, 0.9)
        kept = thin(x, smoothed, CHART_POINTS)
        curves["smoothed"] = {"x": x[kept].astype(int).tolist(), "y": [float(f"{v:.5g}") for v in smoothed[kept]]}
        assert curves["loss"]["x"][-1] == newest
        return json.dumps(curves, separators=(",", ":")).encode()

    say(f"{steps:,} steps, one more step into five curves (wanted: under 100 ms)", median(update))
    print(f"{'    its size (wanted: under 150 KB)':<75}{len(update()) / 1000:>9.1f} KB")
    say(f"{steps:,} steps, a tick with nothing new", median(reader.update))
    speeds = median(lambda: history.mean_tokens_per_second())
    say(f"{steps:,} steps, mean throughput", speeds)
    writer.close()


def make_runs(home: LoratoryHome, count: int, owner: str = "bench") -> None:
    """Ended runs as a worker leaves them, without waiting for the disk each time."""
    folder = home.runs / owner
    folder.mkdir(parents=True)
    models = ("Qwen/Qwen3-0.6B", "smollm2-135m-instruct", "meta-llama/Llama-3.2-1B")
    generator = np.random.default_rng(3)
    for number in range(count):
        run = RunFolder(folder / f"2026{number // 2500 + 1:02d}01-{number % 24:02d}0000-000-{number:04x}")
        run.path.mkdir()
        config = config_from_mapping(
            {
                "model": {"id": models[number % 3]},
                "dataset": {"source": "data.jsonl"},
                "run": {"name": f"Run {number % 100}"},
            }
        )
        run.config.write_text(config_to_yaml(config))
        run.provenance.write_text(
            Provenance(created=1.7e9 + number).model_copy(update=describe_config(config)).model_dump_json()
        )
        run.state.write_text(RunState(state="completed", started=1.0, ended=2.0).model_dump_json())
        lines = [
            Event.of(step_data(step), seq=step, attempt=1, time=float(step)).model_dump_json() for step in range(1, 11)
        ]
        run.events.write_text("\n".join(lines) + "\n")
        with EventWriter(run.events, 1) as events:
            loss = float(generator.random())
            events._seq = 10
            events.append(StepData(**{**step_data(11).model_dump(), "loss": loss}))
        if number % 1000 == 999:
            print(f"made {number + 1:,} runs", file=sys.stderr)


def write_long_log(log: Path, steps: int) -> None:
    """The log of a run that logged every step."""
    with EventWriter(log, 1) as events:
        events.append(StatusData(phase="training", total_steps=2 * steps))
        events.append(EvalData(step=0, eval_loss=3.0, eval_tokens=1, rows=1, seconds=1.0))
    with log.open("ab") as file:
        for number in range(1, steps + 1):
            event = Event.of(step_data(number), seq=number + 2, attempt=1, time=1.7e9 + number)
            file.write(event.model_dump_json().encode() + b"\n")


def step_data(number: int) -> StepData:
    loss = 3.0 / (1 + number / 5000) + 0.3 * float(np.sin(number * 12.9898) % 1)
    return StepData(
        step=number, epoch=number / 1000, loss=loss, learning_rate=2e-4, grad_norm=0.5 + loss / 10, tokens=number * 512,
        trained_tokens=number * 300, tokens_per_second=900.0 + number % 50, memory_bytes=1_500_000_000,
    )  # fmt: skip


def median(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def say(what: str, seconds: float) -> None:
    """Print one figure."""
    print(f"{what:<75}{seconds * 1000:>9.1f} ms")


if __name__ == "__main__":
    main()
