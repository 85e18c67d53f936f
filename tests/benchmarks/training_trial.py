"""One measured training of the demo model on Alpaca rows, in a process of its own: ours or a plain script's.

Both learn the same rows in the same order. `python -m tests.benchmarks.training_trial KIND RECIPE` prints a trial as
JSON; `measure` does this from another program.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from loratory.engine.processes.spawn import LIBRARY_ENVIRONMENT, allocator_environment

REPOSITORY = Path(__file__).resolve().parents[2]
ALPACA = REPOSITORY.parent / "shared" / "data" / "alpaca_en_999.json"

WARM_UP_STEPS = 3  # not timed: kernels are compiled for the first shapes
LEARNING_RATE = 2e-4
RANK, ALPHA = 16, 32

Kind = Literal["ours", "plain"]
DtypeName = Literal["bfloat16", "float32"]


def faster_dtype() -> DtypeName:
    """Return what this processor multiplies faster: a script that is tuned for it computes in that, as ours does by itself."""
    from loratory.engine.hardware.processor import describe_processor

    return "bfloat16" if describe_processor().has_fast_bfloat16 else "float32"


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how.

    Attributes:
        steps: Optimizer steps.
        dropout: Of LoRA.
        rows_per_pass, accumulate: Their product is what a step learns.
        max_length: Tokens after which rows are cut.
        held_out_share: Of all rows.
        measured_at: Steps after which the held-out loss is measured; it is not part of the time.
        plain: `tuned` keeps activations; `documented` is TRL's own choice of everything.
        plain_dtype: What `tuned` loads and computes in.
        objective: What is optimized; dpo learns pairs of answers, whose reference is the model without its adapter.
    """

    steps: int
    dropout: float = 0.0
    rows_per_pass: int = 2
    accumulate: int = 4
    max_length: int = 512
    held_out_share: float = 0.03
    measured_at: tuple[int, ...] = ()
    plain: Literal["tuned", "documented"] = "tuned"
    plain_dtype: DtypeName = field(default_factory=faster_dtype)
    objective: Literal["sft", "dpo"] = "sft"

    @property
    def rows_per_step(self) -> int:
        return self.rows_per_pass * self.accumulate


@dataclass
class Trial:
    """What one process measured, after the warm-up."""

    seconds: float
    cpu_seconds: float
    trained_tokens: int
    tokens: int
    losses: list[float]
    held_out: dict[str, float] = field(default_factory=dict)  # by step, written out as JSON wants it
    peak_mib: float = 0.0  # of the whole process, with loading

    @property
    def speed(self) -> float:
        """Trained tokens per second."""
        return self.trained_tokens / self.seconds

    @property
    def cpu_speed(self) -> float:
        """Trained tokens per second of processor time: what the ratio would be on a machine that no one else uses."""
        return self.trained_tokens / self.cpu_seconds


class Prepared(NamedTuple):
    """Model folder, tokenizer and rows."""

    source: Any
    tokenizer: Any
    data: Any


class Clock:
    """Wall and processor time since the warm-up, without what was measured meanwhile."""

    def __init__(self) -> None:
        self._began = (0.0, 0.0)

    def start(self) -> None:
        self._began = (time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]

    def without(self, act: Callable[[], float]) -> float:
        """Do something that does not count."""
        before = (time.perf_counter(), time.process_time())
        result = act()
        took = (time.perf_counter() - before[0], time.process_time() - before[1])
        self._began = (self._began[0] + took[0], self._began[1] + took[1])
        return result


def config_for(recipe: Recipe) -> Any:
    """Our configuration of a recipe."""
    from loratory.engine.config.load import config_from_mapping

    source = str(ALPACA) if ALPACA.exists() else "sample:loratory-faq"
    if recipe.objective == "dpo":
        source = "sample:loratory-preferences"
    return config_from_mapping(
        {
            "model": {"id": "smollm2-135m-instruct"},
            "adapter": {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": recipe.dropout},
            "dataset": {"source": source, "eval_fraction": recipe.held_out_share},
            "training": {
                "max_steps": recipe.steps,
                "per_device_train_batch_size": recipe.rows_per_pass,
                "gradient_accumulation_steps": recipe.accumulate,
                "learning_rate": LEARNING_RATE,
                "max_length": recipe.max_length,
                "objective": recipe.objective,
            },
        }
    )


def prepare(config: Any) -> Prepared:
    """Find the model and tokenize the rows."""
    from loratory.engine.config.objectives import objective_of
    from loratory.engine.data.passes.prepare import prepare_dataset
    from loratory.engine.inspector.worker.load_tokenizer import load_tokenizer
    from loratory.engine.models.source import resolve_model
    from loratory.engine.paths import LoratoryHome

    root = os.environ.get("LORATORY_TEST_HOME")
    home = LoratoryHome(Path(root)) if root else LoratoryHome.from_environment()
    source = resolve_model(config.model, home)
    tokenizer, _ = load_tokenizer(source)
    data = prepare_dataset(
        config.dataset,
        seed=config.training.seed,
        max_length=config.training.max_length,
        tokenizer=tokenizer,
        home=home,
        objective=objective_of(config),
    )
    return Prepared(source, tokenizer, data)


def measure(kind: Kind, recipe: Recipe, label: str = "1") -> Trial:
    """Run one trial in a process of its own, and return what it measured."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.training_trial", kind, json.dumps(asdict(recipe))],
        cwd=REPOSITORY,
        env=_environment(kind),
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(process.stderr[-3000:])
    result = Trial(**json.loads(process.stdout.splitlines()[-1]))
    print(f"{kind}, {label}: {result.speed:.0f} trained tokens/s", file=sys.stderr, flush=True)
    return result


def _environment(kind: Kind) -> dict[str, str]:
    """Our worker's threads and allocator are as `loratory.engine.processes.spawn` has them; a script's as they are by themselves."""
    worker = LIBRARY_ENVIRONMENT | allocator_environment()
    environment = {name: value for name, value in os.environ.items() if name not in worker}
    return {**environment, **(worker if kind != "plain" else {}), "PYTHONWARNINGS": "ignore"}


def main() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    kind, values = sys.argv[1], json.loads(sys.argv[2])
    recipe = Recipe(**{**values, "measured_at": tuple(values["measured_at"])})
    if kind == "plain":
        from tests.benchmarks.plain_script import train_plain, train_plain_on_pairs

        result = train_plain_on_pairs(recipe) if recipe.objective == "dpo" else train_plain(recipe)
    else:
        from loratory.engine.training.worker import keep_freed_memory

        keep_freed_memory()  # before torch, as the worker does
        from tests.benchmarks.our_training import train_ours

        result = train_ours(recipe)
    result.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
