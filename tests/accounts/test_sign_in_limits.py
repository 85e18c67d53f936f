"""Guessing is slowed down, without a sign of which names exist; passwords are checked two at a time."""

import threading
import time

import pytest
from argon2 import PasswordHasher, extract_parameters

from loratory.engine.accounts.passwords import BusyError, Passwords
from loratory.engine.accounts.throttle import SignInThrottle, ThrottledError
from tests.accounts.conftest import PASSWORD
from tests.waiting import PATIENCE_SECONDS, wait_until


def attempts(throttle, address, name, count):
    """How many attempts of these are let through."""
    for number in range(count):
        try:
            throttle.begin(address, name)
        except ThrottledError:
            return number
    return count


@pytest.mark.parametrize("name", ["ann", "nobody-here"])
def test_twenty_wrong_passwords_for_a_name_are_not_let_through(name):
    assert attempts(SignInThrottle(), "10.0.0.1", name, 20) == 10


def test_an_address_that_tries_many_names_is_slowed_down():
    throttle = SignInThrottle()
    let_through = 0
    for number in range(30):
        let_through += attempts(throttle, "10.0.0.1", f"name-{number}", 1)
    assert let_through == 20
    assert attempts(throttle, "10.0.0.2", "another", 1) == 1


def test_all_addresses_of_an_ipv6_network_count_as_one():
    throttle = SignInThrottle()
    let_through = sum(attempts(throttle, f"2001:db8::{number:x}", f"name-{number}", 1) for number in range(30))
    assert let_through == 20


def test_there_is_a_limit_for_all_together():
    throttle = SignInThrottle()
    let_through = sum(attempts(throttle, f"10.0.{number}.1", f"name-{number}", 1) for number in range(200))
    assert let_through == 120


def test_the_right_password_clears_the_wrong_ones():
    throttle = SignInThrottle()
    assert attempts(throttle, "10.0.0.1", "ann", 9) == 9
    throttle.clear_attempts("10.0.0.1", "Ann ")
    assert attempts(throttle, "10.0.0.3", "ann", 9) == 9


def test_the_message_reports_when_to_try_again():
    throttle = SignInThrottle()
    attempts(throttle, "10.0.0.1", "ann", 10)
    with pytest.raises(ThrottledError) as error_info:
        throttle.begin("10.0.0.1", "ann")
    assert 50 < error_info.value.seconds <= 60
    assert f"Try again in {error_info.value.seconds} s." in str(error_info.value)


@pytest.fixture
def seconds(monkeypatch):
    """Lets time pass for the limits."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def passes(throttle, address, name, **options):
    try:
        throttle.begin(address, name, **options)
    except ThrottledError:
        return False
    return True


def test_wrong_passwords_from_one_network_do_not_keep_the_person_out_from_another(seconds):
    throttle = SignInThrottle()
    attempts(throttle, "10.0.0.1", "ann", 20)
    assert not passes(throttle, "10.0.0.1", "ann")

    assert passes(throttle, "10.0.0.1", "ann", device="known")
    seconds[0] += 61
    assert passes(throttle, "10.0.0.2", "ann"), "after a minute, not an hour"


def test_a_known_browser_signs_in_whatever_others_try(seconds):
    throttle = SignInThrottle()
    for number in range(250):
        passes(throttle, f"10.0.{number}.1", f"name-{number}" if number % 2 else "ann")
    assert not passes(throttle, "10.1.0.1", "ann")

    assert [passes(throttle, "10.1.0.1", "ann", device="known") for _ in range(12)] == [True] * 10 + [False] * 2


@pytest.mark.parametrize(("networks", "most"), [(1, 70), (200, 190)])
def test_guesses_of_one_name_within_an_hour_are_bounded(seconds, networks, most):
    throttle = SignInThrottle()
    count = 0
    for guess in range(1200):
        count += passes(throttle, f"10.0.{guess % networks}.1", "ann")
        seconds[0] += 3

    assert most - 12 <= count <= most


class WatchedHasher:
    """Notes what it is asked to compare, which takes as long as the parameters of a hash say."""

    def __init__(self) -> None:
        self.real = PasswordHasher()
        self.verified: list[tuple[str, str]] = []

    def hash(self, password):
        return self.real.hash(password)

    def verify(self, password_hash, password):
        self.verified.append((password_hash, password))
        return self.real.verify(password_hash, password)


def test_a_known_and_an_unknown_name_take_the_same_work():
    hasher = WatchedHasher()
    passwords = Passwords(hasher)
    password_hash = passwords.hash(PASSWORD, "ann")

    assert not passwords.is_right("a wrong password", password_hash)
    assert not passwords.is_right("a wrong password", None)

    (known, typed), (unknown, typed_again) = hasher.verified
    assert typed == typed_again == "a wrong password"
    assert known == password_hash
    assert extract_parameters(unknown) == extract_parameters(known)


class HeldHasher:
    """Counts how many hash at once; none is done before it may be."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.may_end = threading.Event()
        self._lock = threading.Lock()

    def hash(self, password):
        return "kept"

    def verify(self, password_hash, password):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.may_end.wait(PATIENCE_SECONDS)
        with self._lock:
            self.now -= 1


def test_two_passwords_are_checked_at_once_and_a_flood_is_turned_away():
    hasher = HeldHasher()
    passwords = Passwords(hasher)
    results: list[bool] = []

    def check() -> None:
        try:
            results.append(passwords.is_right(PASSWORD, "kept"))
        except BusyError:
            results.append(False)

    threads = [threading.Thread(target=check) for _ in range(40)]
    for thread in threads:
        thread.start()
    wait_until(lambda: hasher.now == 2 and len(results) == 22)
    assert results == [False] * 22, "two are checked, and sixteen wait"
    hasher.may_end.set()
    for thread in threads:
        thread.join()

    assert hasher.most == 2
    assert results.count(True) == 18


def test_an_attack_is_seen_in_the_audit_log_and_does_not_fill_it():
    throttle = SignInThrottle()

    assert 0 < sum(throttle.may_note() for _ in range(1000)) <= 6
