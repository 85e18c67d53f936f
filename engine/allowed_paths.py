"""Which files and folders a person of a lab may name; at home, where there are no accounts, any that the user may read."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import EngineError, StorageError
from engine.paths import LoratoryHome

# The same for what exists and what does not: a refusal must not reveal which files this machine has.
REFUSAL = (
    "That path is outside the folders that you may use in this lab.",
    "Upload the file, or name one of your own uploads, exports and runs, or what is in shared/data or shared/models.",
)
_LONGEST = 4096
_SHARED = "shared"

MakeError = Callable[[str, str], EngineError]  # makes the error of a refusal


@dataclass(frozen=True)
class AllowedPaths:
    """The folders of one person of a lab, as a path that was typed or sent is confined to them."""

    home: LoratoryHome  # the home as this person has it

    @classmethod
    def of(cls, home: LoratoryHome) -> "AllowedPaths | None":
        """Return what a home's person may name; None where there are no accounts."""
        return cls(home) if home.owner else None

    def read(self, text: str | Path, error: MakeError = StorageError) -> Path:
        """Return the file or folder that is meant, with links followed; it need not exist.

        A relative path is one of the person's uploads, or below `shared/`.

        Raises:
            EngineError: As `error` makes it, if a path leads anywhere else.
        """
        path = self._resolve(text)
        if path is None or not any(path.is_relative_to(root) for root in self.readable):
            raise error(*REFUSAL)
        return path

    def write(self, text: str | Path, error: MakeError = StorageError) -> Path:
        """Return the folder to write to, below the person's exports; a relative path begins there.

        Raises:
            EngineError: As `error` makes it, if it is anywhere else.
        """
        exports = self.home.exports.resolve()
        path = _resolve_below(exports, text)
        if path is None or exports not in path.parents:
            raise error(*REFUSAL)
        return path

    @property
    def readable(self) -> tuple[Path, ...]:
        """The folders below which a person may name anything; none for a guest."""
        home = self.home
        if home.is_guest:
            return ()
        own = (home.uploads, home.exports, home.own_runs, home.cache)  # a measurement's rows are in the last
        shared = (home.shared_data, home.shared_models)
        return (*(folder.resolve() for folder in own), *(root for folder in shared for root in _with_links(folder)))

    def _resolve(self, text: str | Path) -> Path | None:
        base = self.home.root if Path(text).parts[:1] == (_SHARED,) else self.home.uploads
        return _resolve_below(base, text)


def _resolve_below(base: Path, text: str | Path) -> Path | None:
    """Return a whole path with links followed; None for what can be no path of a person, such as ~ of the server's user."""
    path_text = str(text).strip()
    if not path_text or path_text.startswith("~") or "\0" in path_text or len(path_text) > _LONGEST:
        return None
    try:
        path = (base / path_text).resolve()
        # From Python 3.13 on, links in a circle stay as they are.
        return None if any(part.is_symlink() for part in (path, *path.parents)) else path
    except (OSError, RuntimeError, ValueError):  # before 3.13, links in a circle; or a name that no file can have
        return None


def _with_links(folder: Path) -> list[Path]:
    """Return a folder, and where an admin's links directly in it lead: large models rarely lie in the home itself."""
    folders = [folder.resolve()]
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        folders += [Path(entry.path).resolve() for entry in entries if entry.is_symlink()]
    return folders
