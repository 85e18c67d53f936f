"""What is asked of an export or a push, what comes out of it, and the list of these that a run keeps."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, Field, SecretStr

from engine.chat.contract import ChatTarget, FrozenModel
from engine.chat.target import LoadPlan
from engine.config.results import ExportConfig, PushConfig
from engine.files import append_model, read_models
from engine.hardware.device import Device


class ExportRequest(FrozenModel):
    """Which result, in which form, into which folder."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    folder: Path  # must not exist, or be empty
    settings: ExportConfig = ExportConfig()
    llama_cpp: Path | None = None  # a checkout whose converter makes the GGUF; its code is run, so no page may name it


class ExportOrder(FrozenModel):
    """The same for the process that does it, with everything found."""

    plan: LoadPlan
    name: str  # of the folder in the end
    folder: Path  # empty, to be filled; gets its name afterwards
    settings: ExportConfig
    device: Device  # verification runs on it
    run: Path | None = None  # the run's folder, for the model card; None for a bare adapter
    llama_cpp: Path | None = None


class PushRequest(FrozenModel):
    """Which result, into which repository."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    repository: str  # owner/name, or a name alone for the account that the token belongs to
    settings: PushConfig = PushConfig()
    # Of the person who pushes, in a lab; it is in no dump, and reaches the one worker that uploads over its stdin.
    token: SecretStr | None = Field(default=None, exclude=True, repr=False)


class UploadOrder(FrozenModel):
    """What the process that talks to the Hub is asked for."""

    folder: Path
    repository: str  # owner/name
    settings: PushConfig
    message: str  # of the commit
    private_folders: tuple[Path, ...] = ()  # folders whose names would reveal this machine


class ExportedFile(FrozenModel):
    """One file that was written."""

    name: str  # below the export's folder
    size_bytes: int


class PerplexityCheck(FrozenModel):
    """Perplexity of what was written, next to that of the run's unquantized result, on the same tokens."""

    run: float
    file: float = Field(validation_alias="written", serialization_alias="written")
    tokens: int
    on: str  # what was read, in words

    @property
    def summary(self) -> str:
        """Both, and how much the written one is higher."""
        return (
            f"{self.run:.2f} → {self.file:.2f} ({self.file / self.run - 1:+.1%}) on {self.on}, {self.tokens:,} tokens"
        )


class Verification(FrozenModel):
    """What was written, loaded again and compared with the run itself."""

    passed: bool
    comparison: str = Field(validation_alias="compared", serialization_alias="compared")  # which two models
    prompts: int
    equal_answers: int  # greedy answers that are the same, token by token
    largest_logit_difference: float
    # What rounding to the written precision explains; None where perplexity makes the verdict.
    allowed_logit_difference: float | None
    dtype: str  # of the comparison's computations
    seconds: float
    equal_prompts: int | None = None  # prompts that became the same ids; None where both share one tokenizer
    needed_answers: int | None = None  # so many must be equal as well; None where that is not asked for
    perplexity: PerplexityCheck | None = None  # of a GGUF file

    @property
    def difference(self) -> str:
        """What it failed by, in words; the start of a sentence."""
        if self.equal_prompts is not None and self.equal_prompts < self.prompts:
            return f"reads only {self.equal_prompts} of {self.prompts} prompts as the same tokens as the run"
        if self.needed_answers is not None and self.equal_answers < self.needed_answers:
            return f"gives {self.equal_answers} of {self.prompts} answers as the run does; {self.needed_answers} were expected"
        if self.allowed_logit_difference is None:
            return f"has another perplexity than the run: {self.perplexity.summary if self.perplexity is not None else 'unknown'}"
        return (
            f"differs from the run by {self.largest_logit_difference:.3g} in a logit; "
            f"rounding explains {self.allowed_logit_difference:.3g}"
        )


class ExportOutcome(FrozenModel):
    """What was written, and whether it answers as the run does."""

    files: tuple[ExportedFile, ...] = ()
    verified: Verification | None = None  # None where it was not requested, or failed; then a note has the reason
    notes: tuple[str, ...] = ()


class ExportResult(ExportOutcome):
    """What came out of an export."""

    path: Path


class PushResult(ExportOutcome):
    """What came out of a push: everything is there, in one commit."""

    url: str  # of the repository, at the branch that was pushed to
    commit: str
    repository: str  # owner/name
    private: bool


class ExportRecord(ExportOutcome):
    """One export of a run, as its list has it."""

    kind: str  # "adapter", "merged", "gguf", or "hub"
    location: str = Field(
        validation_alias="place", serialization_alias="place"
    )  # a folder, or the address of a repository
    checkpoint: str | None = None
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def from_outcome(cls, kind: str, location: str, checkpoint: str | None, outcome: ExportOutcome) -> "ExportRecord":
        """Return the record of what was written."""
        what = {name: getattr(outcome, name) for name in ExportOutcome.model_fields}
        return cls(kind=kind, location=location, checkpoint=checkpoint, **what)

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)


def records_file(run: Path) -> Path:
    """Return the file in which a run keeps its records."""
    return run / "exports.jsonl"


def save_record(run: Path, record: ExportRecord) -> None:
    """Add one.

    Raises:
        StorageError: If it cannot be written.
    """
    append_model(
        records_file(run),
        record,
        "The export is whole, but the run's list of exports cannot be written",
        "Free some space; the files that were written can be used.",
    )


def read_records(run: Path) -> tuple[ExportRecord, ...]:
    """Return the exports of a run, newest first; a damaged line is left out."""
    return read_models(records_file(run), ExportRecord)[::-1]
