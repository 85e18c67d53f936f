"""Predicted against measured peak RAM of real runs on this CPU: `python -m tests.benchmarks.memory_cpu_grid`.

Each cell is a real run of the demo model by the real worker, two optimizer steps on rows of full length: method × batch ×
length × gradient checkpointing. By default some cells, in which every method meets every batch and every length, with and without
checkpointing where it can be checkpointed; `--all` runs every one, `--cells 0-5` a part. `--varied` runs other cells: many
steps on Alpaca rows, each of another length, of which only the first was looked at for the constants. `--data` runs three steps
on whole datasets, each predicted for its rows as the page does once their lengths are known; `--preferences` does so on pairs
of answers. `--whole` runs some of these for 12 to 30 steps with evaluations and checkpoints, none of which was looked at for the
constants: a heap needs some steps to reach its size. Prints each cell as soon as it is known, then the mean error and how
often the bound covered the measurement; `--json FILE` keeps the figures. A cell that fails is named, counts in no mean, and
makes the command fail. Measure on a machine that does nothing else.

The constants of `engine/memory/device_need.py` were found on runs of this grid: it shows how well they hold on this machine and
with these libraries, not how well they would foretell other models.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from engine.config.load import config_from_mapping
from engine.config.methods.registry import METHODS as PEFT_METHODS
from engine.config.run import RunConfig
from engine.hardware.device import Device
from engine.hardware.processor import describe_processor
from engine.inspector.session import Inspector
from engine.inspector.worker.inventory import module_inventory
from engine.memory.estimate import Estimator, MemoryEstimate, describe_peak
from engine.memory.workload import workload_of_run
from engine.models.shape import ModelShape
from engine.paths import LoratoryHome
from engine.processes.spawn import allocator_environment, spawn, worker_argv
from engine.runs.history.events import FailedData, MemoryData
from engine.runs.history.log import read_events
from engine.runs.store import RunStore
from tests.benchmarks.training_trial import ALPACA

MIB = 2**20
METHODS: dict[str, tuple[str, ...]] = {
    "LoRA": (),
    "QLoRA": ("model.quantization=nf4",),
    "LoRA on int8": ("model.quantization=int8",),
    "IA3": ("adapter.method=ia3",),
    "Prefix tuning": ("adapter.method=prefix_tuning",),
    "Full": ("adapter.method=none",),
}
METHODS |= {
    method.label: (f"adapter.method={method.name}",)
    for method in PEFT_METHODS.values()
    if method.label not in METHODS and not method.trains_all
}
_UNCHECKPOINTED = frozenset(method.label for method in PEFT_METHODS.values() if not method.gradient_checkpointing)
BATCH_SIZES = (1, 4)
LENGTHS = (128, 512, 1024)
# Of batch, length and checkpointing.
_DEFAULT_PLACES = frozenset({(1, 128, False), (1, 512, True), (1, 1024, False), (4, 128, True), (4, 512, False)})
_LONGEST_SECONDS = 900  # of one cell
WORD = "memory tensor adapter gradient layer token batch length weight rank "


class Cell(NamedTuple):
    """One run of the grid."""

    method: str
    batch_size: int
    length: int
    checkpointing: bool
    steps: int = 2
    rows: Literal["longest", "alpaca", "data"] = "longest"
    overrides: tuple[str, ...] = ()
    source: str = ""  # of "data"
    accumulation: int = 2

    def config(self, dataset: Path, model: str) -> RunConfig:
        """What is run."""
        varied = self.rows == "alpaca"
        if self.rows == "data":
            # Held-out rows as well, but few: measuring them takes longer than the steps.
            data: dict[str, object] = {"source": self.source, "eval_fraction": 0.01}
        elif varied:
            data = {"source": str(ALPACA), "max_samples": self.steps * self.batch_size, "eval_fraction": 0}
        else:
            data = {"source": str(dataset), "format": "text", "train_on": "all", "eval_fraction": 0}
        sections: dict[str, dict[str, object]] = {
            "model": {"id": model},
            "adapter": {},
            "dataset": data,
            "training": {
                "per_device_train_batch_size": self.batch_size,
                "gradient_accumulation_steps": 1 if varied else self.accumulation,
                "max_length": self.length,
                "gradient_checkpointing": self.checkpointing,
                "max_steps": self.steps,
            },
        }
        for override in (*METHODS[self.method], *self.overrides):
            key, _, value = override.partition("=")
            section, _, field = key.partition(".")
            sections[section][field] = value
        return config_from_mapping(sections)


VARIED_CELLS = (
    Cell("LoRA", 2, 512, False, 32, "alpaca", ("adapter.lora_dropout=0.05",)),
    Cell("LoRA", 2, 256, False, 16, "alpaca"),
    Cell("LoRA", 2, 512, False, 16, "alpaca", ("model.compute_dtype=float32",)),
    Cell("LoRA", 4, 512, True, 16, "alpaca"),
    Cell("Prefix tuning", 2, 512, False, 16, "alpaca"),
    Cell("IA3", 2, 512, False, 16, "alpaca"),
    Cell("QLoRA", 2, 512, False, 16, "alpaca"),
)

_GLAIVE = ALPACA.parent / "sharegpt_glaive_toolcall_300.json"
_FAQ, _CHATS = "sample:loratory-faq", "sample:lab-chats"


_AT_THE_ENDS = ("training.eval_steps=1000", "training.save_steps=1000")  # held-out rows are measured before and after


def _on(source: str | Path, method: str, batch: int, accumulation: int, *overrides: str, length: int = 1024) -> Cell:
    checkpointing = "training.gradient_checkpointing=true" in overrides
    return Cell(method, batch, length, checkpointing, 3, "data", (*overrides, *_AT_THE_ENDS), str(source), accumulation)


_CHECKPOINTED, _PACKED = "training.gradient_checkpointing=true", "training.packing=true"
# Real data at the default max_length, unless said otherwise: short rows, rows of all lengths, long rows that are cut.
DATA_CELLS = (
    _on(_FAQ, "LoRA", 2, 4), _on(ALPACA, "LoRA", 1, 2), _on(_GLAIVE, "LoRA", 1, 1),
    _on(_FAQ, "QLoRA", 2, 2), _on(_FAQ, "Prefix tuning", 4, 1), _on(ALPACA, "Full", 2, 1),
    _on(_FAQ, "LoRA", 4, 2, _CHECKPOINTED), _on(ALPACA, "IA3", 2, 1), _on(_FAQ, "LoRA on int8", 2, 2),
    _on(_GLAIVE, "LoRA", 1, 1, _CHECKPOINTED), _on(ALPACA, "LoRA", 1, 1, _PACKED, length=512),
    _on(_CHATS, "LoRA", 1, 2), _on(_FAQ, "Full", 4, 1), _on(ALPACA, "Prefix tuning", 1, 2),
    _on(ALPACA, "QLoRA", 1, 2), _on(_FAQ, "IA3", 4, 1), _on(_FAQ, "AdaLoRA", 2, 2), _on(_FAQ, "LoRA", 2, 2, "adapter.use_dora=true"),
    _on(_CHATS, "Full", 1, 1, _CHECKPOINTED), _on(_FAQ, "LoHa", 2, 2), _on(_FAQ, "LoKr", 2, 2),
    _on(_FAQ, "OFT", 2, 2), _on(_FAQ, "VeRA", 2, 2), _on(_FAQ, "MiSS", 2, 2), _on(_FAQ, "Prompt tuning", 4, 1),
    _on(_FAQ, "P-tuning", 4, 1), _on(ALPACA, "LoRA", 4, 1, length=256), _on(_CHATS, "IA3", 2, 1),
)  # fmt: skip


def _whole(
    source: str | Path, method: str, batch: int, accumulation: int, length: int, steps: int, *overrides: str
) -> Cell:
    return Cell(method, batch, length, _CHECKPOINTED in overrides, steps, "data", overrides, str(source), accumulation)


# As long as a heap takes to reach its size, with evaluations and checkpoints on the way.
WHOLE_CELLS = (
    _whole(_GLAIVE, "LoRA", 1, 2, 512, 16), _whole(ALPACA, "QLoRA", 2, 2, 384, 16), _whole(ALPACA, "IA3", 2, 2, 256, 16),
    _whole(ALPACA, "LoRA", 2, 2, 384, 14, "adapter.use_dora=true"), _whole(ALPACA, "Full", 2, 2, 256, 14),
    _whole(_GLAIVE, "LoRA", 1, 2, 768, 12, _CHECKPOINTED), _whole(ALPACA, "Prefix tuning", 2, 2, 512, 14),
    _whole(_GLAIVE, "QLoRA", 1, 2, 512, 14), _whole(ALPACA, "LoKr", 2, 2, 300, 14),
    _whole(_FAQ, "IA3", 4, 1, 1024, 30), _whole(_FAQ, "LoHa", 2, 2, 1024, 16), _whole(_FAQ, "Prompt tuning", 4, 1, 1024, 30),
    _whole(_FAQ, "Prefix tuning", 4, 1, 1024, 30), _whole(_FAQ, "LoRA", 2, 4, 1024, 16), _whole(_FAQ, "MiSS", 2, 2, 1024, 16),
    _whole(_CHATS, "IA3", 2, 1, 1024, 20), _whole(_CHATS, "LoRA", 2, 2, 512, 16), _whole(_CHATS, "QLoRA", 2, 2, 400, 14),
    _whole(_CHATS, "AdaLoRA", 1, 2, 600, 16), _whole(_GLAIVE, "Full", 1, 2, 384, 12), _whole(_GLAIVE, "OFT", 1, 2, 400, 14),
    _whole(ALPACA, "LoRA", 1, 3, 448, 16, "adapter.use_rslora=true", "adapter.r=8"), _whole(ALPACA, "VeRA", 2, 2, 320, 16),
)  # fmt: skip

_PAIRS = "sample:loratory-preferences"


def _preferring(objective: str, method: str, batch: int, length: int, *overrides: str) -> Cell:
    return _on(_PAIRS, method, batch, 2, f"training.objective={objective}", *overrides, length=length)


# Pairs, with and without a reference; 64 tokens cut many of them, so passes are full.
PREFERENCE_CELLS = (
    _preferring("dpo", "LoRA", 2, 128), _preferring("dpo", "LoRA", 4, 128), _preferring("dpo", "LoRA", 8, 64),
    _preferring("dpo", "LoRA", 4, 128, _CHECKPOINTED), _preferring("dpo", "QLoRA", 2, 128), _preferring("dpo", "IA3", 4, 128),
    _preferring("dpo", "LoRA", 4, 128, "training.precompute_ref_log_probs=true"), _preferring("orpo", "LoRA", 4, 128),
    _preferring("orpo", "Full", 2, 128), _preferring("orpo", "QLoRA", 4, 64), _preferring("dpo", "Prefix tuning", 2, 128),
    _preferring("dpo", "LoRA", 2, 128, "model.compute_dtype=float32"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """A cell, measured."""

    cell: Cell
    allocated_bytes: int
    expected_bytes: int
    needed_bytes: int
    measured_bytes: int
    seconds: float

    @property
    def error(self) -> float:
        """Relative, positive where the prediction is too high."""
        return self.expected_bytes / self.measured_bytes - 1


def cells() -> list[Cell]:
    """The grid, without checkpointing where a method cannot be combined with it."""
    grid = itertools.product(METHODS, BATCH_SIZES, LENGTHS, (False, True))
    return [Cell(*values) for values in grid if not (values[0] in _UNCHECKPOINTED and values[3])]


def default_cells() -> list[int]:
    """Numbers of the cells that are run unless others are asked for: the quicker ones of each method, evenly."""
    return [number for number, cell in enumerate(cells()) if _place(cell) in _DEFAULT_PLACES]


def _place(cell: Cell) -> tuple[int, int, bool]:
    return cell.batch_size, cell.length, cell.checkpointing


def main() -> int:
    """Run the cells that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--cells", default="", help="such as 0-5 or 3,7")
    parser.add_argument("--all", action="store_true", help="every cell of the grid, which takes much longer")
    parser.add_argument("--varied", action="store_true", help="the cells on rows of many lengths instead")
    parser.add_argument("--data", action="store_true", help="the cells on whole datasets instead")
    parser.add_argument("--whole", action="store_true", help="the cells of more steps on whole datasets instead")
    parser.add_argument("--preferences", action="store_true", help="the cells on pairs of answers instead")
    parser.add_argument("--list", action="store_true", help="name the cells, run none")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    chosen = list(_choose_cells(options))
    if options.list:
        for number, cell in chosen:
            print(number, *cell)
        return 0
    home, device = LoratoryHome.from_environment(), describe_processor()
    results: list[Result] = []
    failed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        dataset = write_rows(Path(scratch) / "rows.jsonl")
        for number, cell in chosen:
            config = cell.config(dataset, options.model)
            shape = module_inventory(config.model, home)
            try:
                result = measure(cell, config, shape, device, home)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f"{number:>3} {cell.method} failed: {error}", flush=True)
                continue
            results.append(result)
            print(f"{number:>3} {describe(result)}", flush=True)
            if options.json:
                options.json.write_text(json.dumps([_plain(item) for item in results], indent=1))
    if results:
        print_summary(results)
    print(f"{failed} failed. {(time.monotonic() - began) / 60:.1f} min on {device.name} with {device.cores} cores.")
    return 1 if failed or not results else 0


