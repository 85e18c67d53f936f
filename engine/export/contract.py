"""Requests and results of exports and pushes, and the list of exports in a run's folder."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, Field, SecretStr

from loratory.engine.chat.contract import ChatTarget, FrozenModel
from loratory.engine.chat.target import LoadPlan
from loratory.engine.config.results import ExportConfig, PushConfig
from loratory.engine.files import append_model, read_models
from loratory.engine.hardware.device import Device
from loratory.engine.runs.run import RunFolder


class ExportRequest(FrozenModel):
    """A request to export a run or an adapter into a folder."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    folder: Path  # must not exist, or be empty
    settings: ExportConfig = ExportConfig()
    llama_cpp: Path | None = None  # a checkout with the GGUF converter; its code is run, so the page cannot set it


class ExportOrder(FrozenModel):
    """The request for the worker process, with folders and device resolved."""

    plan: LoadPlan
    name: str  # of the finished folder
    folder: Path  # that of the export; an empty one next to it for the worker, renamed once it is complete
    settings: ExportConfig
    device: Device  # verification runs on it
    run: Path | None = None  # the run's folder, for the model card; None for a bare adapter
    llama_cpp: Path | None = None


class PushRequest(FrozenModel):
    """A request to push a run or an adapter to a repository."""

    target: ChatTarget  # a run with or without a checkpoint, or an adapter folder
    repository: str  # owner/name, or only a name for the token's account
    settings: PushConfig = PushConfig()
    # In a lab, the person's own token. It is not part of a dump; the worker that uploads gets it over stdin.
    token: SecretStr | None = Field(default=None, exclude=True, repr=False)


class UploadOrder(FrozenModel):
    """The request for the process that uploads."""

    folder: Path
    repository: str  # owner/name
    settings: PushConfig
    message: str  # of the commit
    private_folders: tuple[Path, ...] = ()  # paths on this machine that must not appear in a file


class ExportedFile(FrozenModel):
    """A file of an export."""

    name: str  # relative to the export's folder
    size_bytes: int


class PerplexityCheck(FrozenModel):
    """Perplexity of the file and of the run's unquantized result, on the same tokens."""

    run: float
    file: float = Field(validation_alias="written", serialization_alias="written")
    tokens: int
    on: str  # the text, such as "32 held-out rows"

    @property
    def summary(self) -> str:
        """Both perplexities, and the relative difference."""
        return (
            f"{self.run:.2f} → {self.file:.2f} ({self.file / self.run - 1:+.1%}) on {self.on}, {self.tokens:,} tokens"
        )


class Verification(FrozenModel):
    """The comparison of the exported files, loaded again, with the run."""

    passed: bool
    comparison: str = Field(validation_alias="compared", serialization_alias="compared")  # which two models
    prompts: int
    equal_answers: int  # greedy answers with the same tokens
    largest_logit_difference: float
    # Explained by rounding to the exported precision; None if perplexity decides.
    allowed_logit_difference: float | None
    dtype: str  # of the comparison's computations
    seconds: float
    equal_prompts: int | None = None  # prompts with the same token ids; None if both share a tokenizer
    needed_answers: int | None = None  # how many answers must be equal; None if any number may differ
    perplexity: PerplexityCheck | None = None  # of a GGUF file or a compressed model

    @property
    def difference(self) -> str:
        """Why it failed, as the predicate of a sentence."""
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
    """The files of an export, and their verification."""

    files: tuple[ExportedFile, ...] = ()
    precision: str = ""  # of a GGUF file or a compressed model, such as q4_k_m or fp8
    verified: Verification | None = None  # None where it was not requested, or failed; then a note has the reason
    notes: tuple[str, ...] = ()


class ExportResult(ExportOutcome):
    """The result of an export."""

    path: Path


class PushResult(ExportOutcome):
    """The result of a push: one commit with every file."""

    url: str  # of the repository, at the branch that was pushed to
    commit: str
    repository: str  # owner/name
    private: bool


class ExportRecord(ExportOutcome):
    """An entry in a run's list of exports."""

    kind: str  # "adapter", "merged", "gguf", "compressed", or "hub"
    location: str = Field(
        validation_alias="place", serialization_alias="place"
    )  # a folder, or the address of a repository
    checkpoint: str | None = None
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def size_bytes(self) -> int:
        """Total size of the files."""
        return sum(file.size_bytes for file in self.files)


def records_file(run: Path) -> Path:
    """Return the file with a run's export records."""
    return run / "exports.jsonl"


def save_record(target: ChatTarget, kind: str, result: ExportResult | PushResult) -> None:
    """Append an export or a push to the list of its run; an adapter without a run has none.

    Raises:
        StorageError: If it cannot be written.
    """
    tuned = target.tuned
    if tuned is None or not RunFolder(tuned.folder).config.is_file():
        return
    what = {name: getattr(result, name) for name in ExportOutcome.model_fields}
    location = result.url if isinstance(result, PushResult) else str(result.path)
    append_model(
        records_file(tuned.folder),
        ExportRecord(kind=kind, location=location, checkpoint=tuned.checkpoint, **what),
        "The export is complete, but the run's list of exports cannot be written",
        "Free some space; the exported files can be used.",
    )


def read_records(run: Path) -> tuple[ExportRecord, ...]:
    """Return the exports of a run, newest first; damaged lines are skipped."""
    return read_models(records_file(run), ExportRecord)[::-1]
