"""Training on one GPU in the shapes of real models: `python -m tests.benchmarks.cuda_speed`, within ten minutes.

Models with random weights in the shapes of Qwen 0.5B, 1.5B and Llama 8B, in bfloat16 and in nf4, learn the same rows by LoRA,
two rows a pass and four passes a step: by ours, by ours without each optimization (`LORATORY_WITHOUT`), by TRL with Liger's
kernels, and by Unsloth where it is installed. Each is a process of its own. Printed is a table in Markdown: tokens a second
(padding not counted), the most that tensors took, and what the estimate predicted for ours; then what was not measured, and why.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from loratory.engine.config.optimizations import TRAINING_OPTIMIZATIONS, VARIABLE
from loratory.engine.hardware.libraries import library_version

Trainer = Literal["ours", "trl", "unsloth"]
Base = Literal["none", "nf4"]
SHAPES, BASES = ("0.5B", "1.5B", "8B"), ("none", "nf4")
TINY = "tiny"

WARM_UP, STEPS = 5, 20
ROWS_PER_PASS, PASSES, LONGEST, RANK = 2, 4, 512, 16
CELL_SECONDS = 150.0  # at most for one, which may have to load 16 GB
GIB = 2**30
# A GPU that holds a step of the shape in bfloat16, and the disk that its weights take.
_GPU_GIB = {"0.5B": 8, "1.5B": 14, "8B": 40, TINY: 0}
_DISK_GIB = {"0.5B": 2, "1.5B": 5, "8B": 20, TINY: 0}


@dataclass(frozen=True)
class Cell:
    """One training."""

    shape: str
    base: Base
    trainer: Trainer
    without: str = ""  # an optimization that ours leaves out

    @property
    def label(self) -> str:
        return f"{self.trainer} without {self.without}" if self.without else self.trainer


@dataclass(frozen=True)
class Figures:
    """What was measured; `predicted_bytes` of ours alone."""

    tokens_per_second: float
    peak_bytes: int
    predicted_bytes: int | None = None
    merged_passes: int = 1


def cells(shapes: Sequence[str]) -> Iterator[Cell]:
    """List what is measured, the most telling first."""
    grid: list[tuple[str, Base]] = [(shape, base) for base in ("none", "nf4") for shape in shapes]
    for trainer in ("ours", "trl", "unsloth"):
        for shape, base in grid:
            yield Cell(shape, base, trainer)
    for shape, base in sorted(grid, key=lambda cell: cell != (shapes[0], "none")):
        for name in TRAINING_OPTIMIZATIONS:
            yield Cell(shape, base, "ours", name)


def measure(cell: Cell, folder: Path) -> Figures:
    """Train and measure in this process."""
    import torch

    from tests.training.tiny_training import make_rows

    on_gpu = cell.shape != TINY
    steps, warm_up = (STEPS, WARM_UP) if on_gpu else (3, 1)
    rows = make_rows(steps * ROWS_PER_PASS * PASSES, longest=LONGEST if on_gpu else 40)
    clock = _Clock(warm_up, on_gpu)
    train = {"ours": _train_ours, "trl": _train_trl, "unsloth": _train_unsloth}[cell.trainer]
    tokens, prediction, merged = train(cell, folder, rows, steps, clock)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Figures(tokens / clock.seconds, peak, prediction, merged)


class _Clock:
    """Time between the end of the warm-up and the last step, with nothing left in the GPU's queue."""

    def __init__(self, warm_up: int, on_gpu: bool) -> None:
        self.warm_up = warm_up
        self._on_gpu = on_gpu
        self._began = self.seconds = 0.0

    def callback(self) -> Any:
        """Return a callback for a trainer of transformers."""
        from transformers import TrainerCallback

        clock = self

        class Clocked(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == clock.warm_up:
                    clock._began = clock._now()
                elif state.global_step == state.max_steps:
                    clock.seconds = clock._now() - clock._began

        return Clocked()

    def _now(self) -> float:
        import torch

        if self._on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def _train_ours(
    cell: Cell, folder: Path, rows: Sequence[Any], steps: int, clock: _Clock
) -> tuple[int, int | None, int]:
    import torch

    from loratory.engine.data.contract import RowLengths
    from loratory.engine.hardware.devices import list_devices
    from loratory.engine.inspector.worker.inventory import inventory_of
    from loratory.engine.memory.compare import with_changes
    from loratory.engine.memory.estimate import Estimator
    from loratory.engine.models.folder import read_config
    from loratory.engine.training.batching.choose import choose_merging
    from loratory.engine.training.placement import Placement
    from tests.training.tiny_training import make_config, make_training

    on_gpu = cell.shape != TINY
    device = next(device for device in list_devices() if device.kind == ("cuda" if on_gpu else "cpu"))
    config = make_config(
        folder,
        model={"quantization": cell.base, "compute_dtype": "auto"},
        adapter={"r": RANK, "lora_alpha": 2 * RANK},
        training=_settings(steps, longest=LONGEST if on_gpu else 64),
    )
    shape = inventory_of(read_config(folder / "config.json", cell.shape))
    lengths = tuple(row.length for row in rows)
    row_lengths = RowLengths(tokens=lengths, trained=lengths, count=len(rows))
    merged = choose_merging(config, shape, device, row_lengths).merged
    placement = Placement(device, torch.device("cuda", 0) if on_gpu else torch.device("cpu"))
    training = make_training(
        config,
        list(rows),
        folder / "out",
        callbacks=(clock.callback(),),
        placement=placement,
        merged=merged,
    )
    before: list[int] = []

    def remember(step: Any) -> None:
        training.steps.append(step)
        if step.step == clock.warm_up:
            before.append(step.tokens)

    training.trainer.hooks.on_logged = remember
    training.trainer.train()
    batch = {"training.per_device_train_batch_size": ROWS_PER_PASS * merged}
    prediction = Estimator(shape, device, row_lengths).estimate_step(with_changes(config, batch)).allocated_bytes
    return training.trainer.progress.tokens - before[0], prediction if on_gpu else None, merged


def _settings(steps: int, longest: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "per_device_train_batch_size": ROWS_PER_PASS,
        "gradient_accumulation_steps": PASSES,
        "learning_rate": 2e-4,
        "max_length": longest,
        "logging_steps": WARM_UP if longest == LONGEST else 1,
    }


def _train_trl(cell: Cell, folder: Path, rows: Sequence[Any], steps: int, clock: _Clock) -> tuple[int, int | None, int]:
    import torch
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantization = None
    if cell.base == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    device_arguments = {"device_map": {"": 0}} if cell.shape != TINY else {}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=quantization, **device_arguments
    )
    if quantization is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return _train_plain(model, AutoTokenizer.from_pretrained(folder), lora, cell, folder, rows, steps, clock)


