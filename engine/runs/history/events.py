"""The events of a worker: one typed event per line, in order of time.

Line: `{"v":1,"seq":41,"attempt":1,"time":1764000000.5,"kind":"step","data":{…}}`. Later versions may add kinds and
fields; readers skip kinds and fields that they do not know.

A new kind is one class here: `EventData` registers it, so the log writes and reads it. What reports it and what
shows it name the class; `run_history.py` keeps it where it belongs to the history.
"""

import re
from typing import Any, ClassVar, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, SerializeAsAny, ValidationError

from loratory.engine.models.fingerprint import WeightsFile

EVENT_VERSION = 1
EVENT_KINDS: dict[str, type["EventData"]] = {}  # by the name in the log

Phase = Literal["loading_model", "reading_data", "preparing", "training", "evaluating", "saving", "finished", "stopped"]
StoppedBy = Literal["request", "cancel", "sigterm", "sigint", "disk_limit"]  # what made a worker save and end


class EventData(BaseModel):
    """The content of one event; each subclass is a kind."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    kind: ClassVar[str]
    may_be_lost: ClassVar[bool] = False  # in a power cut: frequent, and the next one repeats nearly all of it

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        EVENT_KINDS[cls.kind] = cls


class Event(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """One line of the log: an envelope that is the same for all kinds, around the content of one."""

    v: int = EVENT_VERSION
    seq: int
    attempt: int
    time: float  # seconds since the epoch
    kind: str
    data: SerializeAsAny[EventData]

    @classmethod
    def wrap(cls, data: EventData, *, seq: int, attempt: int, time: float) -> "Event":
        """Put the content of an event into its envelope."""
        return cls(seq=seq, attempt=attempt, time=time, kind=data.kind, data=data)


# Logs from other machines may have numbers that cannot be used here.
_LONG_NUMBER = re.compile(rb"[:,\[]\s*-?\d{19}")
_HUGE = 1 << 63


def _has_huge(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_huge, value.values()))
    if isinstance(value, list):
        return any(map(_has_huge, value))
    return isinstance(value, int) and abs(value) >= _HUGE


def parse_event(line: bytes) -> Event | None:
    """Return one event; None where the line is torn, foreign, or of a kind that this version does not know."""
    try:
        values = pydantic_core.from_json(line)
        if _LONG_NUMBER.search(line) and _has_huge(values):
            return None
        kind = EVENT_KINDS[values["kind"]]
        return Event.model_validate({**values, "data": kind.model_validate(values["data"])})
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
        return None


class StatusData(EventData):
    """The worker entered a phase; `message` describes it in words. `total_steps` once it is known."""

    kind = "status"

    phase: Phase
    message: str = ""
    total_steps: int | None = None
    stopped_by: StoppedBy | None = None  # of phase `stopped`


class StepData(EventData):
    """One logged optimizer step. `step` counts from 1; losses are means over trained tokens in nats."""

    kind = "step"
    may_be_lost = True

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    tokens: int  # trained and masked tokens seen so far, padding not counted
    trained_tokens: int = 0  # tokens in the loss so far
    tokens_per_second: float  # since the previous logged step
    memory_bytes: int | None = None  # allocated on CUDA at most since the previous logged step; resident on CPU now
    gpu: dict[str, float] = {}  # every few seconds: gpu_utilization in percent, gpu_watts, gpu_celsius
    metrics: dict[str, float] = {}  # of the objective, by TRL's names, such as rewards/margins


class EvalData(EventData):
    """Held-out loss. `step` 0 measures before the first update: the base model, where the adapter starts at zero."""

    kind = "eval"

    step: int
    eval_loss: float
    eval_tokens: int  # trained tokens that the mean is over
    rows: int
    seconds: float
    metrics: dict[str, float] = {}  # of the objective; rewards/accuracies is the preference accuracy on held-out pairs
    adapter_disabled: bool = False  # true if the base was measured by disabling the adapter

    @property
    def preference_accuracy(self) -> float | None:
        """Share of the held-out pairs whose chosen answer is preferred; None where there are no pairs."""
        return self.metrics.get("rewards/accuracies")

    @property
    def reward(self) -> float | None:
        """Mean reward of the answers to held-out prompts, whose negative is the loss; None where nothing is rewarded."""
        return self.metrics.get("reward")


class AnswersData(EventData):
    """Greedy answers to the same prompts at each evaluation; `step` 0 is before the first update."""

    kind = "answers"

    step: int
    names: tuple[str, ...]  # such as Row 12
    prompts: tuple[str, ...]  # as the model gets them
    references: tuple[str, ...]  # in the data; empty for a typed prompt
    answers: tuple[str, ...]
    seconds: float  # which those of the evaluation contain


class RolloutSample(BaseModel, frozen=True, ser_json_inf_nan="strings"):
    """One sampled answer; scores and reasons are those of the scorers, in their order."""

    prompt: str
    answer: str
    scores: tuple[float | None, ...]
    reasons: tuple[str, ...] = ()
    advantage: float


class RolloutData(EventData):
    """Some of the answers that a step was trained on, at some of the steps; texts are cut."""

    kind = "rollout"
    may_be_lost = True

    step: int
    samples: tuple[RolloutSample, ...]
    answers: int  # of the step, in all
    tokens: int  # of these answers
    generation_seconds: float
    scoring_seconds: float


class CheckpointData(EventData):
    """A complete checkpoint is at `checkpoints/<name>`."""

    kind = "checkpoint"

    step: int
    name: str
    size_bytes: int
    best: bool = False
    seconds: float | None = None  # that writing it took


class MemoryData(EventData):
    """Peaks of the worker so far. On a CPU only `peak_process_bytes` is known."""

    kind = "memory"
    may_be_lost = True

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_process_bytes: int  # resident in RAM
    peak_device_process_bytes: int | None = None  # of the GPU, all that the driver counts for the process
    predicted_bytes: int | None = None  # by the estimate before the start


class ParametersData(EventData):
    """Counts as PEFT's `print_trainable_parameters` gives them, and what the worker chose where `auto` was asked."""

    kind = "parameters"

    trainable: int
    total: int
    compute_dtype: str
    device: str
    attn_implementation: str
    optim: str = ""  # the optimizer's kernel, where the device has a better one for the same algorithm
    merged_passes: int = 1  # of the settings that go through the model as one, at most
    batching: str = ""  # joined: rows behind one another without padding; padded: side by side
    optimizations: dict[str, str] = {}  # of `loratory.engine.config.optimizations`: why one is not used, "" where it is


