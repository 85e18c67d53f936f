"""What is asked of an export, and what comes out of it."""

from pathlib import Path
from typing import Literal

from engine.chat.contract import ChatTarget, Value
from engine.chat.target import LoadPlan
from engine.config.results import ExportConfig, PushConfig
from engine.hardware.device import Device

ExportPhase = Literal["starting", "fetching", "writing", "verifying", "ready"]


class ExportRequest(Value):
    """Which result, in which form, into which folder."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    folder: Path  # must not exist, or be empty
    settings: ExportConfig = ExportConfig()
    llama_cpp: Path | None = None  # a checkout whose converter makes the GGUF; its code is run, so no page may name it


class ExportOrder(Value):
    """The same for the process that does it, with everything found."""

    plan: LoadPlan
    name: str  # of the folder in the end
    folder: Path  # empty, to be filled; gets its name afterwards
    settings: ExportConfig
    device: Device  # verification runs on it
    run: Path | None = None  # the run's folder, for the model card; None for a bare adapter
    llama_cpp: Path | None = None


class ExportProgress(Value):
    """How far it has come; `fraction` from 0 to 1 where it is known."""

    phase: ExportPhase
    message: str
    fraction: float | None = None


class ExportedFile(Value):
    """One file that was written."""

    name: str  # below the export's folder
    size_bytes: int


class Verification(Value):
    """What was written, loaded again and compared with the run itself."""

    passed: bool
    compared: str  # which two were compared, in words
    prompts: int
    equal_answers: int  # greedy answers that are the same, token by token
    largest_logit_difference: float
    allowed_logit_difference: float  # what rounding to the written precision explains
    dtype: str  # of the comparison's computations
    seconds: float
    equal_prompts: int | None = None  # prompts that became the same ids; None where both share one tokenizer
    needed_answers: int | None = None  # so many must be equal as well; None where the logits alone make the verdict


class ExportResult(Value):
    """What came out."""

    path: Path
    files: tuple[ExportedFile, ...]
    verified: Verification | None  # None where it was not asked for, or could not be done; then a note says why
    notes: tuple[str, ...] = ()


# In this order; a wait for the Hub is reported within the phase that it holds up.
PushPhase = Literal["checking", "preparing", "uploading", "committing", "ready"]


class PushRequest(Value):
    """Which result, into which repository."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    repository: str  # owner/name, or a name alone for the account that the token belongs to
    settings: PushConfig = PushConfig()


class PushProgress(Value):
    """How far it has come; `fraction` from 0 to 1 where it is known, of the phase."""

    phase: PushPhase
    message: str
    fraction: float | None = None


class PushResult(Value):
    """What came out: everything is there, in one commit."""

    url: str  # of the repository, at the branch that was pushed to
    commit: str
    repository: str  # owner/name
    private: bool
    files: tuple[ExportedFile, ...]  # what the repository holds of this result
    sent_bytes: int  # what had to be uploaded; 0 where everything was there already
    verified: Verification | None
    notes: tuple[str, ...] = ()


class HubAccount(Value):
    """Whose token is in use, as the Hub says."""

    name: str
    organizations: tuple[str, ...] = ()  # whose repositories the account may see; writing needs a right of its own


class UploadOrder(Value):
    """What the process that talks to the Hub is asked for."""

    folder: Path
    repository: str  # owner/name
    settings: PushConfig
    message: str  # of the commit


class UploadResult(Value):
    """What it answers."""

    url: str
    commit: str
    private: bool
    files: tuple[ExportedFile, ...]
    sent_bytes: int
    notes: tuple[str, ...] = ()