def _train_unsloth(
    cell: Cell, folder: Path, rows: Sequence[Any], steps: int, clock: _Clock
) -> tuple[int, int | None, int]:
    from unsloth import FastLanguageModel  # first: it changes what is imported after it

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=LONGEST, load_in_4bit=cell.base == "nf4"
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=2 * RANK, lora_dropout=0, target_modules=targets, use_gradient_checkpointing=False
    )
    return _train_plain(model, tokenizer, None, cell, folder, rows, steps, clock)


def _train_plain(
    model: Any, tokenizer: Any, lora: Any, cell: Cell, folder: Path, rows: Sequence[Any], steps: int, clock: _Clock
) -> tuple[int, int | None, int]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    on_gpu = cell.shape != TINY
    names = set(_settings(steps, LONGEST)) - {"max_length"}
    arguments = SFTConfig(
        output_dir=str(folder / "out"),
        **{name: value for name, value in _settings(steps, LONGEST).items() if name in names},
        lr_scheduler_type="cosine",
        report_to="none",
        disable_tqdm=True,
        bf16=True,
        use_cpu=not on_gpu,
        activation_checkpointing=False,
        use_liger_kernel=on_gpu and cell.trainer == "trl" and _is_installed("liger_kernel"),
        max_length=LONGEST,
        save_strategy="no",
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in rows]),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[clock.callback()],
    )
    trainer.train()
    timed_rows = rows[clock.warm_up * ROWS_PER_PASS * PASSES : steps * ROWS_PER_PASS * PASSES]
    return sum(row.length for row in timed_rows), None, 1


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# -- the command ----------------------------------------------------------------------------------------------------------


