"""Runs of other people in a lab: sharing, access, and the audit log of access."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from engine.accounts.audit import AuditLog
from engine.accounts.people import Action, Person, RunAccess, is_logged, may, require
from engine.errors import RunError, StorageError
from engine.paths import LoratoryHome
from engine.runs.run import Run, RunFolder
from engine.runs.store import RUN_ID, RunStore, list_owners


def is_shared(folder: RunFolder) -> bool:
    """Return whether its owner shares a run with the lab."""
    return folder.shared_mark.exists()


def access_of(run: Run) -> RunAccess:
    """Return the facts about a run that access rights depend on."""
    return RunAccess(run.owner, is_shared(run.folder))


def set_shared(run: Run, person: Person, shared: bool, audit: AuditLog) -> None:
    """Share a run with the lab, or stop sharing it.

    Raises:
        AccountError: If the person may not.
        StorageError: If the mark or the audit log cannot be written.
    """
    require(person, Action.SHARE, access_of(run))
    if is_shared(run.folder) == shared:
        return
    audit.write(person.name, "run shared", f"{run.owner}/{run.id}", "shared" if shared else "no longer shared")
    mark = run.folder.shared_mark
    try:
        if shared:
            mark.parent.mkdir(mode=0o700, exist_ok=True)
            mark.touch(mode=0o600)
        else:
            mark.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"Sharing cannot be changed ({error.strerror}).", "Check the permissions of the run's folder."
        ) from error


@dataclass(frozen=True)
class LabRuns:
    """The runs of a lab as one person may see them; a run of another is named `owner/run-id`."""

    home: LoratoryHome
    person: Person
    audit: AuditLog

    def open(self, name: str, action: Action) -> Run:
        """Look up a run for an action; where the audit log records such a look, it is written first.

        Raises:
            RunError: If the run does not exist or the person may not see it; the message is the same.
            StorageError: If the look cannot be logged.
        """
        owner, _, run_id = name.rpartition("/")
        run = self._find(owner or self.person.name, run_id)
        access = access_of(run) if run is not None else None
        if run is None or access is None or not may(self.person, action, access):
            raise RunError("There is no such run, or it is not shared with you.", "Ask its owner to share it.")
        if is_logged(self.person, access):
            self.audit.write(self.person.name, "looked into", f"{run.owner}/{run.id}", action)
        return run

    def others(self) -> list[Run]:
        """Return the runs of other people that this person may read, newest first: an admin all, a member shared ones."""
        runs = [run for owner in list_owners(self.home) if owner != self.person.name for run in self._of(owner)]
        return sorted(runs, key=lambda run: run.id, reverse=True)

    def _of(self, owner: str) -> Iterator[Run]:
        with contextlib.suppress(OSError):  # a mount that is gone
            for run in RunStore(self.home, owner).list():
                if may(self.person, Action.READ, access_of(run)):
                    yield run

    def _find(self, owner: str, run_id: str) -> Run | None:
        # Both are looked up in lists of what is there: neither becomes a path.
        if RUN_ID.fullmatch(run_id) is None or owner not in list_owners(self.home):
            return None
        store = RunStore(self.home, owner)
        return store.get(run_id) if run_id in store.ids() else None
