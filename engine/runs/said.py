"""What a run said besides its steps: measurements, checkpoints, words. Small, however long the run is."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from engine.runs.events import (
    CheckpointData,
    DataReportData,
    EvalData,
    FailedData,
    MemoryData,
    ParametersData,
    StatusData,
)

_REMEMBERED_MESSAGES = 1000


class Message(NamedTuple):
    """Something that was said in words."""

    time: float
    kind: Literal["status", "warning", "failed", "resumed"]
    text: str


class Said(BaseModel):
    """What has been said so far; grows while a log is read."""

    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="strings")

    evals: list[EvalData] = []
    checkpoints: list[CheckpointData] = []
    messages: list[Message] = []
    status: StatusData | None = None
    total_steps: int | None = None
    parameters: ParametersData | None = None
    data_report: DataReportData | None = None
    memory: MemoryData | None = None
    failed: FailedData | None = None
    first_time: float | None = None
    last_time: float | None = None

    def say(self, message: Message) -> None:
        """Remember words; the oldest are forgotten beyond a thousand."""
        self.messages.append(message)
        del self.messages[:-_REMEMBERED_MESSAGES]

    def forget_beyond(self, step: int) -> None:
        """A later attempt went on from `step`: what came after it no longer counts."""
        self.evals = [point for point in self.evals if point.step <= step]
        self.checkpoints = [known for known in self.checkpoints if known.step <= step]