def why_not(cell: Cell, gpu_bytes: int, folder: Path) -> str:
    """Return why a cell cannot be measured on this machine; empty where it can."""
    import shutil

    if cell.trainer == "unsloth" and not _is_installed("unsloth"):
        return "unsloth is not installed"
    if gpu_bytes < _GPU_GIB[cell.shape] * GIB:
        return f"needs a GPU with {_GPU_GIB[cell.shape]} GiB"
    if not (folder / cell.shape).is_dir() and shutil.disk_usage(folder).free < _DISK_GIB[cell.shape] * GIB:
        return f"needs {_DISK_GIB[cell.shape]} GiB of disk in {folder}"
    return ""


def run_cell(cell: Cell, folder: Path, seconds: float) -> Figures | str:
    """Measure in a process of its own; returns the reason where there are no figures."""
    environment = os.environ | {VARIABLE: cell.without}
    command = [sys.executable, "-m", "tests.benchmarks.cuda_speed", "--cell", json.dumps(asdict(cell)), str(folder)]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        return f"failed: {last[:160]}"
    return Figures(**json.loads(lines[-1]))


def table(measured: dict[Cell, Figures | str]) -> str:
    """Return the figures as a Markdown table, and below it what has none."""
    lines = [
        "| shape | weights | trainer | tokens/s | of ours | passes merged | peak GiB | predicted GiB |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for cell, result in measured.items():
        if isinstance(result, str):
            continue
        ours = measured.get(Cell(cell.shape, cell.base, "ours"))
        share = f"{result.tokens_per_second / ours.tokens_per_second:.0%}" if isinstance(ours, Figures) else ""
        prediction = f"{result.predicted_bytes / GIB:.2f}" if result.predicted_bytes else ""
        weights = "bfloat16" if cell.base == "none" else cell.base
        lines.append(
            f"| {cell.shape} | {weights} | {cell.label} | {result.tokens_per_second:,.0f} | {share} | "
            f"{result.merged_passes} | {result.peak_bytes / GIB:.2f} | {prediction} |"
        )
    missing = [
        f"- {cell.shape}, {cell.base}, {cell.label}: {result}"
        for cell, result in measured.items()
        if isinstance(result, str)
    ]
    return "\n".join([*lines, *(["", "Not measured:", *missing] if missing else [])])


def versions() -> str:
    """Return the versions that figures depend on, in a line."""
    names = ("torch", "triton", "transformers", "peft", "trl", "bitsandbytes", "liger-kernel", "unsloth")
    return ", ".join(f"{name} {version}" for name in names if (version := library_version(name)))


def on_gpu(options: argparse.Namespace) -> None:
    """Measure as many cells as fit the time, and print the table."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA GPU, and PyTorch finds none.")
    from tests.gpu.cuda_training import save_in_shape

    ends = time.monotonic() + 60 * options.minutes
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    options.folder.mkdir(parents=True, exist_ok=True)
    measurements: dict[Cell, Figures | str] = {}
    for cell in cells(options.shapes.split(",")):
        left = ends - time.monotonic()
        reason = why_not(cell, gpu_bytes, options.folder)
        if not reason and left < 20:
            reason = f"no time left of {options.minutes:g} minutes"
        if not reason and not (options.folder / cell.shape).is_dir():
            save_in_shape(options.folder / cell.shape, cell.shape)
        measurements[cell] = reason or run_cell(cell, options.folder / cell.shape, min(CELL_SECONDS, left))
        print(f"{cell.shape} {cell.base} {cell.label}: {measurements[cell]}", file=sys.stderr, flush=True)
    print(f"\n{torch.cuda.get_device_name(0)}; {versions()}\n\n{table(measurements)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "loratory-shapes")
    parser.add_argument("--cell", nargs=2, metavar=("CELL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell is not None:
        result = measure(Cell(**json.loads(options.cell[0])), Path(options.cell[1]))
        print(json.dumps(asdict(result)), flush=True)
    else:
        on_gpu(options)


if __name__ == "__main__":
    main()
