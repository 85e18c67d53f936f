"""The exports of a run, in one JSON line each in its folder."""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, Field, ValidationError

from engine.chat.contract import Value
from engine.errors import StorageError
from engine.export.contract import ExportedFile, ExportResult, PushResult, Verification


class ExportRecord(Value):
    """One export of a run."""

    kind: str  # "adapter", "merged", "gguf", or "hub"
    place: str  # a folder, or the address of a repository
    checkpoint: str | None = None
    files: tuple[ExportedFile, ...] = ()
    verified: Verification | None = None
    notes: tuple[str, ...] = ()
    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def of_export(cls, kind: str, checkpoint: str | None, result: ExportResult) -> "ExportRecord":
        """Return the record of a folder that was written."""
        return cls(
            kind=kind,
            place=str(result.path),
            checkpoint=checkpoint,
            files=result.files,
            verified=result.verified,
            notes=result.notes,
        )

    @classmethod
    def of_push(cls, checkpoint: str | None, result: PushResult) -> "ExportRecord":
        """Return the record of a repository that was filled."""
        return cls(
            kind="hub",
            place=result.url,
            checkpoint=checkpoint,
            files=result.files,
            verified=result.verified,
            notes=result.notes,
        )

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)


def records_file(run: Path) -> Path:
    """Return the file in which a run keeps them."""
    return run / "exports.jsonl"


def keep_record(run: Path, record: ExportRecord) -> None:
    """Add one.

    Raises:
        StorageError: If it cannot be written.
    """
    try:
        with records_file(run).open("ab", buffering=0) as lines:
            lines.write(record.model_dump_json().encode() + b"\n")
    except OSError as error:
        raise StorageError(
            f"The export is whole, but the run's list of exports cannot be written ({error.strerror}).",
            "Free some space; the files that were written can be used.",
        ) from error


def read_records(run: Path) -> tuple[ExportRecord, ...]:
    """Return the exports of a run, newest first; a damaged line is left out."""
    try:
        lines = records_file(run).read_bytes().splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        try:
            found.append(ExportRecord.model_validate_json(line))
        except ValidationError:
            continue
    return tuple(reversed(found))