def _choose_cells(options: argparse.Namespace) -> Iterator[tuple[int, Cell]]:
    grid: Sequence[Cell] = VARIED_CELLS if options.varied else DATA_CELLS if options.data else cells()
    grid = PREFERENCE_CELLS if options.preferences else WHOLE_CELLS if options.whole else grid
    if not options.cells:
        every = options.all or options.varied or options.data or options.whole or options.preferences
        yield from ((number, grid[number]) for number in (range(len(grid)) if every else default_cells()))
        return
    for part in options.cells.split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield number, grid[number]


def write_rows(path: Path) -> Path:
    """Rows longer than any length of the grid, so every row is cut to exactly that length."""
    rows = [{"text": f"{number} " + WORD * 400} for number in range(32)]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def predict(cell: Cell, config: RunConfig, shape: ModelShape, device: Device) -> MemoryEstimate:
    """Predict the run; of rows that are cut to one length it is known that all passes have one size."""
    rows = None
    if cell.rows == "data":
        with contextlib.closing(Inspector(LoratoryHome.from_environment())) as inspector:
            report = inspector.check(config.dataset, config.model, cell.length, seed=config.training.seed)
        rows = report.row_lengths
    workload = workload_of_run(shape, config, device, rows)
    if cell.rows == "longest":
        workload = dataclasses.replace(workload, pass_sizes=1)
    return describe_peak(Estimator(shape, device).peak(workload), workload, device)


