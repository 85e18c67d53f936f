"""A run in one row: what lists show and what `loratory show` prints."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.runs.history import RunHistory, read_history
from engine.runs.notes import RunNotes, read_notes
from engine.runs.provenance import read_provenance
from engine.runs.run import Run, RunState, State
from engine.runs.store import folder_size_bytes


class RunSummary(BaseModel):
    """The figures of a run. Times are seconds since the epoch, losses mean nats per trained token, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")

    id: str
    owner: str
    name: str
    note: str = ""
    tags: tuple[str, ...] = ()

    state: State
    phase: str = ""  # of the worker, while it works
    cause: str = ""
    advice: str = ""
    attempt: int = 0
    resumable_step: int | None = None
    device: str = ""

    method: str = ""
    model: str = ""
    dataset: str = ""

    created: float = 0.0
    started: float | None = None
    ended: float | None = None

    steps: int = 0
    total_steps: int | None = None
    final_loss: float | None = None  # of the newest logged step
    base_eval_loss: float | None = None  # held out, before the first update
    eval_loss: float | None = None  # held out, newest
    best_eval_loss: float | None = None
    best_step: int | None = None
    trained_tokens: int = 0
    tokens_per_second: float | None = None  # while training; loading, evaluations and saves do not count
    trainable_parameters: int | None = None
    peak_memory_bytes: int | None = None  # reserved on CUDA, resident on CPU
    predicted_bytes: int | None = None
    size_bytes: int = 0  # of the run's folder

    @property
    def seconds(self) -> float | None:
        """How long it ran; None before it started, or while it still runs."""
        return None if self.started is None or self.ended is None else max(self.ended - self.started, 0.0)


def summarize(run: Run, history: RunHistory | None = None, size_bytes: int | None = None) -> RunSummary:
    """Draw up the row of one run.

    Args:
        run: The run.
        history: Its history where the caller follows it anyway; else the whole log is read.
        size_bytes: Size of its folder where the caller knows it.
    """
    history = read_history(run.folder.events) if history is None else history
    provenance = read_provenance(run.folder)
    notes = read_notes(run.folder)
    state = run.folder.read_state()
    try:
        config = run.folder.read_config()
    except EngineError:  # edited by hand, or written by another version: the run is listed all the same
        config = None
    values: dict[str, Any] = {
        "id": run.id,
        "owner": run.owner,
        "note": notes.note,
        "tags": notes.tags,
        "created": provenance.created,
        "predicted_bytes": provenance.predicted_bytes,
        "size_bytes": folder_size_bytes(run.folder.path) if size_bytes is None else size_bytes,
        **_of_config(config, notes),
        **_of_state(state),
        **_of_history(history),
    }
    return RunSummary.model_validate(values)


def run_title(config: RunConfig) -> str:
    """What a run is called: its name, or one made of model, method and data."""
    if config.run.name:
        return config.run.name
    model = config.model.id.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    source = config.dataset.source.removeprefix("sample:").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return f"{model} · {config.method_name} · {source}"


def _of_config(config: RunConfig | None, notes: RunNotes) -> dict[str, Any]:
    if config is None:
        return {"name": notes.name or "(configuration unreadable)"}
    return {
        "name": notes.name or run_title(config),
        "method": config.method_name,
        "model": config.model.id,
        "dataset": config.dataset.source,
    }


def _of_state(state: RunState) -> dict[str, Any]:
    names = ("state", "cause", "advice", "attempt", "resumable_step", "device", "started", "ended")
    return {name: getattr(state, name) for name in names}


def _of_history(history: RunHistory) -> dict[str, Any]:
    base, best = history.base_eval, history.best_eval
    tuned = history.tuned_evals
    memory = history.memory
    return {
        "phase": history.status.phase if history.status is not None else "",
        "steps": history.last_step,
        "total_steps": history.total_steps,
        "final_loss": history.steps.last("loss"),
        "base_eval_loss": base.eval_loss if base is not None else None,
        "eval_loss": tuned[-1].eval_loss if tuned else None,
        "best_eval_loss": best.eval_loss if best is not None else None,
        "best_step": best.step if best is not None else None,
        "trained_tokens": int(history.steps.last("trained_tokens") or 0),
        "tokens_per_second": history.mean_tokens_per_second(),
        "trainable_parameters": history.parameters.trainable if history.parameters is not None else None,
        "peak_memory_bytes": None if memory is None else memory.peak_reserved_bytes or memory.peak_process_bytes,
    }