class BaseWeightsData(EventData):
    """The files of the base that the attempt trains on; hashes follow in a later one where they take time."""

    kind = "base_weights"

    files: tuple[WeightsFile, ...]


class DataReportData(EventData):
    """The data that the trainer got."""

    kind = "data_report"

    train_rows: int
    eval_rows: int
    dropped_rows: int
    trained_tokens: int
    masked_tokens: int
    truncated_rows: int = 0
    images: int = 0  # of the rows that are trained on
    chosen_longer: float | None = None  # share of the pairs of two lengths whose chosen answer is the longer one


class WarningData(EventData):
    """A warning; training continues."""

    kind = "warning"

    message: str
    code: str = ""


class FailedData(EventData):
    """Why the worker gave up: `what` happened and how to `fix` it, in words. worker.log has details."""

    kind = "failed"

    cause: Literal["out_of_memory", "diverged", "disk_full", "config", "dataset", "model", "killed", "unexpected"]
    what: str
    fix: str


class ResumedData(EventData):
    """A later attempt continues from `step`; steps beyond it of earlier attempts no longer count."""

    kind = "resumed"

    step: int
    checkpoint: str | None = None


def is_last_word(data: EventData) -> bool:
    """Whether this event is a worker's last one."""
    return isinstance(data, FailedData) or (isinstance(data, StatusData) and data.phase in ("finished", "stopped"))
