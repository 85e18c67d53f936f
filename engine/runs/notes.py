"""`notes.json`: what a person calls a run afterwards, and remembers about it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from engine.errors import ConfigError, Problem
from engine.files import write_atomically
from engine.runs.run import RunFolder

_PrintableLine = r"^[^\x00-\x1f\x7f]*$"
Tag = Annotated[str, StringConstraints(min_length=1, max_length=40, pattern=_PrintableLine)]


class RunNotes(BaseModel):
    """Everything about a run that may change after its start."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, StringConstraints(max_length=120, pattern=_PrintableLine)] = ""  # "" keeps the config's
    note: Annotated[str, StringConstraints(max_length=10_000)] = ""
    tags: tuple[Tag, ...] = ()


def read_notes(folder: RunFolder) -> RunNotes:
    """What was noted; nothing where the file is missing or unreadable."""
    try:
        return RunNotes.model_validate_json(folder.notes.read_bytes())
    except (OSError, ValidationError):
        return RunNotes()


def change_notes(
    folder: RunFolder, *, name: str | None = None, note: str | None = None, tags: tuple[str, ...] | None = None
) -> RunNotes:
    """Change what is given and keep the rest; the run itself is not touched.

    Raises:
        ConfigError: If a text is too long or holds control characters.
        StorageError: If the disk is full or the folder cannot be written.
    """
    changes: dict[str, object] = {}
    if name is not None:
        changes["name"] = name.strip()
    if note is not None:
        changes["note"] = note
    if tags is not None:
        changes["tags"] = tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    try:
        notes = RunNotes.model_validate({**read_notes(folder).model_dump(), **changes})
    except ValidationError as error:
        raise ConfigError(
            [Problem(str(item["loc"][0]), item["msg"].lower() + ".") for item in error.errors()]
        ) from None
    write_atomically(folder.notes, notes.model_dump_json())
    return notes
