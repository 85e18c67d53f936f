"""What an admin sees and does in a lab; each method checks the current rights and logs its action."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.requests import Request

from loratory.engine.accounts.accounts import Accounts, Invitation, InvitationState
from loratory.engine.accounts.audit import AuditEntry, AuditKind, AuditLog
from loratory.engine.accounts.lab import LabSettings, PublicAddress, change_settings, join_link, read_settings
from loratory.engine.accounts.limits import LabLimits
from loratory.engine.accounts.people import Action, Person, RunAccess, may, require, require_role
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.accounts.throttle import SignInThrottle
from loratory.engine.errors import AccountError, ConfigError, EngineError, ModelError, Problem, RunError
from loratory.engine.lab.fairness import UrgentSlot
from loratory.engine.lab.queue import DeviceUse, QueueBoard, QueueEntry
from loratory.engine.lab.rules import find_run
from loratory.engine.models.cache_space import ModelCache, remove_cached_model, scan_model_cache
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.control import request_stop
from loratory.engine.runs.disk import DiskSamples, DiskUse, free_bytes, model_uses
from loratory.engine.runs.run import LIVE_STATES, Run
from loratory.engine.runs.store import RunStore, folder_size_bytes
from loratory.engine.runs.usage import Week, WeekOfPerson, usage_by_week
from loratory.ui.front.forms import address_of
from loratory.ui.front.gate import COOKIE

_SHARED_AT_MOST = 500


class Caller(NamedTuple):
    """Who sent a request."""

    token: str  # of the session, as the cookie has it
    address: str

    @classmethod
    def from_request(cls, request: Request) -> "Caller":
        """Return the session and the address of a request."""
        return cls(request.cookies.get(COOKIE, ""), address_of(request))


class UnconfirmedError(AccountError):
    """A change of rights needs a recent password check."""

    def __init__(self) -> None:
        super().__init__("Your password is needed to confirm this.", "Type it below.")


class SharedItem(NamedTuple):
    """A folder or file that all people of a lab may read."""

    kind: str
    name: str
    bytes: int


class Usage(NamedTuple):
    """The usage of people."""

    weeks: tuple[WeekOfPerson, ...]  # by person and week, the newest in front
    disk: Mapping[tuple[str, Week], int]  # bytes of each person at the end of each week; of this week, now
    disks: tuple[DiskUse, ...]  # by person, now
    free_bytes: int


class RunsOfPerson(NamedTuple):
    """How many runs a person has."""

    all: int
    active: int
    waiting: int


@dataclass(frozen=True)
class LabAdmin:
    """The lab, as one admin manages it."""

    home: LoratoryHome  # of the lab
    address: PublicAddress  # at which browsers reach it
    accounts: Accounts  # its people
    sessions: Sessions  # their sessions
    throttle: SignInThrottle  # counts wrong passwords
    audit: AuditLog  # logs what is done
    board: QueueBoard  # shows the queue
    disk: DiskSamples  # measures people's folders
    name: str  # the admin's
    # Names the service with which admins without a password confirm who they are; empty where none can.
    confirms_with: str = ""
    who_gets_in: str = ""  # where there are no invitations and no passwords: who gets an account instead, in words

    def people(self) -> tuple[list[Person], list[InvitationState]]:
        """Return all accounts, and the invitations that can still be used."""
        self._require()
        return self.accounts.people(), self.accounts.invitations()

    def confirm(self, caller: Caller, password: str) -> None:
        """Check the admin's password again; changes of rights are then allowed for ten minutes.

        Raises:
            AccountError: If it is wrong, or was tried too often.
        """
        self._require()
        signed_in = self.sessions.find(caller.token)
        if signed_in is None or signed_in.person.name != self.name:
            raise AccountError("This session has ended.", "Sign in again.")
        # Counted by session, not by name: people outside cannot keep an admin from confirming.
        attempts = f"session {signed_in.session}"
        self.throttle.begin(caller.address, self.name, device=attempts)
        if self.accounts.check_password(self.name, password) is None:
            self._log(caller, "sign-in failed", self.name, "confirmation")
            raise AccountError("The password is wrong.", "Type the password that you sign in with.")
        self.throttle.clear_attempts(caller.address, self.name, device=attempts)
        self.sessions.confirm(caller.token)

    def invite(self, caller: Caller, role: str) -> str:
        """Return a link that makes one account; it can be shown this once."""
        self._require_invitations(caller)
        return self._link(caller, self.accounts.invite(require_role(role), by=self.name))

    def reset(self, caller: Caller, name: str) -> str:
        """Return a link with which a person sets another password; the present one ends at once."""
        self._require_invitations(caller)
        return self._link(caller, self.accounts.reset(name, by=self.name))

    def set_role(self, caller: Caller, name: str, role: str) -> Person:
        """Change what a person may do."""
        self._require_confirmed(caller)
        return self._log_change(caller, "role changed", self.accounts.set_role(name, require_role(role)))

    def disable(self, caller: Caller, name: str) -> Person:
        """Disable an account; its runs continue."""
        self._require()
        return self._log_change(caller, "disabled", self.accounts.disable(name))

    def enable(self, caller: Caller, name: str) -> Person:
        """Enable a disabled account."""
        self._require_confirmed(caller)
        return self._log_change(caller, "enabled", self.accounts.enable(name))

    def runs_of(self, name: str) -> RunsOfPerson:
        """Return how many runs a person has, for the question before the account is removed."""
        self._require()
        states = []
        for run in RunStore(self.home, self.accounts.person(name).name).list():
            with contextlib.suppress(EngineError):
                states.append(run.folder.read_state().state)
        return RunsOfPerson(len(states), sum(state in LIVE_STATES for state in states), states.count("queued"))

    def remove(self, caller: Caller, name: str) -> None:
        """Remove an account permanently; its runs stay, readable by admins."""
        self._require_confirmed(caller)
        person = self.accounts.person(name)
        self.accounts.remove(person.name)
        self._log_change(caller, "removed", person)

    def queue(self) -> tuple[QueueEntry, ...]:
        """Return the runs of all people at work, then those that wait, the next one first."""
        return self.board.entries(self._require())

    def stop(self, caller: Caller, name: str) -> None:
        """Ask a run, named `owner/run-id`, to save and stop; one that waits leaves the queue."""
        person = self._require()
        request_stop(self._run(person, name, Action.STOP))
        self._log(caller, "run stopped", name)

    def devices(self) -> tuple[DeviceUse, ...]:
        """Return what each device does, and programs outside Loratory on it."""
        self._require()
        return self.board.devices()

    def make_urgent(self, caller: Caller, name: str, why: str) -> None:
        """Put a waiting run, named `owner/run-id`, first in the queue; who did so and why is public."""
        person = self._require()
        run = self._run(person, name, Action.STOP)
        UrgentSlot(self.home).put(person, run, why)
        self._log(caller, "urgent", name, why)

    def clear_urgent(self, caller: Caller) -> None:
        """Return the urgent run to its position in the queue."""
        person = self._require()
        slot = UrgentSlot(self.home)
        run = slot.run()
        slot.clear(person)
        if run is not None:
            self._log(caller, "urgent", f"{run.owner}/{run.run_id}", "no longer")

    def usage(self) -> Usage:
        """Return what people used by week, and what they have on disk; takes a moment where there are many files."""
        self._require()
        disks = tuple(self.disk.measure().values())
        usage = {(row.owner, row.week): row for row in usage_by_week(self.home, self.board.attempts())}
        disk = {key: bytes_ for key, bytes_ in self.disk.by_week().items() if bytes_}
        idle = {key: WeekOfPerson(*key, 0.0, 0.0, None, 0) for key in disk.keys() - usage.keys()}
        weeks = sorted((usage | idle).values(), key=lambda row: (-row.week.year, -row.week.number, row.owner))
        return Usage(tuple(weeks), disk, disks, free_bytes(self.home))

    def models(self) -> ModelCache:
        """Return what is in the model cache, which runs need it, and what is offered for removal."""
        self._require()
        return scan_model_cache(read_settings(self.home).limits, model_uses(self.home))

    def remove_models(self, caller: Caller, ids: Sequence[str]) -> int:
        """Remove models from the cache; returns the bytes that this freed.

        Raises:
            ModelError: If one of them is not there, or is needed. Those before it are gone.
        """
        self._require()
        if not ids:
            raise ModelError("No model is picked.", "Pick one in the list.")
        freed_bytes = 0
        for model_id in ids:
            uses = model_uses(self.home)  # a run may have been started meanwhile
            freed_bytes += remove_cached_model(model_id, {name for name, use in uses.items() if use.needed_by})
            self._log(caller, "model removed", model_id)
        return freed_bytes

    def settings(self) -> LabSettings:
        """Return the settings of the lab."""
        self._require()
        return read_settings(self.home)

    def save_limits(self, caller: Caller, values: Mapping[str, Any]) -> None:
        """Replace the limits that are given, by field.

        Raises:
            ConfigError: If a value is out of bounds; all problems at once.
        """
        self._require()
        before = read_settings(self.home).limits
        try:
            limits = LabLimits.model_validate({**before.model_dump(), **values})
        except ValidationError as error:
            problems = [Problem(str(item["loc"][0]), f"{item['msg'].lower()}.") for item in error.errors()]
            raise ConfigError(problems) from None
        changes = [
            f"{name}: {getattr(before, name)} to {getattr(limits, name)}"
            for name in LabLimits.model_fields
            if getattr(before, name) != getattr(limits, name)
        ]
        if changes:
            change_settings(self.home, limits=limits)
            self._log(caller, "limits changed", "", "; ".join(changes))

    def announce(self, caller: Caller, text: str) -> None:
        """Show a line on every page and on the sign-in page; empty text removes it.

        Raises:
            AccountError: If it is longer than 300 characters.
        """
        self._require()
        change_settings(self.home, announcement=" ".join(text.split()))
        self._log(caller, "announced", "", text)

    def set_maintenance(self, caller: Caller, is_on: bool, text: str) -> None:
        """Pause or resume the start of runs; active runs continue."""
        self._require()
        change_settings(self.home, maintenance={"is_on": is_on, "text": " ".join(text.split())})
        self._log(caller, "maintenance", "", "on" if is_on else "off")

    def shared(self) -> list[SharedItem]:
        """Return the models and data that all people may read, with their sizes."""
        self._require()
        items = []
        for kind, folder in (("model", self.home.shared_models), ("data", self.home.shared_data)):
            with contextlib.suppress(OSError):
                for path in sorted(folder.iterdir())[:_SHARED_AT_MOST]:
                    bytes_ = folder_size_bytes(path) if path.is_dir() else path.stat().st_size
                    items.append(SharedItem(kind, path.name, bytes_))
        return items

    def log_entries(self, search: str, kind: str, count: int) -> list[AuditEntry]:
        """Return the newest entries of the audit log, of one kind and with all words where these are given."""
        self._require()
        return self.audit.newest(count, search, kind)

    def _run(self, person: Person, name: str, action: Action) -> Run:
        owner, _, run_id = name.partition("/")
        run = find_run(self.home, owner, run_id)
        if run is None or not may(person, action, RunAccess(owner)):
            raise RunError("There is no such run.", "Reload the list.")
        return run

    def _require_invitations(self, caller: Caller) -> None:
        self._require_confirmed(caller)
        if self.who_gets_in:
            raise AccountError("There are no invitations and no passwords here.", self.who_gets_in)

    def _require(self) -> Person:
        person = self.accounts.person(self.name)
        require(person, Action.MANAGE)
        return person

    def _require_confirmed(self, caller: Caller) -> None:
        person = self._require()
        signed_in = self.sessions.find(caller.token)
        if signed_in is None or signed_in.person.name != person.name or not self.sessions.is_confirmed(signed_in):
            raise UnconfirmedError

    def _link(self, caller: Caller, invitation: Invitation) -> str:
        detail = invitation.role if invitation.person is None else "password"
        self._log(caller, "invited", invitation.person or "", detail)
        return join_link(self.address, invitation)

    def _log_change(self, caller: Caller, kind: AuditKind, person: Person) -> Person:
        self._log(caller, kind, person.name, person.role)
        return person

    def _log(self, caller: Caller, kind: AuditKind, subject: str = "", detail: str = "") -> None:
        self.audit.write(self.name, kind, subject, detail, caller.address)
