"""Accounts of other services, such as an institute's or GitLab's, that open accounts of a lab."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Literal

from loratory.engine.accounts.accounts import Accounts, add_person, person_of, use_invitation
from loratory.engine.accounts.database import Database
from loratory.engine.accounts.people import Person, Role, require_name
from loratory.engine.errors import AccountError

Purpose = Literal["sign in", "join", "link", "confirm"]  # for which a person shows such an account
_MOST_NAMES = 100


@dataclass(frozen=True)
class Identity:
    """A person as another service knows them. Names and e-mail addresses change hands; these two do not."""

    issuer: str  # the service, such as `https://gitlab.example.edu`
    subject: str  # what the service calls the person for good


class Identities:
    """Which account of another service opens which account of the lab.

    A link that was ended keeps its row, so a person who was removed, or whose links an admin ended, does not come back as a
    new member by an admin's rule. An invitation lets them in again.
    """

    def __init__(self, database: Database, accounts: Accounts, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._accounts = accounts
        self._clock = clock

    def person_of(self, identity: Identity) -> Person | None:
        """Return whose account this opens; None where it opens none, or a disabled one."""
        rows = self._database.rows(
            "SELECT name, role, created, last_sign_in, disabled FROM identities JOIN people ON name = person "
            "WHERE provider = ? AND subject = ? AND unlinked IS NULL AND removed IS NULL AND disabled IS NULL",
            identity.issuer,
            identity.subject,
        )
        return person_of(rows[0]) if rows else None

    def name_of(self, identity: Identity) -> str | None:
        """Return the name of the account that this belongs to, also where that is disabled."""
        query = "SELECT person FROM identities WHERE provider = ? AND subject = ? AND unlinked IS NULL"
        rows = self._database.rows(query, identity.issuer, identity.subject)
        return rows[0]["person"] if rows else None

    def was_linked(self, identity: Identity) -> bool:
        """Return whether this opens an account, or ever did."""
        query = "SELECT 1 FROM identities WHERE provider = ? AND subject = ?"
        return bool(self._database.rows(query, identity.issuer, identity.subject))

    def subject_of(self, person: Person, issuer: str) -> str | None:
        """Return which account of that service opens this person's."""
        query = "SELECT subject FROM identities WHERE provider = ? AND person = ? AND unlinked IS NULL"
        rows = self._database.rows(query, issuer, person.name)
        return rows[0]["subject"] if rows else None

    def link(self, person: Person, identity: Identity) -> None:
        """Let an account of another service open a person's.

        Raises:
            AccountError: If it opens another, or this person's is opened by another account of that service.
        """
        with self._database.transaction() as connection:
            _link(connection, person.name, identity)

    def unlink(self, person: Person, issuer: str) -> None:
        """End a person's link with a service.

        Raises:
            AccountError: If nothing else opens the account.
        """
        with self._database.transaction() as connection:
            query = "SELECT 1 FROM people WHERE name = ? AND password IS NOT NULL"
            if connection.execute(query, (person.name,)).fetchone() is None:
                raise AccountError("Without a password, this link alone opens your account.", "Set a password first.")
            connection.execute(
                "UPDATE identities SET unlinked = ? WHERE provider = ? AND person = ? AND unlinked IS NULL",
                (self._clock(), issuer, person.name),
            )

    def accept(self, token: str, name: str, identity: Identity) -> Person:
        """Use an invitation with an account of another service instead of a password.

        Args:
            name: For the account; ignored where the invitation is for an account that exists.

        Raises:
            AccountError: If the invitation cannot be used, the name is taken or not allowed, or the identity opens another
                account. The invitation then stays usable.
        """
        invitation = self._accounts.find_invitation(token)
        name = invitation.person or require_name(name)
        with self._database.transaction() as connection:
            use_invitation(connection, token, invitation, name, None, self._clock())
            _link(connection, name, identity)
        return self._accounts.person(name)

    def join(self, suggestion: str, role: Role, identity: Identity, *, again: bool = False) -> Person:
        """Make an account for a person whom an admin's rule lets in, under the first free name like the suggested one.

        Args:
            again: Also where it opened another account before.

        Raises:
            AccountError: If this identity opens an account, or did so before; or no such name is free.
        """
        with self._database.transaction() as connection:
            query = "SELECT 1 FROM identities WHERE provider = ? AND subject = ?"
            if not again and connection.execute(query, (identity.issuer, identity.subject)).fetchone() is not None:
                raise AccountError("This account was known to the lab before.", "Ask an admin for an invitation.")
            name = _free_name(connection, suggestion)
            add_person(connection, name, role, None, self._clock())
            _link(connection, name, identity)
        return self._accounts.person(name)


def _link(connection: Connection, name: str, identity: Identity) -> None:
    query = "SELECT 1 FROM identities WHERE provider = ? AND person = ? AND unlinked IS NULL"
    if connection.execute(query, (identity.issuer, name)).fetchone() is not None:
        raise AccountError(f"The account {name!r} is linked already.", "Unlink it first.")
    result = connection.execute(
        "INSERT INTO identities (provider, subject, person) VALUES (?, ?, ?) ON CONFLICT (provider, subject) "
        "DO UPDATE SET person = excluded.person, unlinked = NULL WHERE unlinked IS NOT NULL",
        (identity.issuer, identity.subject, name),
    )
    if result.rowcount != 1:
        raise AccountError("It opens another account of this lab already.", "Sign in with it, or use another.")


def _free_name(connection: Connection, suggestion: str) -> str:
    """Return a name that an account can have and none has had, from one that another service gave."""
    stem = re.sub(r"[^a-z0-9_-]+", "-", suggestion.lower()[:64]).strip("-_")[:28].lstrip("0123456789-_")
    for number in range(1, _MOST_NAMES):
        try:
            name = require_name(stem if number == 1 else f"{stem or 'member'}-{number}")
        except AccountError:
            continue  # too short, or reserved
        if connection.execute("SELECT 1 FROM people WHERE name = ?", (name,)).fetchone() is None:
            return name
    raise AccountError(f"No name like {stem!r} is free.", "Ask an admin for an invitation.")
