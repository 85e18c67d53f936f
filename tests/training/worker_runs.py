"""Runs of the tiny model for real workers: a home, a dataset, and readers of their events."""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loratory.engine.config.load import config_from_mapping
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.checkpoints import Checkpoint, damage, list_checkpoints
from loratory.engine.runs.history.events import Event
from loratory.engine.runs.history.log import read_events
from loratory.engine.runs.history.run_history import RunHistory, read_history
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import RunStore

WORDS = "rank alpha adapter dropout target layer batch step loss rate token frozen weight base tune".split()


def write_questions(path: Path, count: int = 30) -> Path:
    """Write an Alpaca file of short made-up questions and answers."""
    generator = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            answer = generator.choices(WORDS, k=generator.randint(2, 6))
            row = {"instruction": f"What is {answer[0]} {number}?", "input": "", "output": " ".join(answer)}
            file.write(json.dumps(row) + "\n")
    return path


@dataclass(frozen=True)
class WorkerRuns:
    """Makes runs in one home."""

    home: LoratoryHome
    model: Path
    data: Path

    def create(self, **sections: dict[str, Any]) -> Run:
        """Create a run of ten steps with a checkpoint every five, unless the sections say otherwise."""
        values: dict[str, Any] = {
            "model": {"id": str(self.model)},
            "adapter": {"r": 4, "lora_alpha": 8},
            "dataset": {"source": str(self.data), "eval_fraction": 0.1},
            "training": {
                "max_steps": 10,
                "save_steps": 5,
                "eval_steps": 5,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-3,
                "max_length": 96,
                # Only what a test is about may end a run or save a checkpoint.
                "early_stopping_patience": None,
                "warmup_steps": 0.03,
                "eval_max_new_tokens": 0,
            },
            "run": {"devices": "cpu"},
        }
        for name, section in sections.items():
            values[name] = values.get(name, {}) | section
        return RunStore(self.home, "ann").create(config_from_mapping(values))


def events_of(run: Run) -> list[Event]:
    """Return all events of a run."""
    return list(read_events(run.folder.events).events)


def data_of_events(run: Run, kind: str) -> list[Any]:
    """Return the data of all events of a kind."""
    return [event.data for event in events_of(run) if event.kind == kind]


def history_of(run: Run) -> RunHistory:
    """Read the history of a run."""
    return read_history(run.folder.events)


def losses_of(run: Run) -> list[tuple[int, float]]:
    """Return pairs of step and loss, without superseded ones."""
    steps = history_of(run).steps
    return list(zip(steps.steps.tolist(), steps.losses.tolist(), strict=True))


def require_losses_of(run: Run, expected: Run, rel: float = 1e-3) -> None:
    """Require the losses of another run, step by step, within rounding."""
    assert losses_of(run) == [(step, pytest.approx(loss, rel=rel)) for step, loss in losses_of(expected)]


def newest_intact(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint without damage, as a worker that resumes finds it."""
    return next((known for known in reversed(list_checkpoints(folder)) if not damage(known)), None)


def is_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent to a process and has not reached it."""
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(pending, 16) >> (number - 1) & 1)
