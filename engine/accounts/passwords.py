"""Passwords: what is accepted as one, and how it is kept, with Argon2id."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from loratory.engine.errors import AccountError

SHORTEST = 12  # characters, without rules about their kinds: NIST SP 800-63B-4, section 3.1.1.2
LONGEST = 200
_DIFFERENT_CHARACTERS = 4
_AT_ONCE = 2  # each takes 64 MiB and a core for a moment, and is asked for by people who are not signed in
_WAITING = 16


def _yield_processor() -> None:
    """Let the pages run before this thread and those that Argon2 starts from it, of which there are eight."""
    if sys.platform == "linux":  # elsewhere it would hold for the whole process
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + 5)


# For a server: those whose turn it is not wait in threads that nothing else needs; one more turns the rest away.
PASSWORD_THREADS = ThreadPoolExecutor(_AT_ONCE + _WAITING + 1, "password", initializer=_yield_processor)

T = TypeVar("T")


class BusyError(AccountError):
    """More people sign in at this moment than are let wait."""


class Passwords:
    """Hashes and checks passwords, at most two at once; the rest wait for their turn, a few at a time.

    The parameters are argon2-cffi's own, those of RFC 9106 for machines with little memory: 64 MiB, three passes.
    """

    def __init__(self, hasher: PasswordHasher | None = None) -> None:
        self._hasher = hasher or PasswordHasher()
        self._turn = threading.BoundedSemaphore(_AT_ONCE)
        self._queue = threading.BoundedSemaphore(_AT_ONCE + _WAITING)
        # Checked for names that do not exist, so they take as long as those that do.
        self._dummy = self._hasher.hash("a password that no account has")

    def hash(self, password: str, name: str) -> str:
        """Return what is kept of a new password.

        Raises:
            AccountError: If the password is too short, too long, or the name.
            BusyError: If too many are being checked.
        """
        _require_password(password, name)
        return self._in_turn(lambda: self._hasher.hash(password))

    def is_right(self, password: str, password_hash: str | None) -> bool:
        """Return whether a password is the one that was kept; takes equally long where nothing was.

        Raises:
            BusyError: If too many are being checked.
        """
        return self._in_turn(lambda: self._matches(password[: LONGEST + 1], password_hash))

    def _matches(self, password: str, password_hash: str | None) -> bool:
        try:
            self._hasher.verify(password_hash or self._dummy, password)
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False
        return password_hash is not None

    def _in_turn(self, work: Callable[[], T]) -> T:
        if not self._queue.acquire(blocking=False):
            raise BusyError("Too many people sign in at this moment.", "Try again in a few seconds.")
        try:
            with self._turn:
                return work()
        finally:
            self._queue.release()


def _require_password(password: str, name: str) -> None:
    if not SHORTEST <= len(password) <= LONGEST:
        what = f"The password has {len(password):,} characters."
        raise AccountError(what, f"Choose one with {SHORTEST} to {LONGEST} characters.")
    rest = password.lower().replace(name, "")
    if len(rest) < SHORTEST // 2 or len(set(rest)) < _DIFFERENT_CHARACTERS:
        raise AccountError("The password is easy to guess.", "Choose one of several words, without your name.")
