"""The people of a lab: invited, signed in with a password, changed and removed by an admin."""

import hmac
import secrets
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from loratory.engine.accounts.database import DATABASE_FILE, Database
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.people import Person, Role, require_name
from loratory.engine.errors import AccountError, shorten
from loratory.engine.paths import LoratoryHome

INVITATION_SECONDS = 72 * 3600
_TOKEN_BYTES = 32
_PERSON = "SELECT name, role, created, last_sign_in, disabled FROM people WHERE removed IS NULL"
_INVITATION = "SELECT role, person, invited_by, expires FROM invitations WHERE used IS NULL AND expires > ?"
_ACTIVE_ADMINS = "SELECT count(*) FROM people WHERE role = 'admin' AND disabled IS NULL AND removed IS NULL"


@dataclass(frozen=True)
class InvitationState:
    """An invitation as admins see it: without what opens it."""

    role: Role  # of the account that it makes
    person: str | None  # whose password it sets; None for a new account
    invited_by: str
    expires: float  # when it ends unused


@dataclass(frozen=True)
class Invitation(InvitationState):
    """A link that makes one account, or sets another password for one."""

    token: str  # shown once; only its SHA-256 is kept


class Accounts:
    """Accounts and invitations. Sessions are in `loratory.engine.accounts.sessions`."""

    def __init__(
        self, database: Database, passwords: Passwords | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._passwords = passwords or Passwords()
        self._clock = clock

    def people(self) -> list[Person]:
        """Return all accounts by name."""
        return [person_of(row) for row in self._database.rows(f"{_PERSON} ORDER BY name")]

    def person(self, name: str) -> Person:
        """Return the account of that name.

        Raises:
            AccountError: If there is none.
        """
        rows = self._database.rows(f"{_PERSON} AND name = ?", name.strip().lower())
        if not rows:
            what = f"There is no account {shorten(name, 40)!r}."
            raise AccountError(what, "List them with `loratory people list`.")
        return person_of(rows[0])

    def invite(self, role: Role, by: str) -> Invitation:
        """Make a link for a new account; it is used once, within 72 hours.

        Args:
            by: The admin's name; empty on the command line.
        """
        return self._new_invitation(role, by, person=None)

    def reset(self, name: str, by: str) -> Invitation:
        """Make a link with which a person sets another password; the present one, links and all sessions end at once.

        Raises:
            AccountError: If there is no such account.
        """
        person = self.person(name)
        with self._database.transaction() as connection:
            connection.execute("UPDATE people SET password = NULL WHERE name = ?", (person.name,))
            _delete_of(person, connection, "sessions", "access_tokens", "invitations")
            self._unlink_all(person, connection)
        return self._new_invitation(person.role, by, person=person.name)

    def invitations(self) -> list[InvitationState]:
        """Return the invitations that can still be used, those that end first in front."""
        rows = self._database.rows(f"{_INVITATION} ORDER BY expires", self._clock())
        return [InvitationState(**dict(row)) for row in rows]

    def find_invitation(self, token: str) -> InvitationState:
        """Return what an invitation is for.

        Raises:
            AccountError: If it does not exist, was used, or has expired; which of these is not revealed.
        """
        rows = self._database.rows(f"{_INVITATION} AND digest = ?", self._clock(), digest_of(token))
        if not rows:
            raise _invalid_link()
        return InvitationState(**dict(rows[0]))

    def accept(self, token: str, name: str, password: str) -> Person:
        """Use an invitation: make the account, or set the password of the account that it is for.

        Args:
            name: For the account; ignored where the invitation is for an account that exists.

        Raises:
            AccountError: If the invitation cannot be used, the name is taken or not allowed, or the password is weak. The
                invitation then stays usable.
        """
        invitation = self.find_invitation(token)
        name = invitation.person or require_name(name)
        password_hash = self._passwords.hash(password, name)  # before the transaction: it takes a moment
        with self._database.transaction() as connection:
            use_invitation(connection, token, invitation, name, password_hash, self._clock())
        return self.person(name)

    def check_password(self, name: str, password: str) -> Person | None:
        """Return the account whose name and password these are; None where they are not, or it is disabled.

        An unknown name takes as long as a wrong password.

        Raises:
            BusyError: If too many passwords are being checked.
        """
        rows = self._database.rows(
            "SELECT name, password, disabled FROM people WHERE name = ? AND removed IS NULL", name.strip().lower()
        )
        row = rows[0] if rows else None
        is_right = self._passwords.is_right(password, row["password"] if row else None)
        if row is None or not is_right or row["disabled"] is not None:
            return None
        return self.person(row["name"])

    def device_token(self, name: str) -> str:
        """Return what a browser keeps to be recognized until the person's password changes; empty without a password."""
        nonce = secrets.token_hex(16)
        signature = self._sign_device(name, nonce)
        return f"{nonce}.{signature}" if signature else ""

    def known_device(self, name: str, token: str) -> str:
        """Return what names the browser that keeps a token; empty where it is not one of this person's."""
        nonce, _, signature = token.partition(".")
        expected = self._sign_device(name, nonce)
        return nonce if expected and hmac.compare_digest(signature.encode(), expected.encode()) else ""

    def _sign_device(self, name: str, nonce: str) -> str:
        query = "SELECT name, password FROM people WHERE name = ? AND removed IS NULL AND password IS NOT NULL"
        for row in self._database.rows(query, name.strip().lower()):
            # The kept password has a random salt of 128 bits, so a signature allows no guesses of the password.
            return hmac.new(row["password"].encode(), f"{row['name']} {nonce}".encode(), sha256).hexdigest()
        return ""

    def has_password(self, name: str) -> bool:
        """Return whether a person can sign in with a password; those whom another service lets in may have none."""
        query = "SELECT 1 FROM people WHERE name = ? AND password IS NOT NULL"
        return bool(self._database.rows(query, name))

    def change_password(self, name: str, old: str, new: str) -> None:
        """Replace a person's password; all of their sessions end.

        Raises:
            AccountError: If the old one is wrong, or the new one is weak.
        """
        person = self.check_password(name, old)
        if person is None:
            raise AccountError("The present password is wrong.", "Ask an admin for a link to reset it.")
        password_hash = self._passwords.hash(new, person.name)
        with self._database.transaction() as connection:
            connection.execute("UPDATE people SET password = ? WHERE name = ?", (password_hash, person.name))
            _delete_of(person, connection, "sessions", "access_tokens")

    def set_role(self, name: str, role: Role) -> Person:
        """Change what a person may do; it holds from their next request.

        Raises:
            AccountError: If there is no such account, or no admin would be left.
        """
        return self._change(name, "role = ?", role)

    def disable(self, name: str) -> Person:
        """Keep a person out until `enable`; their sessions end, their runs continue.

        Raises:
            AccountError: If there is no such account, or no admin would be left.
        """
        return self._change(name, "disabled = ?", self._clock(), ends_sessions=True)

    def enable(self, name: str) -> Person:
        """Let a disabled person sign in again.

        Raises:
            AccountError: If there is no such account.
        """
        return self._change(name, "disabled = ?", None)

    def remove(self, name: str) -> None:
        """Remove an account for good; its name is not given again, its runs stay until an admin deletes them.

        Raises:
            AccountError: If there is no such account, or no admin would be left.
        """
        person = self.person(name)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE people SET removed = ?, password = NULL WHERE name = ?", (self._clock(), person.name)
            )
            self._unlink_all(person, connection)
            _delete_of(person, connection, "sessions", "access_tokens", "invitations")
            _require_an_admin_instead_of(person, connection)

    def _unlink_all(self, person: Person, connection: sqlite3.Connection) -> None:
        # The rows stay: an admin's rule lets in only people who were never known.
        connection.execute(
            "UPDATE identities SET unlinked = ? WHERE person = ? AND unlinked IS NULL", (self._clock(), person.name)
        )

    def _change(self, name: str, assignment: str, value: object, *, ends_sessions: bool = False) -> Person:
        person = self.person(name)
        with self._database.transaction() as connection:
            connection.execute(f"UPDATE people SET {assignment} WHERE name = ?", (value, person.name))  # noqa: S608
            if ends_sessions:
                _delete_of(person, connection, "sessions", "access_tokens")
            _require_an_admin_instead_of(person, connection)
        return self.person(name)

    def _new_invitation(self, role: Role, by: str, person: str | None) -> Invitation:
        token = new_token()
        now = self._clock()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM invitations WHERE used IS NOT NULL OR expires <= ?", (now,))
            connection.execute(
                "INSERT INTO invitations (digest, role, person, invited_by, created, expires) VALUES (?, ?, ?, ?, ?, ?)",
                (digest_of(token), role, person, by, now, now + INVITATION_SECONDS),
            )
        return Invitation(role, person, by, now + INVITATION_SECONDS, token)


