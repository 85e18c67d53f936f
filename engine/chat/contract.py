"""Messages between a chat client (the page or the terminal) and the process that holds the model."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from loratory.engine.chat.zero_gpu import LONGEST_TOKEN
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import ModelConfig, Quantization, WorkPlace
from loratory.engine.data.conversation import Message
from loratory.engine.errors import EngineError
from loratory.engine.models.prepared import ModelProgress

Branch = Literal["base", "tuned", "second"]
FinishReason = Literal["eos", "length", "context", "stopped"]
# In order; a job goes through some of them. A wait for the Hub is reported in the phase that it delays.
Phase = Literal[
    "starting", "checking", "preparing", "fetching", "loading_model", "loading_adapter", "measuring", "writing",
    "verifying", "uploading", "committing", "ready",
]  # fmt: skip
ChatPhase = Literal["empty", "loading", "ready", "generating"]


class FrozenModel(BaseModel):
    """A frozen value that processes exchange and files keep, where a field may have another name."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", defer_build=True, validate_by_name=True, serialize_by_alias=True
    )


class AdapterChoice(FrozenModel):
    """A run's folder, or any folder with an adapter or a fully trained model."""

    folder: Path
    checkpoint: str | None = None  # name under the run's checkpoints/, such as step-40; None takes the final adapter


class ChatTarget(FrozenModel):
    """The model to chat with: a base model alone, or with one or two adapters that share its weights."""

    model: ModelConfig | None = None  # None: the one that the run or the adapter names
    tuned: AdapterChoice | None = None  # None: the base model alone
    second: AdapterChoice | None = None  # another adapter of the same base, to compare with
    quantization: Quantization | None = None  # None: as in the run's (or model's) configuration
    where: WorkPlace = "local"

    @classmethod
    def of_run(cls, folder: Path, checkpoint: str | None = None) -> "ChatTarget":
        """Return the target for the folder of a run or an adapter."""
        return cls(tuned=AdapterChoice(folder=folder, checkpoint=checkpoint))

    @classmethod
    def of_model(cls, model: ModelConfig) -> "ChatTarget":
        """Return the target for a base model without an adapter."""
        return cls(model=model)

    @property
    def trained_folder(self) -> Path | None:
        """The folder of the run or the adapter; None for a base model alone."""
        return self.tuned.folder if self.tuned is not None else None


class JobProgress(FrozenModel):
    """Progress of a job; `fraction` is the completed part of the phase, from 0 to 1, if known."""

    phase: Phase
    message: str
    fraction: float | None = None

    @classmethod
    def fetching(cls, model: ModelProgress) -> "JobProgress":
        """Return the progress of a model download."""
        done_bytes, total_bytes = model.done_bytes, model.total_bytes
        fraction = done_bytes / total_bytes if done_bytes is not None and total_bytes else None
        return cls(phase="fetching", message=model.message, fraction=fraction)


OnProgress = Callable[[JobProgress], None]


class LoadedModel(FrozenModel):
    """The model in memory; sizes are measured after loading."""

    name: str  # the base model, as the person chose it
    method: str  # "LoRA", "QLoRA", "IA3", "Prefix tuning", "Full fine-tuning" or "" for a base alone
    branches: tuple[Branch, ...]  # that can answer
    device: str  # in words, such as "NVIDIA RTX 4090" or "CPU"
    dtype: str  # of computation, such as "bfloat16"
    quantization: Quantization
    weights_bytes: int  # base and adapters
    adapter_bytes: int
    context_length: int | None  # maximum positions; None if the model's config has none
    takes_images: bool = False
    notes: tuple[str, ...] = ()  # for the user, such as a precision other than the run's


class ChatRequest(FrozenModel):
    """A request to one or more branches, which all get the same prompt and seed."""

    messages: tuple[Message, ...] = Field(min_length=1)
    branches: tuple[Branch, ...] = Field(default=("tuned",), min_length=1)
    sampling: SamplingConfig = SamplingConfig()
    id: str = Field(default_factory=lambda: uuid.uuid4().hex)  # what `ChatSession.stop` takes
    # Whose ZeroGPU quota is charged; expires in minutes.
    gpu_token: str = Field(default="", max_length=LONGEST_TOKEN, repr=False)


class ChatChunk(FrozenModel):
    """Text that a branch added since its last chunk. The last chunk of each branch has `done` set."""

    branch: Branch
    text: str  # to be appended; only whole characters
    tokens: int  # generated so far, the end token not counted
    tokens_per_second: float  # since the first token; 0 until there are two
    prompt_tokens: int
    first_token_seconds: float | None = None  # from the request's start in the process to this branch's first token
    done: bool = False
    finish_reason: FinishReason | None = None  # with `done`
    note: str = ""  # why it waits, if that takes long


class PromptView(FrozenModel):
    """The rendered prompt and its token ids."""

    text: str
    ids: tuple[int, ...]


class ChatState(FrozenModel, arbitrary_types_allowed=True):
    """A snapshot of the session; cheap to poll."""

    phase: ChatPhase
    target: ChatTarget | None = None
    model: LoadedModel | None = None
    progress: JobProgress | None = None  # while loading
    generating: int = 0  # running requests of all callers
    process_bytes: int | None = None  # resident memory of the process that holds the model
    note: str = ""  # why the model was unloaded automatically
    failure: EngineError | None = None  # of the last load, until the next one or an unload
    expires_after_seconds: float | None = None  # without a request, in a lab
