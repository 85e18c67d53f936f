"""A worker that keeps the contract without training: what it does stands in the name of its run.

The name is a list of words: `steps=20 pace=0.02 checkpoint=5 hold=8` (after step 8, until the run's folder has a file
`go`), and at most one mishap `MISHAP@STEP`, where
MISHAP is kill, segv, term, exit0, exit3, fail, hang, stop-self, deaf (ignores every request), orphan (leaves a child).
Started as `python -m tests.supervision.fake_worker RUN_DIR`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from loratory.engine.errors import RunError
from loratory.engine.runs.history.events import (
    CheckpointData,
    EvalData,
    FailedData,
    MemoryData,
    ParametersData,
    ResumedData,
    StatusData,
    StepData,
)
from loratory.engine.runs.history.log import EventWriter
from loratory.engine.runs.run import RunFolder


class Plan:
    """What a run's name asks for."""

    def __init__(self, name: str) -> None:
        self.steps, self.pace, self.checkpoint, self.before, self.hold, self.attempts = 5, 0.02, 0, 0.0, -1, 1
        self.mishap, self.mishap_step = "", -1
        for word in name.split():
            key, equals, value = word.partition("=")
            if equals and key in vars(self):
                setattr(self, key, type(getattr(self, key))(value))
            elif "@" in word:
                self.mishap, _, step = word.partition("@")
                self.mishap_step = int(step)


def main(path: Path) -> int:
    folder = RunFolder(path)
    try:
        claim = folder.claim()
    except RunError as error:
        print(error, file=sys.stderr)
        return 3
    plan = Plan(folder.read_config().run.name)
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    with (path / "executions").open("a") as file:  # how often the run was really executed
        file.write(f"{claim.attempt}\n")
    events = EventWriter(folder.events, claim.attempt)
    time.sleep(plan.before)
    events.append(StatusData(phase="loading_model", message="Loading the model."))
    first = 1
    newest = folder.newest_checkpoint_step()
    if claim.attempt > 1 and newest is not None:
        events.append(ResumedData(step=newest, checkpoint=f"step-{newest}"))
        first = newest + 1
    events.append(
        ParametersData(trainable=10, total=100, compute_dtype="float32", device="cpu", attn_implementation="sdpa")
    )
    events.append(StatusData(phase="training", message="Training.", total_steps=plan.steps))
    if first == 1:
        events.append(EvalData(step=0, eval_loss=3.0, eval_tokens=10, rows=2, seconds=0.1))
    deaf = plan.mishap == "deaf"
    for step in range(first, plan.steps + 1):
        if not deaf and folder.cancel_request.exists():
            events.append(StatusData(phase="stopped", message="Cancelled.", stopped_by="cancel"))
            return 0
        if not deaf and (folder.stop_request.exists() or signals):
            save(folder, events, step - 1)
            folder.adapter.mkdir(exist_ok=True)
            who = "The system asked to end (SIGTERM)." if signals else "Stopped on request."
            events.append(
                StatusData(
                    phase="stopped",
                    message=f"{who} Saved after step {step - 1}.",
                    stopped_by="sigterm" if signals else "request",
                )
            )
            return 0
        time.sleep(plan.pace)
        events.append(
            StepData(
                step=step, epoch=step / plan.steps, loss=3.0 - step / plan.steps, learning_rate=1e-4, grad_norm=1.0,
                tokens=step * 100, trained_tokens=step * 60, tokens_per_second=1000.0, memory_bytes=10_000,
            )
        )  # fmt: skip
        if plan.checkpoint and step % plan.checkpoint == 0:
            save(folder, events, step)
        while step == plan.hold and not (path / "go").exists():
            time.sleep(0.01)
        if step == plan.mishap_step and claim.attempt <= plan.attempts:
            code = happen(plan.mishap, events)
            if code is not None:
                return code
    events.append(EvalData(step=plan.steps, eval_loss=1.5, eval_tokens=10, rows=2, seconds=0.1))
    events.append(MemoryData(peak_process_bytes=123_456_789))
    folder.adapter.mkdir(exist_ok=True)
    events.append(StatusData(phase="finished", message="Finished."))
    return 0


def save(folder: RunFolder, events: EventWriter, step: int) -> None:
    if step < 1:
        return
    checkpoint = folder.checkpoint(step)
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "MANIFEST.json").write_text(json.dumps({"step": step, "files": {}}))
    events.append(CheckpointData(step=step, name=checkpoint.name, size_bytes=10))


def happen(mishap: str, events: EventWriter) -> int | None:
    """Do what goes wrong; an exit code where the worker ends by it."""
    signals = {"kill": "SIGKILL", "segv": "SIGSEGV", "stop-self": "SIGSTOP"}
    if mishap in signals:
        os.kill(os.getpid(), getattr(signal, signals[mishap]))
        time.sleep(0.2)
    elif mishap == "term":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    elif mishap == "hang":
        time.sleep(3600)
    elif mishap == "orphan":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        os.kill(os.getpid(), signal.SIGKILL)
    elif mishap == "fail":
        events.append(FailedData(cause="diverged", what="The loss is not a number.", fix="Lower the learning rate."))
        return 1
    elif mishap.startswith("exit"):
        return int(mishap.removeprefix("exit"))
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
