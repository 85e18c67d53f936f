"""Sessions of people who are signed in: a random token in a cookie; only its SHA-256 is stored."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from loratory.engine.accounts.accounts import digest_of, new_token
from loratory.engine.accounts.database import Database
from loratory.engine.accounts.people import Person

IDLE_SECONDS = 12 * 3600
LONGEST_SECONDS = 14 * 24 * 3600
CONFIRMED_SECONDS = 10 * 60  # after the password was given, what asks for it again is allowed without
_MOST_OF_A_PERSON = 20
_LONGEST_BROWSER = 200
_WRITE_USE_SECONDS = 60  # not at each request: a page asks several times a second


@dataclass(frozen=True)
class SignedIn:
    """Who a request comes from."""

    person: Person  # the account as it is now: role and state are read at each request
    session: str  # names the session; not what opens it
    confirmed: float  # when the person last gave the password in it


@dataclass(frozen=True)
class SessionState:
    """A session as its owner and admins see it."""

    session: str  # names it
    created: float
    used: float  # when it was last used, to the minute
    address: str
    browser: str  # what the browser called itself


class Sessions:
    """The sessions of all people."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def begin(self, person: Person, address: str, browser: str, *, is_confirmed: bool = True) -> str:
        """Return the token of a new session, for the cookie. The oldest of a person ends when there are too many.

        Args:
            is_confirmed: Whether the person has just proved who they are, as by a password; another service may have let
                its own session do.
        """
        token = new_token()
        now = self._clock()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM sessions WHERE used < ? OR created < ?", self._oldest(now))
            connection.execute(
                "DELETE FROM sessions WHERE digest IN "
                "(SELECT digest FROM sessions WHERE person = ? ORDER BY used DESC LIMIT -1 OFFSET ?)",
                (person.name, _MOST_OF_A_PERSON - 1),
            )
            confirmed, browser = now if is_confirmed else 0.0, browser[:_LONGEST_BROWSER]
            values = (digest_of(token), person.name, now, now, confirmed, address, browser)
            connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            connection.execute("UPDATE people SET last_sign_in = ? WHERE name = ?", (now, person.name))
        return token

    def find(self, token: str) -> SignedIn | None:
        """Return whose session this is; None where it does not exist, has ended, or its person may not sign in."""
        now = self._clock()
        digest = digest_of(token)
        rows = self._database.rows(
            "SELECT name, role, people.created, last_sign_in, disabled, used, confirmed FROM sessions "
            "JOIN people ON name = person "
            "WHERE digest = ? AND used >= ? AND sessions.created >= ? AND disabled IS NULL AND removed IS NULL",
            digest,
            *self._oldest(now),
        )
        if not rows:
            return None
        values = dict(rows[0])
        used, confirmed = values.pop("used"), values.pop("confirmed")
        if now - used > _WRITE_USE_SECONDS:
            self._database.execute("UPDATE sessions SET used = ? WHERE digest = ?", now, digest)
        return SignedIn(Person(**values), _name_of(digest), confirmed)

    def confirm(self, token: str) -> None:
        """Note that the person has just given the password in this session."""
        self._database.execute("UPDATE sessions SET confirmed = ? WHERE digest = ?", self._clock(), digest_of(token))

    def is_confirmed(self, signed_in: SignedIn) -> bool:
        """Return whether the password was given recently enough for a change of rights."""
        return self._clock() - signed_in.confirmed <= CONFIRMED_SECONDS

    def list_for(self, person: Person) -> list[SessionState]:
        """Return a person's sessions, those used last in front."""
        rows = self._database.rows(
            "SELECT lower(substr(hex(digest), 1, 12)) AS session, created, used, address, browser FROM sessions "
            "WHERE person = ? AND used >= ? AND created >= ? ORDER BY used DESC",
            person.name,
            *self._oldest(self._clock()),
        )
        return [SessionState(**dict(row)) for row in rows]

    def end(self, token: str) -> None:
        """Sign out."""
        self._database.execute("DELETE FROM sessions WHERE digest = ?", digest_of(token))

    def end_named(self, person: Person, session: str) -> None:
        """End one session of a person, by its name in `list_for`; another person's stays."""
        query = "DELETE FROM sessions WHERE person = ? AND lower(substr(hex(digest), 1, 12)) = ?"
        self._database.execute(query, person.name, session)

    def end_all(self, person: Person) -> None:
        """Sign a person out everywhere."""
        self._database.execute("DELETE FROM sessions WHERE person = ?", person.name)

    def clear(self) -> None:
        """Sign all people out."""
        self._database.execute("DELETE FROM sessions")

    def _oldest(self, now: float) -> tuple[float, float]:
        return now - IDLE_SECONDS, now - LONGEST_SECONDS


def _name_of(digest: bytes) -> str:
    """Name a session without giving its digest away."""
    return digest.hex()[:12]
