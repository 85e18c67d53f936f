"""Runs that never ran: directories as a supervisor and a worker would have left them."""

import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loratory.engine.config.load import config_from_mapping
from loratory.engine.config.run import RunConfig
from loratory.engine.files import sha256_of
from loratory.engine.runs.checkpoints import ADAPTER_SUBFOLDER, MANIFEST, Manifest, ManifestFile
from loratory.engine.runs.history.events import (
    AnswersData,
    CheckpointData,
    DataReportData,
    EvalData,
    FailedData,
    MemoryData,
    ParametersData,
    StatusData,
    StepData,
    WarningData,
)
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.provenance import MemoryFigures, Provenance
from loratory.engine.runs.run import Reason, Run, RunState, State
from loratory.engine.runs.store import RunStore

GIB = 2**30
BASE_LOSS = 2.71


def a_config(**changes: object) -> RunConfig:
    """Return a small complete configuration; `training__max_steps=20` changes one setting."""
    mapping: dict[str, dict[str, object]] = {
        "model": {"id": "smollm2-135m-instruct"},
        "dataset": {"source": "sample:loratory-faq"},
        "training": {"max_steps": 120, "max_length": 512},
    }
    for name, value in changes.items():
        section, _, setting = name.partition("__")
        mapping.setdefault(section, {})[setting] = value
    return config_from_mapping(mapping)


@dataclass
class InventedRun:
    """What a made-up run went through."""

    state: State = "completed"
    steps: int = 120
    total_steps: int = 120
    seconds_per_step: float = 0.8
    floor: float = 0.9  # where the loss ends up
    seed: int = 0
    warnings: tuple[str, ...] = ()
    failed: FailedData | None = None
    reason: Reason | None = None
    cause: str = ""
    advice: str = ""
    resumable_step: int | None = None
    age_seconds: float = 3600.0
    with_adapter: bool = True
    answers: bool = False  # whether prompts were answered in evaluations
    origin: dict[str, Any] = field(default_factory=dict)  # facts of its provenance
    log: str = "Loading the model.\n{'loss': 2.41, 'epoch': 0.1}\n{'loss': 1.97, 'epoch': 0.2}\n"


def write_run(store: RunStore, config: RunConfig, story: InventedRun) -> Run:
    """Make a run directory as its supervisor and its worker would have left it."""
    start_time = time.time() - story.age_seconds
    provenance = Provenance(
        predicted_bytes=int(1.32 * GIB),
        predicted_memory=MemoryFigures(process_bytes=int(1.32 * GIB)),
        libraries={"torch": "2.13.0", "transformers": "5.24.0", "peft": "0.21.2"},
        **story.origin,
    )
    run = store.create(config, provenance)
    start = None
    if story.state != "queued":
        start = start_time
        with EventWriter(run.folder.events, attempt=1) as writer:
            scribe = Scribe(writer, story)
            scribe.begin()
            for step in range(1, story.steps + 1):
                scribe.step(step)
            for warning in story.warnings:
                writer.append(WarningData(message=warning))
            if story.failed is not None:
                writer.append(story.failed)
            if story.state in ("completed", "stopped"):
                writer.append(StatusData(phase="finished" if story.state == "completed" else "stopped"))
        run.folder.log.write_text(story.log, encoding="utf-8")
        for step in scribe.saved:
            write_checkpoint(run, step)
        if story.with_adapter and story.state in ("completed", "stopped"):
            write_adapter(run.folder.adapter)
    is_final = story.state in ("completed", "stopped", "failed", "interrupted")
    end_time = start_time + story.steps * story.seconds_per_step + 11 if is_final else None
    run.folder.write_state(
        RunState(
            state=story.state,
            reason=story.reason,
            cause=story.cause,
            advice=story.advice,
            attempt=1 if start else 0,
            resumable_step=story.resumable_step,
            device="cpu",
            changed=start_time,
            started=start,
            ended=end_time,
        )
    )
    return run


