"""Tokens that let a person's agents act for them in a lab; only their SHA-256 is stored."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from loratory.engine.accounts.accounts import digest_of, new_token
from loratory.engine.accounts.database import Database
from loratory.engine.accounts.people import Person
from loratory.engine.errors import AccountError

AgentScope = Literal["read", "run"]
SCOPES: dict[AgentScope, str] = {
    "read": "see runs, models and datasets, and estimate",
    "run": "start, stop, resume and evaluate runs, chat with them and export them",
}
UNUSED_SECONDS = 90 * 24 * 3600
_MOST_OF_A_PERSON = 20
_LONGEST_NAME = 60
_WRITE_USE_SECONDS = 60


class TokenState(NamedTuple):
    """A token as its owner sees it."""

    name: str
    scopes: frozenset[AgentScope]
    created: float  # seconds since the epoch
    used: float  # when it was last used, to the minute


@dataclass(frozen=True)
class AccessTokens:
    """The access tokens of all people."""

    database: Database
    clock: Callable[[], float] = time.time

    def new(self, person: Person, name: str, scopes: Collection[str]) -> str:
        """Return a new token; it is shown once.

        Raises:
            AccountError: If the name is taken or no name, no scope is chosen, or the person has too many.
        """
        name, now = name.strip(), self.clock()
        if not 0 < len(name) <= _LONGEST_NAME or not name.isprintable():
            raise AccountError("That cannot be the name of a token.", f"Use 1 to {_LONGEST_NAME} characters.")
        chosen = [scope for scope in get_args(AgentScope) if scope in scopes]
        if not chosen:
            raise AccountError("The token may do nothing.", "Tick what it may do.")
        states = self.list_for(person)
        if name in [state.name for state in states]:
            raise AccountError("You have a token of that name.", "Choose another name, or revoke that one.")
        if len(states) >= _MOST_OF_A_PERSON:
            raise AccountError(f"You have {len(states)} tokens.", "Revoke one that you do not use.")
        token, values = new_token(), (person.name, name, " ".join(chosen), now, now)
        self.database.execute("INSERT INTO access_tokens VALUES (?, ?, ?, ?, ?, ?)", digest_of(token), *values)
        return token

    def find(self, token: str) -> tuple[Person, frozenset[AgentScope]] | None:
        """Return who a token acts for, and what it may do; None where it is revoked, expired, or the person may not sign in."""
        now, digest = self.clock(), digest_of(token)
        rows = self.database.rows(
            "SELECT people.name, role, people.created, last_sign_in, disabled, scopes, used FROM access_tokens "
            "JOIN people ON people.name = person WHERE digest = ? AND used >= ? AND disabled IS NULL AND removed IS NULL",
            digest,
            now - UNUSED_SECONDS,
        )
        if not rows:
            return None
        values = dict(rows[0])
        scopes, used = _scopes(values.pop("scopes")), values.pop("used")
        if now - used > _WRITE_USE_SECONDS:
            self.database.execute("UPDATE access_tokens SET used = ? WHERE digest = ?", now, digest)
        return Person(**values), scopes

    def list_for(self, person: Person) -> list[TokenState]:
        """Return a person's tokens, newest first."""
        self.database.execute("DELETE FROM access_tokens WHERE used < ?", self.clock() - UNUSED_SECONDS)
        query = "SELECT name, scopes, created, used FROM access_tokens WHERE person = ? ORDER BY created DESC"
        rows = self.database.rows(query, person.name)
        return [TokenState(row["name"], _scopes(row["scopes"]), row["created"], row["used"]) for row in rows]

    def revoke(self, person: Person, name: str) -> None:
        """End a token of a person; another person's of that name stays."""
        self.database.execute("DELETE FROM access_tokens WHERE person = ? AND name = ?", person.name, name)


def _scopes(text: str) -> frozenset[AgentScope]:
    return frozenset(scope for scope in get_args(AgentScope) if scope in text.split())
