"""Held-out losses of the demo model with the old and the new defaults of every method: the new ones are never worse.

    python -m tests.benchmarks.method_defaults alpaca_en_999.json --methods lora,ia3 --seeds 1,2,3 --steps 40

Each method is a process of its own. Losses are kept in `--folder`: a command that was interrupted continues there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.config.methods.registry import METHODS
from tests.benchmarks.training_trial import REPOSITORY

# What every method had before defaults followed the method.
OLD_DEFAULTS = {"learning_rate": 2e-4, "gradient_accumulation_steps": 4, "warmup_steps": 0.03}
OLD_ADAPTERS = {"prefix_tuning": {"prefix_init_text": None}}
_WORSE = 0.005  # nats per token; less is the noise of three seeds


class Part(NamedTuple):
    """One training."""

    method: str
    defaults: str  # "old", "new", or settings such as "learning_rate=0.001"
    seed: int
    steps: int

    @property
    def file_name(self) -> str:
        return f"{self.method}-{self.defaults}-{self.seed}-{self.steps}.json"


def config_of(part: Part, data: str) -> Any:
    """Return the configuration of a part: what is not given are its defaults."""
    from engine.config.load import config_from_mapping, with_overrides

    training: dict[str, Any] = {
        "max_steps": part.steps,
        "seed": part.seed,
        "max_length": 64,
        "per_device_train_batch_size": 1,
    }
    mapping: dict[str, Any] = {
        "model": {"id": "smollm2-135m-instruct"},
        "adapter": {"method": part.method},
        "dataset": {"source": data, "eval_fraction": 0.02},
        "training": training,
    }
    if part.defaults == "old":
        training.update(OLD_DEFAULTS)
        mapping["adapter"] |= OLD_ADAPTERS.get(part.method, {})
    elif part.defaults != "new":
        mapping = with_overrides(mapping, part.defaults.split())
    return config_from_mapping(mapping)


def train(part: Part, data: str) -> float:
    """Train one part in this process, and return its held-out loss."""
    from tests.benchmarks.our_training import build, trainer_of

    trainer = trainer_of(build(config_of(part, data)), lambda _: None)
    trainer.train()
    return float(trainer.measure_held_out().eval_loss)


def measure(parts: Sequence[Part], data: str, folder: Path) -> None:
    """Train the parts that the folder has no loss of, all in one process of their own."""
    missing = [part for part in parts if not (folder / part.file_name).exists()]
    if not missing:
        return
    argv = [sys.executable, "-m", "tests.benchmarks.method_defaults", data, "--parts", json.dumps(missing)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        for part in missing:
            loss = process.stdout.readline() if process.stdout is not None else ""
            if not loss:
                raise SystemExit(f"{part.file_name}: the training ended without a loss.")
            (folder / part.file_name).write_text(loss)
            print(f"{Path(part.file_name).stem}: {loss}", end="", file=sys.stderr, flush=True)


def table(asked: argparse.Namespace) -> bool:
    """Measure and print a line for each method; returns whether no new default is worse."""
    names, seeds = asked.defaults.split(","), [int(seed) for seed in asked.seeds.split(",")]
    print(f"{'method':15}" + "".join(f"{name:>9}" for name in names) + f"{'new - old':>11}")
    never_worse = True
    for method in asked.methods.split(","):
        parts = {name: [Part(method, name, seed, asked.steps) for seed in seeds] for name in names}
        measure([part for of_name in parts.values() for part in of_name], asked.data, asked.folder)
        losses = {
            name: statistics.mean(float((asked.folder / part.file_name).read_text()) for part in of_name)
            for name, of_name in parts.items()
        }
        both = {"old", "new"} <= losses.keys()
        difference = losses["new"] - losses["old"] if both else 0.0
        never_worse &= difference <= _WORSE
        print(f"{method:15}" + "".join(f"{losses[name]:9.4f}" for name in names) + f"{difference:+11.4f}", flush=True)
    return never_worse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a file of rows, such as alpaca_en_999.json")
    parser.add_argument("--methods", default=",".join(METHODS), help="names of adapter.method, with commas between")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of each training")
    parser.add_argument("--defaults", default="old,new", help="also overrides, such as training.learning_rate=1e-3")
    parser.add_argument("--folder", type=Path, default=Path(".method-defaults"), help="keeps what was measured")
    parser.add_argument("--parts", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    options.data = str(Path(options.data).resolve())
    if options.parts:
        from engine.training.worker import keep_freed_memory

        keep_freed_memory()  # before torch, as the worker does
        for part in json.loads(options.parts):
            print(json.dumps(train(Part(*part), options.data)), flush=True)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    if not table(options):
        raise SystemExit("A new default is worse than the old one.")


if __name__ == "__main__":
    main()