def open_database(home: LoratoryHome) -> Database:
    """Open the accounts of a home, made empty where there are none.

    Raises:
        StorageError: If they cannot be opened.
    """
    return Database(home.root / DATABASE_FILE)


def use_invitation(
    connection: sqlite3.Connection, token: str, invitation: InvitationState, name: str, password: str | None, now: float
) -> None:
    """Mark an invitation as used, and make its account or set the password of the account that it is for.

    Args:
        connection: In a transaction.
        password: As it is kept; None for an account that is opened in another way.

    Raises:
        AccountError: If the invitation was used meanwhile, or the name is taken.
    """
    used = connection.execute(
        "UPDATE invitations SET used = ? WHERE digest = ? AND used IS NULL AND expires > ?",
        (now, digest_of(token), now),
    )
    if used.rowcount != 1:
        raise _invalid_link()
    if invitation.person is not None:
        connection.execute("UPDATE people SET password = ? WHERE name = ?", (password, name))
    else:
        add_person(connection, name, invitation.role, password, now)


def add_person(connection: sqlite3.Connection, name: str, role: Role, password: str | None, now: float) -> None:
    """Make an account, in a transaction.

    Raises:
        AccountError: If the name is taken. Removed people keep their row, so their name, and with it their folders, is
            never given again.
    """
    try:
        connection.execute(
            "INSERT INTO people (name, role, password, created) VALUES (?, ?, ?, ?)", (name, role, password, now)
        )
    except sqlite3.IntegrityError as error:
        raise AccountError(f"The name {name!r} is taken.", "Choose another.") from error


def _delete_of(person: Person, connection: sqlite3.Connection, *tables: str) -> None:
    for table in tables:
        connection.execute(f"DELETE FROM {table} WHERE person = ?", (person.name,))  # noqa: S608 - of this module


def new_token() -> str:
    """Return 256 random bits for a link or a cookie."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> bytes:
    """Return what is kept of a token. It is random, so a plain SHA-256 cannot be reversed by guessing."""
    return sha256(token.encode("utf-8", "surrogatepass")).digest()


def person_of(row: sqlite3.Row) -> Person:
    """Return the account in a row with all columns of one."""
    return Person(**dict(row))


def _require_an_admin_instead_of(person: Person, connection: sqlite3.Connection) -> None:
    was_admin = person.role == "admin" and person.disabled is None
    if was_admin and connection.execute(_ACTIVE_ADMINS).fetchone()[0] == 0:
        raise AccountError("No admin would be left.", "Make another person an admin first.")


def _invalid_link() -> AccountError:
    return AccountError("This link is not valid: it was used, has expired, or is incomplete.", "Ask for another.")
