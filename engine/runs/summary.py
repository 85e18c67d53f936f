"""A run in one row: what lists show and what `loratory show` prints."""

from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from engine.config.run import RunConfig
from engine.errors import EngineError
from engine.runs.history.reader import HistoryReader
from engine.runs.history.run_history import RunHistory
from engine.runs.notes import RunNotes, read_notes
from engine.runs.peaks import MemoryFigures, chief_prediction, measured_figures
from engine.runs.provenance import Provenance, describe_config, read_provenance
from engine.runs.reasons import Reason
from engine.runs.run import Run, RunFolder, RunState, State
from engine.runs.store import folder_size_bytes

_QUICK_YAML_CHARACTERS = 20_000
_QUICK_YAML_BRACKETS = 100
_QUICK_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    reason: Reason | None = None
    cause: str = ""
    advice: str = ""
    notice: str = ""  # what a person should know in addition
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
    predicted_bytes: int | None = None  # its counterpart in the estimate
    measured_memory: MemoryFigures | None = None
    predicted_memory: MemoryFigures | None = None  # None for runs that kept the one figure alone
    size_bytes: int = 0  # of the run's folder
    energy_joules: float | None = None  # as the GPUs measured it

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
    history = HistoryReader.of_run(run).update() if history is None else history
    provenance = read_provenance(run.folder)
    notes = read_notes(run.folder)
    state = run.folder.read_state()
    values: dict[str, Any] = {
        "id": run.id,
        "owner": run.owner,
        "note": notes.note,
        "tags": notes.tags,
        "created": provenance.created,
        "predicted_bytes": chief_prediction(provenance.predicted_memory, history.memory, provenance.predicted_bytes),
        "predicted_memory": provenance.predicted_memory,
        "size_bytes": folder_size_bytes(run.folder.path) if size_bytes is None else size_bytes,
        **_of_config(run, provenance, notes),
        **_of_state(state),
        **_of_history(history),
    }
    return RunSummary.model_validate(values)


def _of_config(run: Run, provenance: Provenance, notes: RunNotes) -> dict[str, Any]:
    described: dict[str, Any] = {name: getattr(provenance, name) for name in ("method", "model", "dataset")}
    title = provenance.title
    if not title:
        facts = _facts_of_config(run.folder)
        title = str(facts.pop("title"))
        described |= facts
    return {"name": notes.name or title, **described}


def _facts_of_config(folder: RunFolder) -> dict[str, Any]:
    """What provenance would repeat, for runs that came without one; thousands of them may be asked for at once."""
    try:
        text = folder.config.read_text(encoding="utf-8")
        if len(text) < _QUICK_YAML_CHARACTERS and text.count("[") + text.count("{") < _QUICK_YAML_BRACKETS:
            # libyaml is ten times as fast, but its recursion is bounded by the stack only.
            return describe_config(RunConfig.model_validate(yaml.load(text, Loader=_QUICK_LOADER)))  # noqa: S506 - safe
        return describe_config(folder.read_config())
    except (OSError, ValueError, yaml.YAMLError, EngineError):
        # Lost, edited by hand, or of another version: the run is listed all the same.
        return {"title": "(configuration unreadable)"}


def _of_state(state: RunState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in RunState.model_fields if name in RunSummary.model_fields}


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
        "measured_memory": None if memory is None else measured_figures(memory),
    }
