"""Who gets into a Space: its creator, and people and organizations whom the owner lists."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from loratory.engine.accounts.accounts import Accounts
from loratory.engine.accounts.database import Database
from loratory.engine.accounts.identities import Identities, Identity
from loratory.engine.accounts.oidc_settings import Claims
from loratory.engine.accounts.people import Person, Role
from loratory.engine.errors import AccountError
from loratory.engine.space.environment import SpaceEnvironment

_ID = re.compile(r"[0-9a-f]{24}")
# What an organization still asks of a person before it lets them in, as Hugging Face names it.
_UNMET = ("securityRestrictions", "pendingSSO", "missingMFA")


class HubName(NamedTuple):
    """A person or an organization of the Hub."""

    subject: str  # its id, which stays
    name: str  # as it is called now; names change hands


@dataclass(frozen=True)
class Visitor:
    """A person who signed in with Hugging Face."""

    account: HubName
    organizations: tuple[HubName, ...] = ()  # that they are in, and whose conditions they meet

    @classmethod
    def from_claims(cls, subject: str, sources: tuple[Claims, ...]) -> "Visitor":
        """Read what Hugging Face knows of a person: in the ID token, and where it was asked."""
        names = [claims.get("preferred_username") for claims in reversed(sources)]
        name = next((candidate for candidate in names if isinstance(candidate, str)), "")
        lists = [claims.get("orgs") for claims in sources]
        orgs = [org for entries in lists if isinstance(entries, list) for org in entries if isinstance(org, dict)]
        organizations = {_name_of(org) for org in orgs if not any(org.get(unmet) for unmet in _UNMET)}
        return cls(HubName(subject, name), tuple(sorted(org for org in organizations if org.subject)))


class Admitted(NamedTuple):
    """A person who was let in."""

    person: Person
    is_new: bool  # whether it was made just now


class Admission:
    """Decides who gets in, and makes the accounts of those who do.

    The creator is known by id. A listed id is that of a person or an organization. A listed name is believed once: it then
    means the id that came under it, for as long as it is listed, also after another account takes the name. The id is kept
    with the accounts, so a Space that lost its disk and has no mirror believes the name once more.
    """

    def __init__(self, space: SpaceEnvironment, database: Database, accounts: Accounts) -> None:
        self._space = space
        self._database = database
        self._accounts = accounts
        self._identities = Identities(database, accounts)
        with database.transaction() as connection:
            for row in connection.execute("SELECT name FROM listed_names").fetchall():
                if row["name"] not in space.admitted_names:
                    connection.execute("DELETE FROM listed_names WHERE name = ?", (row["name"],))

    def role_of(self, visitor: Visitor) -> Role | None:
        """Return what a person is here: the creator an admin, those whom the list lets in a member; None for everyone else."""
        if visitor.account.subject == self._space.creator:
            return "admin"
        # Each is checked: also those after the first are believed now, not later.
        matches = [self._is_listed(account) for account in (visitor.account, *visitor.organizations)]
        return "member" if any(matches) else None

    def admit(self, visitor: Visitor) -> Admitted | None:
        """Return the account of a person, made where it is their first visit; None for a person who is not let in.

        The creator is always let in, as an admin: the owner of the Space can change all of it.

        Raises:
            AccountError: If an admin has disabled or removed the account.
        """
        role, identity = self.role_of(visitor), Identity(self._space.oidc.issuer, visitor.account.subject)
        if role is None:
            return None
        name = self._identities.name_of(identity)
        if name is None:
            try:
                again = role == "admin"
                return Admitted(self._identities.join(visitor.account.name, role, identity, again=again), True)
            except AccountError:
                name = self._identities.name_of(identity)  # made at this moment, for another tab
                if name is None and self._identities.was_linked(identity):
                    raise _kept_out("removed", self._space) from None
                if name is None:
                    raise
        person = self._accounts.person(name)
        if role == "admin":
            person = self._accounts.enable(name) if person.disabled is not None else person
            person = self._accounts.set_role(name, role) if person.role != role else person
        if person.disabled is not None:
            raise _kept_out("disabled", self._space)
        return Admitted(person, False)

    def known(self, visitor: Visitor) -> Person | None:
        """Return the account that a person has here, whether or not they are let in today."""
        return self._identities.person_of(Identity(self._space.oidc.issuer, visitor.account.subject))

    def _is_listed(self, account: HubName) -> bool:
        if account.subject in self._space.admitted_names:
            return True
        name = account.name.lower()
        with self._database.transaction() as connection:
            if name in self._space.admitted_names and not _ID.fullmatch(name):
                connection.execute("INSERT OR IGNORE INTO listed_names VALUES (?, ?)", (name, account.subject))
            row = connection.execute("SELECT 1 FROM listed_names WHERE subject = ?", (account.subject,)).fetchone()
        return row is not None


def _kept_out(done: str, space: SpaceEnvironment) -> AccountError:
    return AccountError(f"An admin of this Space has {done} your account.", f"Ask {space.author}.")


def _name_of(organization: Mapping[str, object]) -> HubName:
    subject, name = organization.get("sub"), organization.get("preferred_username")
    return HubName(subject if isinstance(subject, str) else "", name if isinstance(name, str) else "")
