"""A long history read once: its columns as numbers, so that a fresh server need not parse gigabytes of lines again.

Never the truth: deleted, torn or outdated, the log is read from its beginning.
"""

import contextlib
import hashlib
import os
import secrets
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.runs.run import Run
from engine.runs.said import Said
from engine.runs.steps import COLUMNS, Array

_VERSION = 1
_WORTHWHILE_BYTES = 8_000_000  # below it parsing takes no time that a person would notice
_GROWN_BY = 0.125  # share of the log that is new; so the whole of a run's saves stays below ten times its last one
_FINGERPRINT_BYTES = 4096


class _Facts(BaseModel):
    model_config = ConfigDict(extra="ignore")

    version: int
    offset: int
    attempt: int
    attempt_is_fresh: bool
    fingerprint: str
    said: Said


class ReadSoFar(NamedTuple):
    """Where a reader of a log stands."""

    offset: int  # byte after the last line that is in here
    attempt: int
    attempt_is_fresh: bool
    columns: Array  # (columns, steps)
    said: Said


class HistoryCache:
    """Keeps how far one log was read, for whoever reads it next.

    Args:
        path: The cache's file.
        log: The event log that it is about.
    """

    def __init__(self, path: Path, log: Path) -> None:
        self._path = path
        self._log = log
        self._saved_offset = 0

    @classmethod
    def of_run(cls, run: Run) -> "HistoryCache":
        """The cache of a run, in its home's cache folder."""
        return cls(cached_history_path(run), run.folder.events)

    def load(self) -> ReadSoFar | None:
        """What was saved, where it still is the beginning of the log."""
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                facts = _Facts.model_validate_json(saved["facts"].tobytes())
                if facts.version != _VERSION or facts.fingerprint != _fingerprint(self._log, facts.offset):
                    return None
                columns: Array = saved["columns"]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, ValidationError):
            return None
        if columns.dtype != np.float64 or columns.ndim != 2 or columns.shape[0] != len(COLUMNS):
            return None
        self._saved_offset = facts.offset
        return ReadSoFar(facts.offset, facts.attempt, facts.attempt_is_fresh, columns, facts.said)

    def is_worth_saving(self, offset: int) -> bool:
        """Whether so much is new since the last save that the next reader would feel it."""
        new = offset - self._saved_offset
        return new > _WORTHWHILE_BYTES and new > offset * _GROWN_BY

    def save(self, read: ReadSoFar) -> None:
        """Keep it; a cache that cannot be written costs time, not truth."""
        self._saved_offset = read.offset
        facts = _Facts(
            version=_VERSION,
            offset=read.offset,
            attempt=read.attempt,
            attempt_is_fresh=read.attempt_is_fresh,
            fingerprint=_fingerprint(self._log, read.offset),
            said=read.said,
        )
        temporary = self._path.with_name(f".{self._path.name}.{secrets.token_hex(6)}.tmp")
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                words = np.frombuffer(facts.model_dump_json().encode(), dtype=np.uint8)
                np.savez(file, columns=read.columns, facts=words)
            temporary.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()


def cached_history_path(run: Run) -> Path:
    """Where the history of a run is cached; the file may be missing."""
    home = run.folder.path.parents[2]  # home/runs/owner/run
    return home / "cache" / "runs" / run.owner / f"{run.id}.npz"


def _fingerprint(log: Path, offset: int) -> str:
    """Of the bytes at both ends of what was read: a log that was cut or replaced has another one."""
    try:
        with log.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                return "shorter"
            file.seek(0)
            first = file.read(min(offset, _FINGERPRINT_BYTES))
            file.seek(max(0, offset - _FINGERPRINT_BYTES))
            last = file.read(min(offset, _FINGERPRINT_BYTES))
    except OSError:
        return "missing"
    return hashlib.sha256(b"%d\n" % offset + first + last).hexdigest()