def measure(cell: Cell, config: RunConfig, shape: ModelShape, device: Device, home: LoratoryHome) -> Result:
    """Predict, run, and read the peak from the run's own events.

    Raises:
        RuntimeError: If the run failed.
    """
    estimate = predict(cell, config, shape, device)
    store = RunStore(home, "memory-grid")
    run = store.create(config)
    began = time.monotonic()
    try:
        process = spawn(
            worker_argv("engine.training.worker", [str(run.folder.path)]),
            log_file=run.folder.path / "worker.log",
            environment=allocator_environment(),
        )
        process.wait(timeout=_LONGEST_SECONDS)
        events = read_events(run.folder.events, 0).events
        peaks = [event.data.peak_process_bytes for event in events if isinstance(event.data, MemoryData)]
        failures = [event.data.what for event in events if isinstance(event.data, FailedData)]
        if process.returncode or failures or not peaks:
            raise RuntimeError(f"{cell}: {failures or process.returncode}")
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        shutil.rmtree(run.folder.path, ignore_errors=True)  # it has no supervisor, whose word a deletion waits for
    return Result(
        cell,
        estimate.allocated_bytes,
        estimate.expected_bytes,
        estimate.needed_bytes,
        max(peaks),
        time.monotonic() - began,
    )


def describe(result: Result) -> str:
    """One line."""
    cell = result.cell
    return (
        f"{cell.method:<14} batch {cell.batch_size} × {cell.length:>4}{' checkpointed' if cell.checkpointing else '':<13}"
        f"  tensors {result.allocated_bytes / MIB:>6.0f}  expected {result.expected_bytes / MIB:>6.0f}"
        f"  measured {result.measured_bytes / MIB:>6.0f} MiB  {result.error:>+7.1%}"
        f"  bound {result.needed_bytes / MIB:>6.0f}{' ' if result.needed_bytes >= result.measured_bytes else ' <'}"
        f"  {result.seconds:.0f} s"
    )


def print_summary(results: list[Result]) -> None:
    """Mean error and coverage."""
    errors = [abs(result.error) for result in results]
    covered = sum(result.needed_bytes >= result.measured_bytes for result in results)
    excess = sum(result.needed_bytes / result.measured_bytes - 1 for result in results) / len(results)
    print(
        f"{len(results)} cells: mean error {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}; "
        f"the bound covers {covered} of {len(results)}, {excess:+.1%} on average."
    )


def _plain(result: Result) -> dict[str, object]:
    return {**result.cell._asdict(), **{k: v for k, v in dataclasses.asdict(result).items() if k != "cell"}}


if __name__ == "__main__":
    sys.exit(main())
