"""Accounts whose passwords are hashed with the least work, and whose time a test sets."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import PasswordHasher

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.passwords import Passwords
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.errors import AccountError

PASSWORD = "correct horse battery"


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Let so many threads do some work at the same moment; return their results, and errors of accounts."""
    ready = threading.Barrier(count)

    def run(number: int) -> object:
        ready.wait()
        try:
            return work(number)
        except AccountError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def database(home):
    with_file = open_database(home)
    yield with_file
    with_file.close()


@pytest.fixture(scope="session")
def quick_passwords():
    return Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def accounts(database, clock, quick_passwords):
    return Accounts(database, quick_passwords, clock)


@pytest.fixture
def sessions(database, clock):
    return Sessions(database, clock)


@pytest.fixture
def make_person(accounts):
    def make(name="ann", role="member"):
        return accounts.accept(accounts.invite(role, by="").token, name, PASSWORD)

    return make
