"""Sessions end when they are not used, when they are old, and when a person is signed out, disabled or removed."""

import pytest

from loratory.engine.accounts.sessions import CONFIRMED_SECONDS, IDLE_SECONDS, LONGEST_SECONDS
from tests.accounts.conftest import PASSWORD


@pytest.fixture
def ann(make_person):
    make_person("root", "admin")
    return make_person("ann")


def test_a_token_finds_its_person_as_the_account_is_now(ann, sessions, accounts, clock):
    token = sessions.begin(ann, "10.0.0.7", "Firefox")
    accounts.set_role("ann", "guest")

    signed_in = sessions.find(token)

    assert signed_in is not None
    assert (signed_in.person.name, signed_in.person.role) == ("ann", "guest")
    assert signed_in.person.last_sign_in == clock.now


@pytest.mark.parametrize("token", ["", "x", "A" * 43, "\ud800"])
def test_other_tokens_find_no_one(ann, sessions, token):
    sessions.begin(ann, "", "")
    assert sessions.find(token) is None


def test_an_unused_session_ends_after_twelve_hours(ann, sessions, clock):
    used, idle = sessions.begin(ann, "", ""), sessions.begin(ann, "", "")
    clock.now += IDLE_SECONDS - 60
    assert sessions.find(used) is not None
    clock.now += 120

    assert sessions.find(used) is not None
    assert sessions.find(idle) is None


def test_no_session_outlives_fourteen_days(ann, sessions, clock):
    token = sessions.begin(ann, "", "")
    began = clock.now
    while clock.now - began <= LONGEST_SECONDS:
        assert sessions.find(token) is not None
        clock.now += IDLE_SECONDS - 1

    assert sessions.find(token) is None


def test_signing_out_ends_one_session_or_all(ann, sessions):
    tokens = [sessions.begin(ann, "", "") for _ in range(3)]

    sessions.end(tokens[0])
    assert [sessions.find(token) is not None for token in tokens] == [False, True, True]
    sessions.end_all(ann)
    assert [sessions.find(token) for token in tokens] == [None, None, None]


@pytest.mark.parametrize("change", ["disable", "remove", "reset", "change_password"])
def test_a_change_of_the_account_ends_its_sessions(ann, sessions, accounts, change):
    token = sessions.begin(ann, "", "")
    if change == "reset":
        accounts.reset("ann", by="root")
    elif change == "change_password":
        accounts.change_password("ann", PASSWORD, "another good password")
    else:
        getattr(accounts, change)("ann")

    assert sessions.find(token) is None


def test_the_oldest_of_twenty_sessions_ends(ann, sessions, clock):
    tokens = []
    for _ in range(21):
        clock.now += 1
        tokens.append(sessions.begin(ann, "", ""))

    assert sessions.find(tokens[0]) is None
    assert all(sessions.find(token) for token in tokens[1:])
    assert len(sessions.list_for(ann)) == 20


def test_sessions_are_listed_without_what_opens_them(ann, sessions):
    token = sessions.begin(ann, "10.0.0.7", "Firefox " * 100)

    (state,) = sessions.list_for(ann)

    assert (state.address, state.browser[:7], len(state.browser)) == ("10.0.0.7", "Firefox", 200)
    assert token not in repr(state)


def test_a_password_counts_as_just_given_for_ten_minutes(ann, sessions, clock):
    token = sessions.begin(ann, "", "")
    clock.now += CONFIRMED_SECONDS + 1
    assert not sessions.is_confirmed(sessions.find(token))

    sessions.confirm(token)
    assert sessions.is_confirmed(sessions.find(token))
