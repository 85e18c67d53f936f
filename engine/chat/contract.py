"""What a conversation's two sides say to each other: the page or the terminal here, the process with the model there."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.chat.zero_gpu import LONGEST_TOKEN
from engine.config.results import SamplingConfig
from engine.config.run import ModelConfig, Quantization
from engine.data.conversation import Message
from engine.errors import EngineError
from engine.models.prepared import ModelProgress

Branch = Literal["base", "tuned", "second"]
FinishReason = Literal["eos", "length", "context", "stopped"]
# A job goes through its own in this order; a wait for the Hub is reported within the phase that it holds up.
Phase = Literal[
    "starting", "checking", "preparing", "fetching", "loading_model", "loading_adapter", "measuring", "writing",
    "verifying", "uploading", "committing", "ready",
]  # fmt: skip
WorkPlace = Literal["local", "slurm"]  # where a model is loaded: this machine, or a node of the cluster
ChatPhase = Literal["empty", "loading", "ready", "generating"]


class Value(BaseModel):
    """A frozen value that crosses the line between the two processes."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class AdapterChoice(Value):
    """What was trained: a run's folder, or any folder with an adapter or a fully trained model in it."""

    folder: Path
    checkpoint: str | None = None  # name under the run's checkpoints/, such as step-40; None takes the final adapter


class ChatTarget(Value):
    """What to talk to: a base model alone, or with one or two adapters on one copy of its weights."""

    model: ModelConfig | None = None  # None: the one that the run or the adapter names
    tuned: AdapterChoice | None = None  # None: the base alone
    second: AdapterChoice | None = None  # another adapter of the same base, to compare with
    quantization: Quantization | None = None  # None: as in the run's (or model's) configuration
    where: WorkPlace = "local"

    @classmethod
    def of_run(cls, folder: Path, checkpoint: str | None = None) -> "ChatTarget":
        """Talk to a run, or to an adapter's folder."""
        return cls(tuned=AdapterChoice(folder=folder, checkpoint=checkpoint))

    @classmethod
    def of_model(cls, model: ModelConfig) -> "ChatTarget":
        """Talk to a model as it is."""
        return cls(model=model)


class Progress(Value):
    """How far a job has come; `fraction` from 0 to 1 where it is known, of the phase."""

    phase: Phase
    message: str
    fraction: float | None = None

    @classmethod
    def fetching(cls, model: ModelProgress) -> "Progress":
        """Return how far a model is fetched."""
        done, total = model.done_bytes, model.total_bytes
        fraction = done / total if done is not None and total else None
        return cls(phase="fetching", message=model.message, fraction=fraction)


OnProgress = Callable[[Progress], None]


class LoadedModel(Value):
    """What the process holds. Bytes are measured after loading."""

    name: str  # the base model, as the person chose it
    method: str  # "LoRA", "QLoRA", "IA3", "Prefix tuning", "Full fine-tuning" or "" for a base alone
    branches: tuple[Branch, ...]  # which answers can be asked for
    device: str  # in words, such as "NVIDIA RTX 4090" or "CPU"
    dtype: str  # of computation, such as "bfloat16"
    quantization: Quantization
    weights_bytes: int  # base and adapters
    adapter_bytes: int
    context_length: int | None  # positions the model was made for; None where it does not say
    notes: tuple[str, ...] = ()  # what a person should know, such as a precision other than the run's


class ChatRequest(Value):
    """One question to one or more branches; every branch is given the same prompt and the same seed."""

    messages: tuple[Message, ...] = Field(min_length=1)
    branches: tuple[Branch, ...] = Field(default=("tuned",), min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)  # what `ChatSession.stop` takes
    gpu_token: str = Field(
        default="", max_length=LONGEST_TOKEN, repr=False
    )  # for whom ZeroGPU counts it; expires in minutes


class ChatChunk(Value):
    """What one branch has added since its last chunk. Each branch ends with one chunk whose `done` is true."""

    branch: Branch
    text: str  # to be appended; only whole characters
    tokens: int  # generated so far, the end token not counted
    tokens_per_second: float  # since the first token; 0 until there are two
    prompt_tokens: int
    first_token_seconds: float | None = None  # from the request's start in the process to this branch's first token
    done: bool = False
    finish_reason: FinishReason | None = None  # with `done`
    note: str = ""  # what it waits for, where that takes long


class PromptView(Value):
    """Exactly what the model reads."""

    text: str
    ids: tuple[int, ...]


class ChatState(Value):
    """What the session is doing now; cheap, safe to poll."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    phase: ChatPhase
    target: ChatTarget | None = None
    model: LoadedModel | None = None
    progress: Progress | None = None  # while loading
    generating: int = 0  # requests under way, of all callers
    process_bytes: int | None = None  # resident memory of the process that holds the model
    note: str = ""  # why the model was unloaded, where that was not asked for
    failure: EngineError | None = None  # of the last load, until the next one or an unload
    expires_after_seconds: float | None = None  # without a request, in a lab
