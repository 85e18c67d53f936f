"""Guessing is slowed down, without a sign of which names exist; passwords are checked two at a time."""

import statistics
import threading
import time

import pytest

from engine.accounts.passwords import BusyError, Passwords
from engine.accounts.throttle import SignInThrottle, ThrottledError
from tests.accounts.conftest import PASSWORD


def attempts(throttle, address, name, count):
    """How many attempts of these are let through."""
    for number in range(count):
        try:
            throttle.begin(address, name)
        except ThrottledError:
            return number
        throttle.failed(name)
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
    throttle.succeeded("Ann ")
    assert attempts(throttle, "10.0.0.3", "ann", 9) == 9


def test_the_message_says_when_to_try_again():
    throttle = SignInThrottle()
    attempts(throttle, "10.0.0.1", "ann", 10)
    with pytest.raises(ThrottledError) as refused:
        throttle.begin("10.0.0.2", "ann")
    assert 3_500 < refused.value.seconds <= 3_600
    assert f"Try again in {refused.value.seconds} s." in str(refused.value)


def test_a_known_and_an_unknown_name_take_the_same_time():
    """Interleaved, with the real parameters; the medians differ by less than either varies."""
    passwords = Passwords()
    kept = passwords.hash(PASSWORD, "ann")
    known: list[float] = []
    unknown: list[float] = []
    for _ in range(15):
        for seconds, hashed in ((known, kept), (unknown, None)):
            began = time.thread_time()  # other processes do not count
            assert not passwords.is_right("a wrong password", hashed)
            seconds.append(time.thread_time() - began)

    assert min(unknown) > 0.5 * min(known), "a password was hashed"
    quarter, _, three_quarters = statistics.quantiles(known + unknown, n=4)
    assert abs(statistics.median(known) - statistics.median(unknown)) <= max(three_quarters - quarter, 0.002)


class SlowHasher:
    """Counts how many hash at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def hash(self, password):
        return "kept"

    def verify(self, kept, password):
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.05)
        with self._lock:
            self.now -= 1


def test_two_passwords_are_checked_at_once_and_a_flood_is_turned_away():
    hasher = SlowHasher()
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
    for thread in threads:
        thread.join()

    assert hasher.most == 2
    assert 18 <= results.count(True) < 40


def test_an_attack_is_seen_in_the_audit_log_and_does_not_fill_it():
    throttle = SignInThrottle()

    assert 0 < sum(throttle.may_note() for _ in range(1000)) <= 6
