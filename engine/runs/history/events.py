"""What a worker says while it runs: one typed event a line, in the order in which things happened.

Line: `{"v":1,"seq":41,"attempt":1,"time":1764000000.5,"kind":"step","data":{…}}`. Later versions may add kinds and
fields; readers skip kinds that they do not know and ignore fields that they do not know.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from engine.runs.reasons import StoppedBy, stopped_by_of_old_words

EVENT_VERSION = 1

Phase = Literal["loading_model", "reading_data", "preparing", "training", "evaluating", "saving", "finished", "stopped"]


class EventData(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class StatusData(EventData):
    """The worker entered a phase; `message` says it in words. `total_steps` once it is known."""

    phase: Phase
    message: str = ""
    total_steps: int | None = None
    stopped_by: StoppedBy | None = None  # of phase `stopped`

    @model_validator(mode="before")
    @classmethod
    def _read_old_words(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("phase") == "stopped" and "stopped_by" not in values:
            return {**values, "stopped_by": stopped_by_of_old_words(str(values.get("message", "")))}
        return values


class StepData(EventData):
    """One logged optimizer step. `step` counts from 1; losses are means over trained tokens in nats."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    tokens: int  # trained and masked tokens seen so far, padding not counted
    trained_tokens: int = 0  # tokens in the loss so far
    tokens_per_second: float  # since the previous logged step
    memory_bytes: int | None = None  # allocated on CUDA at most since the previous logged step; resident on CPU now


class EvalData(EventData):
    """Held-out loss. `step` 0 measures before the first update: the base model, where the adapter starts at zero."""

    step: int
    eval_loss: float
    eval_tokens: int  # trained tokens that the mean is over
    rows: int
    seconds: float
    adapter_disabled: bool = False  # true where the base was measured by switching the adapter off


class CheckpointData(EventData):
    """A complete checkpoint now stands at `checkpoints/<name>`."""

    step: int
    name: str
    size_bytes: int
    best: bool = False


class MemoryData(EventData):
    """Peaks of the worker so far. On a CPU only `peak_process_bytes` is known."""

    peak_allocated_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    peak_process_bytes: int  # resident in RAM
    peak_device_process_bytes: int | None = None  # of the GPU, all that the driver counts for the process
    predicted_bytes: int | None = None  # what the estimate said before the start


class ParametersData(EventData):
    """Counts as PEFT's `print_trainable_parameters` gives them, and what the worker chose where `auto` was asked."""

    trainable: int
    total: int
    compute_dtype: str
    device: str
    attn_implementation: str
    optim: str = ""  # the optimizer's kernel, where the device has a better one for the same algorithm
    batching: str = ""  # joined: rows behind one another without padding; padded: side by side


class DataReportData(EventData):
    """What the trainer really got."""

    train_rows: int
    eval_rows: int
    dropped_rows: int
    trained_tokens: int
    masked_tokens: int
    truncated_rows: int = 0


class WarningData(EventData):
    message: str
    code: str = ""


class FailedData(EventData):
    """Why the worker gave up: `what` happened and how to `fix` it, in words. Details stand in worker.log."""

    cause: Literal["out_of_memory", "diverged", "disk_full", "config", "dataset", "model", "killed", "unexpected"]
    what: str
    fix: str


class ResumedData(EventData):
    """A later attempt continues from `step`; steps beyond it of earlier attempts no longer count."""

    step: int
    checkpoint: str | None = None


class _Envelope(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    v: int = EVENT_VERSION
    seq: int
    attempt: int
    time: float  # seconds since the epoch


class StatusEvent(_Envelope):
    kind: Literal["status"] = "status"
    data: StatusData


class StepEvent(_Envelope):
    kind: Literal["step"] = "step"
    data: StepData


class EvalEvent(_Envelope):
    kind: Literal["eval"] = "eval"
    data: EvalData


class CheckpointEvent(_Envelope):
    kind: Literal["checkpoint"] = "checkpoint"
    data: CheckpointData


class MemoryEvent(_Envelope):
    kind: Literal["memory"] = "memory"
    data: MemoryData


class ParametersEvent(_Envelope):
    kind: Literal["parameters"] = "parameters"
    data: ParametersData


class DataReportEvent(_Envelope):
    kind: Literal["data_report"] = "data_report"
    data: DataReportData


class WarningEvent(_Envelope):
    kind: Literal["warning"] = "warning"
    data: WarningData


class FailedEvent(_Envelope):
    kind: Literal["failed"] = "failed"
    data: FailedData


class ResumedEvent(_Envelope):
    kind: Literal["resumed"] = "resumed"
    data: ResumedData


Event = Annotated[
    StatusEvent
    | StepEvent
    | EvalEvent
    | CheckpointEvent
    | MemoryEvent
    | ParametersEvent
    | DataReportEvent
    | WarningEvent
    | FailedEvent
    | ResumedEvent,
    Field(discriminator="kind"),
]
AnyEventData = (
    StatusData
    | StepData
    | EvalData
    | CheckpointData
    | MemoryData
    | ParametersData
    | DataReportData
    | WarningData
    | FailedData
    | ResumedData
)

EVENT_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)
