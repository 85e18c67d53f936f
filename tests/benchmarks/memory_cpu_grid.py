"""Predicted against measured peak RAM of real runs on this CPU: `python -m tests.benchmarks.memory_cpu_grid [SET]`.

Each cell is a real run of the demo model by the real worker on a whole dataset, predicted for its rows as the page does once
their lengths are known. `whole` runs 12 to 30 steps with evaluations and checkpoints, none of which was looked at for the
constants: a heap needs some steps to reach its size. `data` runs three steps, `preferences` does so on pairs of answers,
`rewards` ten steps on sampled answers, `images` on rows with images, with the demo model that takes some.
`--cells 0-5` runs a part. Prints each cell as soon as it is known, then the mean error and how often the bound covered the
measurement; `--json FILE` keeps the figures. A cell that fails is named, counts in no mean, and makes the command fail.
Measure on a machine that does nothing else.

The constants of `engine/memory/device_need.py` were found on runs like these: it shows how well they hold on this machine and
with these libraries, not how well they would foretell other models.
"""

import argparse
import contextlib
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.methods.registry import METHODS as PEFT_METHODS
from loratory.engine.config.run import RunConfig
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.processor import describe_processor
from loratory.engine.inspector.session import Inspector
from loratory.engine.inspector.worker.inventory import module_inventory
from loratory.engine.memory.estimate import Estimator, MemoryEstimate, describe_peak
from loratory.engine.memory.workload import workload_of_run
from loratory.engine.models.prepared import DEMO_MODEL_ID, DEMO_VISION_ID
from loratory.engine.models.shape import ModelShape
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.spawn import allocator_environment, spawn, worker_argv
from loratory.engine.runs.history.events import FailedData, MemoryData
from loratory.engine.runs.history.log import read_events
from loratory.engine.runs.store import RunStore
from tests.benchmarks.training_trial import ALPACA
from tests.image_rows import random_image

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
_LONGEST_SECONDS = 900  # of one cell


class Cell(NamedTuple):
    """One run."""

    source: str
    method: str
    batch_size: int
    accumulation: int
    length: int
    steps: int
    overrides: tuple[str, ...] = ()

    def config(self, model: str) -> RunConfig:
        """Return the configuration of the cell."""
        sections: dict[str, dict[str, object]] = {
            "model": {"id": model},
            "adapter": {},
            "vision": {},
            # Held-out rows as well, but few: measuring them takes longer than the steps.
            "dataset": {"source": self.source, "eval_fraction": 0.01},
            "training": {
                "per_device_train_batch_size": self.batch_size,
                "gradient_accumulation_steps": self.accumulation,
                "max_length": self.length,
                "max_steps": self.steps,
            },
        }
        for override in (*METHODS[self.method], *self.overrides):
            key, _, value = override.partition("=")
            section, _, field = key.partition(".")
            sections[section][field] = yaml.safe_load(value)
        return config_from_mapping(sections)


_GLAIVE = ALPACA.parent / "sharegpt_glaive_toolcall_300.json"
_FAQ, _CHATS = "sample:loratory-faq", "sample:lab-chats"


_AT_THE_ENDS = ("training.eval_steps=1000", "training.save_steps=1000")  # held-out rows are measured before and after


def _on(source: str | Path, method: str, batch: int, accumulation: int, *overrides: str, length: int = 1024) -> Cell:
    return Cell(str(source), method, batch, accumulation, length, 3, (*overrides, *_AT_THE_ENDS))


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
    return Cell(str(source), method, batch, accumulation, length, steps, overrides)


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


def _with_rewards(method: str, batch: int, answers: int, tokens: int, *overrides: str) -> Cell:
    """Answer questions that a small model answers until it is cut off."""
    settings = {
        "objective": "grpo", "rewards": "[{scorer: length}]", "num_generations": answers, "max_completion_length": tokens,
    }  # fmt: skip
    chosen = (f"training.{name}={value}" for name, value in settings.items())
    return _whole(_FAQ, method, batch, 1, 1024, 10, *chosen, *overrides, *_AT_THE_ENDS)


REWARD_CELLS = (
    _with_rewards("LoRA", 4, 8, 32), _with_rewards("LoRA", 2, 8, 96), _with_rewards("LoRA", 8, 8, 24), _with_rewards("LoRA", 2, 16, 48, _CHECKPOINTED),
    _with_rewards("IA3", 4, 8, 32), _with_rewards("QLoRA", 2, 8, 48), _with_rewards("Full", 2, 8, 48), _with_rewards("LoRA", 2, 8, 64, "training.beta=0.04"),
    _with_rewards("LoRA", 2, 8, 32, "dataset.eval_fraction=0.3"),  # more held-out prompts than answers of a step
)  # fmt: skip


_PICTURES = "pictures"  # a source that is drawn before it is read
_SMALL, _LARGE = 16_384, 65_536  # pixels: tiles of 64 × 64 and an overview, so at most 5 and 17 of them


def _seeing(method: str, pixels: int, batch: int, *overrides: str) -> Cell:
    budget = f"vision.max_pixels={pixels}"
    return _whole(_PICTURES, method, batch, 2, 1024, 8, budget, *overrides, *_AT_THE_ENDS)


