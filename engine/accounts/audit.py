"""The audit log of a lab: who signed in, changed an account, started, stopped, deleted, exported or looked."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from loratory.engine.errors import explain_os_errors
from loratory.engine.files import read_models

AuditKind = Literal[
    "signed in", "sign-in failed", "signed out", "invited", "joined", "password set", "linked", "unlinked",
    "role changed", "disabled", "enabled", "removed", "run started", "run stopped", "run resumed", "run deleted",
    "run shared", "run moved", "exported", "pushed", "looked into", "limits changed", "maintenance", "announced",
    "urgent", "model downloaded", "dataset downloaded", "model removed", "backed up", "restored",
    "token made", "token revoked", "runs merged",
]  # fmt: skip
_LONGEST_DETAIL = 200
_SEARCHED_BYTES = 4_000_000  # of the end of the log: some 30,000 entries


class AuditEntry(BaseModel, frozen=True, extra="ignore"):
    """One line of the log. It never holds a prompt, an answer, a token or a password."""

    time: float  # seconds since the epoch
    person: str  # who did it; empty for the command line of the machine
    kind: AuditKind
    subject: str = ""  # to whom or what: a name, a run as owner/id
    detail: str = ""  # one more fact, such as the new role
    address: str = ""


class AuditLog:
    """Lines of JSON that are only ever appended.

    Args:
        path: The file; created with mode 0600.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    def write(self, person: str, kind: AuditKind, subject: str = "", detail: str = "", address: str = "") -> None:
        """Append one entry, in one write: lines of several processes do not mix.

        Raises:
            StorageError: If it cannot be written. What was to be logged must then not happen.
        """
        entry = AuditEntry(
            time=self._clock(), person=person, kind=kind, subject=subject[:_LONGEST_DETAIL],
            detail=detail[:_LONGEST_DETAIL], address=address,
        )  # fmt: skip
        line = json.dumps(entry.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n"
        with explain_os_errors(
            "The audit log cannot be written", "Free some space, or check the permissions of LORATORY_HOME."
        ):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "ab", buffering=0) as log:
                log.write(line.encode("utf-8", "replace"))

    def entries(self) -> tuple[AuditEntry, ...]:
        """Return all entries, oldest first; a torn line is left out."""
        return read_models(self._path, AuditEntry)

    def newest(self, count: int, search: str = "", kind: str = "") -> list[AuditEntry]:
        """Return the newest entries first, of one kind and with all words where these are given.

        Only the end of a long log is searched; all of it is in the file.
        """
        terms = search.casefold().split()
        entries: list[AuditEntry] = []
        try:
            with self._path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _SEARCHED_BYTES))
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        for line in reversed(lines):
            try:
                entry = AuditEntry.model_validate_json(line)
            except ValidationError:
                continue
            text = f"{entry.person} {entry.kind} {entry.subject} {entry.detail} {entry.address}".casefold()
            if kind in ("", entry.kind) and all(word in text for word in terms):
                entries.append(entry)
                if len(entries) == count:
                    break
        return entries