def write_adapter(folder: Path) -> None:
    """Write files of an adapter by name and rough size; none of them can be loaded."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}', encoding="utf-8"
    )
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 19_000)
    (folder / "tokenizer.json").write_bytes(b" " * 3_500)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}…{% endfor %}", encoding="utf-8")


def write_checkpoint(run: Run, step: int) -> None:
    """Write a checkpoint that is complete by its manifest."""
    folder = run.folder.checkpoint(step)
    write_adapter(folder / ADAPTER_SUBFOLDER)
    files = {
        path.relative_to(folder).as_posix(): ManifestFile(size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in folder.rglob("*")
        if path.is_file()
    }
    (folder / MANIFEST).write_text(Manifest(step=step, files=files).model_dump_json(), encoding="utf-8")


@dataclass
class Scribe:
    """Writes what a worker would, step by step."""

    writer: EventWriter
    story: InventedRun
    saved: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.story.seed)

    def begin(self) -> None:
        total = self.story.total_steps
        self.writer.append(StatusData(phase="loading_model", message="Loading smollm2-135m-instruct."))
        self.writer.append(
            ParametersData(
                trainable=4_884_480,
                total=139_399_488,
                compute_dtype="bfloat16",
                device="CPU",
                attn_implementation="sdpa",
            )
        )
        self.writer.append(
            DataReportData(train_rows=312, eval_rows=35, dropped_rows=2, trained_tokens=13_300, masked_tokens=7_700)
        )
        self.writer.append(EvalData(step=0, eval_loss=BASE_LOSS, eval_tokens=1500, rows=35, seconds=2.0))
        self.answer(0)
        self.writer.append(StatusData(phase="training", message="Training.", total_steps=total))

    def step(self, number: int) -> None:
        story, total = self.story, self.story.total_steps
        share = number / total
        loss = story.floor + (BASE_LOSS - story.floor) * math.exp(-5 * share) + self._random.gauss(0, 0.09)
        warm = min(1.0, number / max(1, 0.05 * total))
        self.writer.append(
            StepData(
                step=number,
                epoch=3 * share,
                loss=loss,
                learning_rate=2e-4 * warm * 0.5 * (1 + math.cos(math.pi * share)),
                grad_norm=1.4 * math.exp(-2 * share) + self._random.random() * 0.3,
                tokens=number * 540,
                trained_tokens=number * 340,
                tokens_per_second=540 / story.seconds_per_step * (1 + self._random.gauss(0, 0.04)),
                memory_bytes=int((1.05 + 0.12 * (1 - math.exp(-number / 10))) * GIB),
            )
        )
        if number % max(1, total // 10) == 0:
            held_out = story.floor + 0.06 + (BASE_LOSS - story.floor) * math.exp(-5 * share)
            self.writer.append(EvalData(step=number, eval_loss=held_out, eval_tokens=1500, rows=35, seconds=1.9))
            self.answer(number)
        if number % max(1, total // 4) == 0:
            self.saved = [*self.saved[-1:], number]
            self.writer.append(CheckpointData(step=number, name=f"step-{number}", size_bytes=41_000_000))
            self.writer.append(MemoryData(peak_process_bytes=int(1.19 * GIB), predicted_bytes=int(1.32 * GIB)))

    def answer(self, step: int) -> None:
        """Answer two prompts, with more of the right words as training goes on."""
        if self.story.answers:
            right = "the rank of the two small matrices".split()
            learned = right[: round(len(right) * step / self.story.total_steps)]
            data = AnswersData(
                step=step,
                names=("Row 12", "Say <hello>"),
                prompts=("<|im_start|>user\nWhat is r?<|im_end|>\n<|im_start|>assistant\n", "Say <hello>"),
                references=(" ".join(right), ""),
                answers=(" ".join([*learned, *["a", "letter"] * (len(learned) < len(right))]), "<b>hello</b>"),
                seconds=0.9,
            )
            self.writer.append(data)
