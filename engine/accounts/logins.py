"""Tokens for Hugging Face of people who signed in with an account there. In memory alone: a restart forgets them."""

import threading
import time
from collections.abc import Callable, Collection

from engine.errors import AccountError


class Logins:
    """What opens Hugging Face in the name of each person; asked at each action, never kept elsewhere."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards `_tokens`
        self._tokens: dict[str, tuple[str, float]] = {}  # with the time at which each expires

    def __repr__(self) -> str:
        """Name people, not their tokens."""
        return f"Logins of {len(self._tokens)} people"

    def put(self, person_name: str, token: str, expires: float) -> None:
        """Keep the token of a person who has just signed in, in place of an earlier one.

        Args:
            expires: When it does, in seconds since the epoch.
        """
        with self._lock:
            self._tokens[person_name] = token, expires

    def token_of(self, person_name: str) -> str | None:
        """Return a person's token; None where there is none, or it has expired."""
        with self._lock:
            token, expires = self._tokens.get(person_name, ("", 0.0))
            if expires > self._clock():
                return token
            self._tokens.pop(person_name, None)
            return None

    def seconds_left(self, person_name: str) -> float:
        """Return how long a person's token is valid; 0 where there is none."""
        with self._lock:
            return max(self._tokens.get(person_name, ("", 0.0))[1] - self._clock(), 0.0)

    def forget(self, person_name: str) -> None:
        """Forget a person's token, where there is one."""
        with self._lock:
            self._tokens.pop(person_name, None)

    def forget_all_but(self, names: Collection[str]) -> None:
        """Forget the tokens of people who may no longer sign in."""
        with self._lock:
            for name in self._tokens.keys() - set(names):
                del self._tokens[name]


def require_token(text: str, right: str) -> str:
    """Return a token for Hugging Face that a person typed.

    Args:
        right: What the token must allow, for the words of the error.

    Raises:
        AccountError: If that cannot be a token.
    """
    token = text.strip()
    if not token.isascii() or not token.isprintable() or not 0 < len(token) <= 200 or " " in token:
        raise AccountError(
            "That is not a Hugging Face token.", f"Make one with {right} at https://huggingface.co/settings/tokens."
        )
    return token
