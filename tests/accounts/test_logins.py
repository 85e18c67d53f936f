"""Tokens of people who signed in are kept in memory, per person, until they expire or are forgotten."""

import pickle

import pytest

from engine.accounts.logins import Logins

CANARY = "hf_oauth_canary"


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


def test_a_token_is_its_persons_until_it_expires():
    clock = Clock()
    logins = Logins(clock)
    logins.put("ann", CANARY, 1_100.0)

    assert logins.token_of("ann") == CANARY
    assert logins.token_of("bea") is None
    clock.now = 1_100.0
    assert logins.token_of("ann") is None
    clock.now = 1_000.0
    assert logins.token_of("ann") is None, "it was forgotten"


def test_a_later_sign_in_replaces_and_a_sign_out_forgets():
    logins = Logins(Clock())
    logins.put("ann", "first", 2_000.0)
    logins.put("ann", "second", 2_000.0)
    assert logins.token_of("ann") == "second"
    logins.forget("ann")
    logins.forget("nobody")
    assert logins.token_of("ann") is None


def test_people_who_may_not_sign_in_any_more_lose_theirs():
    logins = Logins(Clock())
    for name in ("ann", "bea", "cid"):
        logins.put(name, f"of {name}", 2_000.0)
    logins.forget_all_but({"bea", "dan"})
    assert [logins.token_of(name) for name in ("ann", "bea", "cid", "dan")] == [None, "of bea", None, None]


def test_a_token_is_in_no_text_and_in_no_file():
    logins = Logins(Clock())
    logins.put("ann", CANARY, 2_000.0)
    assert CANARY not in f"{logins} {logins!r}"
    with pytest.raises(TypeError):
        pickle.dumps(logins)