_TOWER = "vision.tower=full"
IMAGE_CELLS = (
    _seeing("LoRA", _SMALL, 4), _seeing("LoRA", _LARGE, 2), _seeing("LoRA", _SMALL, 4, _TOWER), _seeing("LoRA", _LARGE, 2, _TOWER),
    _seeing("LoRA", _SMALL, 4, "adapter.use_dora=true"), _seeing("LoRA", _LARGE, 2, "adapter.use_dora=true"),
    _seeing("LoRA", _SMALL, 4, "adapter.use_dora=true", _TOWER), _seeing("LoRA", _LARGE, 2, "adapter.use_dora=true", _TOWER),
    _seeing("Full", _LARGE, 2, _TOWER, "vision.projector=full"), _seeing("QLoRA", _LARGE, 2, "vision.tower=adapter", "vision.projector=adapter"),
    _seeing("LoRA", _LARGE, 4, _CHECKPOINTED, _TOWER), _seeing("LoRA", _SMALL, 8, "vision.do_image_splitting=false", "vision.projector=full"),
)  # fmt: skip


def draw_pictures(folder: Path, rows: int = 80) -> Path:
    """Write rows of questions on one or two random images each, and answers to them."""
    draw, vocabulary = random.Random(0), "red green blue left right above below one two three circle square".split()
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            names = [f"{number}-{index}.png" for index in range(draw.randint(1, 2))]
            for name in names:
                image = random_image(draw, 64)
                image.resize((draw.randint(100, 400), draw.randint(100, 400))).save(folder / name)
            question, answer = (" ".join(draw.choices(vocabulary, k=draw.randint(6, 40))) for _ in range(2))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns, "images": names}) + "\n")
    return folder / "rows.jsonl"


SETS = {
    "whole": WHOLE_CELLS, "data": DATA_CELLS, "preferences": PREFERENCE_CELLS, "rewards": REWARD_CELLS, "images": IMAGE_CELLS,
}  # fmt: skip


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


def main() -> int:
    """Run the cells that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="the demo model by default, or that which takes images")
    parser.add_argument("set", choices=SETS, nargs="?", default="whole")
    parser.add_argument("--cells", default="", help="such as 0-5 or 3,7")
    parser.add_argument("--list", action="store_true", help="name the cells, run none")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    chosen = list(_choose_cells(options))
    if options.list:
        for number, cell in chosen:
            print(number, *cell)
        return 0
    model = options.model or (DEMO_VISION_ID if options.set == "images" else DEMO_MODEL_ID)
    home, device = LoratoryHome.from_environment(), describe_processor()
    pictures = tempfile.TemporaryDirectory()
    if options.set == "images":
        rows = str(draw_pictures(Path(pictures.name)))
        chosen = [(number, cell._replace(source=rows)) for number, cell in chosen]
    results: list[Result] = []
    failed = 0
    began = time.monotonic()
    for number, cell in chosen:
        config = cell.config(model)
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
    cells = SETS[options.set]
    for part in (options.cells or f"0-{len(cells) - 1}").split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield number, cells[number]


def predict(config: RunConfig, shape: ModelShape, device: Device) -> MemoryEstimate:
    """Predict the run for the rows that it has."""
    with contextlib.closing(Inspector(LoratoryHome.from_environment())) as inspector:
        training = config.training
        report = inspector.check(
            config.dataset, config.model, training.max_length, seed=training.seed, vision=config.vision
        )
    workload = workload_of_run(shape, config, device, report.row_lengths)
    return describe_peak(Estimator(shape, device).peak(workload), workload, device)


def measure(cell: Cell, config: RunConfig, shape: ModelShape, device: Device, home: LoratoryHome) -> Result:
    """Predict, run, and read the peak from the run's own events.

    Raises:
        RuntimeError: If the run failed.
    """
    estimate = predict(config, shape, device)
    store = RunStore(home, "memory-grid")
    run = store.create(config)
    began = time.monotonic()
    try:
        process = spawn(
            worker_argv("loratory.engine.training.worker", [str(run.folder.path)]),
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
        f"{cell.method:<14} batch {cell.batch_size} × {cell.length:>4}{' checkpointed' if _CHECKPOINTED in cell.overrides else '':<13}"
        f"  tensors {result.allocated_bytes / MIB:>6.0f}  expected {result.expected_bytes / MIB:>6.0f}"
        f"  measured {result.measured_bytes / MIB:>6.0f} MiB  {result.error:>+7.1%}"
        f"  bound {result.needed_bytes / MIB:>6.0f}{' ' if result.needed_bytes >= result.measured_bytes else ' <'}"
        f"  {result.seconds:.0f} s"
    )


def print_summary(results: list[Result]) -> None:
    """Mean error and coverage."""
    errors = [abs(result.error) for result in results]
    within_bound = sum(result.needed_bytes >= result.measured_bytes for result in results)
    excess = sum(result.needed_bytes / result.measured_bytes - 1 for result in results) / len(results)
    print(
        f"{len(results)} cells: mean error {sum(errors) / len(errors):.1%}, worst {max(errors):.1%}; "
        f"the bound covers {within_bound} of {len(results)}, {excess:+.1%} on average."
    )


def _plain(result: Result) -> dict[str, object]:
    return {**result.cell._asdict(), **{k: v for k, v in dataclasses.asdict(result).items() if k != "cell"}}


if __name__ == "__main__":
    sys.exit(main())
