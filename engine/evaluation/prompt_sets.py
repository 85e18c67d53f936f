"""Prompt sets: prompts that a person saved under a name, each with a reference answer or "", as JSON Lines."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from loratory.engine.chat.contract import FrozenModel
from loratory.engine.errors import StorageError
from loratory.engine.files import stamp_of, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.disk import require_disk_space

MOST_SETS, MOST_PROMPTS, LONGEST_CHARACTERS = 100, 500, 20_000
_NAME = "[A-Za-z0-9_-]{1,40}"
_LARGEST_FILE_BYTES = 128_000_000  # more than a set within these limits has
_LIMITS = "Use 1 to 500 prompts of at most 20,000 characters, and a name of 1 to 40 letters, digits, - and _."


class SavedPrompt(FrozenModel):
    """A prompt, and its reference answer where there is one."""

    prompt: str = Field(pattern=r"\S", max_length=LONGEST_CHARACTERS)
    reference: str = Field(default="", max_length=LONGEST_CHARACTERS)


class PromptSet(FrozenModel):
    """Prompts in order, and their name."""

    name: str = Field(pattern=f"^{_NAME}$")
    prompts: tuple[SavedPrompt, ...] = Field(min_length=1, max_length=MOST_PROMPTS)


@dataclass(frozen=True)
class PromptSets:
    """The prompt sets of a home's owner."""

    home: LoratoryHome

    def names(self) -> list[str]:
        """Return the names of all sets, in order; links, and files that are too large, are left out."""
        stamps = ((file.stem, stamp_of(file)) for file in self._file("*").parent.glob("*.jsonl"))
        return sorted(n for n, stamp in stamps if re.fullmatch(_NAME, n) and stamp and stamp[1] < _LARGEST_FILE_BYTES)

    def read(self, name: str) -> PromptSet:
        """Return a set.

        Raises:
            StorageError: If there is none of that name, or its file is damaged.
        """
        if name not in self.names():
            raise StorageError(f"There is no prompt set “{name[:60]}”.", "Choose another one.")
        return _parse(name, self._file(name).read_bytes().splitlines())

    def save(self, name: str, prompts: Iterable[tuple[str, str]]) -> None:
        """Save prompts, each with its reference, under a new name.

        Raises:
            StorageError: If the name is in use, a limit is exceeded, or it cannot be written; nothing has changed then.
        """
        if self.home.is_guest:
            raise StorageError("Prompts of guests are not saved.", "Ask an admin of the lab to become a member.")
        rows = (json.dumps({"prompt": prompt, "reference": text}, ensure_ascii=False) for prompt, text in prompts)
        lines = [row.encode(errors="replace") + b"\n" for row in rows]
        _parse(name, lines)
        names = self.names()
        if name in names or len(names) >= MOST_SETS:
            what = (
                f"is already a prompt set {name}"
                if name in names
                else f"are {len(names)} prompt sets, the most allowed"
            )
            raise StorageError(f"There {what}.", "Delete it first, or choose another name.")
        require_disk_space(self.home, self.home.owner, sum(map(len, lines)))
        write_atomically(self._file(name), b"".join(lines), makes_folder=True)

    def delete(self, name: str) -> None:
        """Delete a set, if there is one of that name."""
        if name in self.names():
            self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.home.votes / "prompts" / f"{name}.jsonl"


def _parse(name: str, lines: Iterable[bytes]) -> PromptSet:
    try:
        return PromptSet(name=name, prompts=tuple(map(SavedPrompt.model_validate_json, lines)))
    except ValidationError as error:
        what = f"The prompt set “{name[:60]}” is not valid: {error.errors()[0]['msg']}."
        raise StorageError(what, _LIMITS) from error
