"""What a restart of a Space would lose, in words for its page."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from engine.errors import EngineError
from engine.paths import LoratoryHome
from engine.runs.provenance import read_provenance
from engine.runs.run import Run
from engine.runs.store import RunStore
from engine.space.mirror_index import CHECKPOINTS, Index, index_of


class Unsaved(NamedTuple):
    """What a restart at this moment would lose of a person."""

    runs: tuple[str, ...] = ()  # titles of runs that are not saved at all yet
    # Titles of runs at work, each with the step from which it would continue; None where it would start over.
    training: tuple[tuple[str, int | None], ...] = ()
    uploads: int = 0  # how many uploaded files no run uses
    exports: int = 0  # how many exports
    trouble: str = ""  # why saving does not work at present; empty where it does

    @property
    def words(self) -> str:
        """A notice for the page; empty where nothing would be lost."""
        parts = [f"all of “{title}”" for title in self.runs]
        parts += [
            f"the training of “{title}” since step {step:,}" if step is not None else f"the training of “{title}”"
            for title, step in self.training
        ]
        parts += [_count(self.uploads, "upload that no run uses", "uploads that no run uses")] if self.uploads else []
        parts += [_count(self.exports, "export", "exports")] if self.exports else []
        would = f"A restart of this Space would lose {_join(parts)}." if parts else ""
        return " ".join(filter(None, (would, self.trouble)))


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _join(parts: list[str]) -> str:
    words = parts if len(parts) <= 4 else [*parts[:3], f"{len(parts) - 3} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


class View(NamedTuple):
    """What pages see, by indexes of runs; replaced as a whole by the mirror's thread."""

    indexes: Mapping[str, Index] = {}  # in the bucket
    training: frozenset[str] = frozenset()  # at work
    trouble: EngineError | None = None

    def unsaved(self, home: LoratoryHome, owner: str) -> Unsaved:
        """Return what a restart at this moment would lose of a person."""
        runs = {index_of(owner, run.id): run for run in RunStore(home, owner).list()}
        saved = {name: self.indexes[name] for name in runs if name in self.indexes}
        fresh = tuple(_title(run) for name, run in runs.items() if name not in saved)
        training = tuple((_title(runs[name]), _newest_step(saved[name])) for name in saved if name in self.training)
        saved_paths = {path for index in saved.values() for path in index.files}
        mine = home.of(owner)
        uploads = sum(name not in saved_paths for name in _plain_files(mine.uploads, home.root))
        exports = sum(not path.name.startswith(".") for path in _entries(mine.exports))
        trouble = f"{self.trouble.what} {self.trouble.fix}" if self.trouble is not None else ""
        return Unsaved(fresh, training, uploads, exports, trouble)


def _title(run: Run) -> str:
    return read_provenance(run.folder).title or run.id


def _newest_step(index: Index) -> int | None:
    paths = (path for path in index.files if CHECKPOINTS in path)
    return max((int(path.split("/")[4].removeprefix("step-")) for path in paths), default=None)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _plain_files(folder: Path, root: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from ((Path(parent) / name).relative_to(root).as_posix() for name in names if not name.startswith("."))
