"""Who may do what, against a table written by hand; and tokens that are kept in memory, per person, until they expire."""

import pickle

import pytest

from loratory.engine.accounts.people import (
    ROLES,
    RUN_ACTIONS,
    Action,
    Logins,
    Person,
    RunAccess,
    is_logged,
    may,
    require_name,
    require_role,
)
from loratory.engine.errors import AccountError

CANARY = "hf_oauth_canary"
# Of a run: own, shared by another person, another person's. Each column lists what is allowed.
RUN_TABLE = {
    #            admin                  member                 guest
    "read":     ("own shared foreign", "own shared",          "own"),
    "chat":     ("own shared foreign", "own shared",          "own"),
    "copy":     ("own shared foreign", "own shared",          "own"),
    "evaluate": ("own shared foreign", "own",                 "own"),
    "export":   ("own shared foreign", "own",                 "own"),
    "push":     ("own shared foreign", "own",                 ""),
    "continue": ("own shared foreign", "own",                 "own"),
    "share":    ("own shared foreign", "own",                 ""),
    "stop":     ("own shared foreign", "own",                 "own"),
    "resume":   ("own shared foreign", "own",                 "own"),
    "delete":   ("own shared foreign", "own",                 "own"),
}  # fmt: skip
LAB_TABLE = {
    "start": "admin member guest",
    "use own data": "admin member",
    "use jobs": "admin member",
    "use urgent slot": "admin",
    "manage": "admin",
}


def a_person(role, name="ann", **changes):
    return Person(name=name, role=role, created=0.0, **changes)


def test_the_tables_name_every_action():
    assert {*RUN_TABLE, *LAB_TABLE} == {action.value for action in Action}
    assert {*RUN_TABLE} == {action.value for action in RUN_ACTIONS}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("action", Action)
def test_what_the_tables_do_not_allow_is_refused(role, action):
    runs = {"own": RunAccess("ann"), "shared": RunAccess("bea", is_shared=True), "foreign": RunAccess("bea")}
    columns = dict(zip(("admin", "member", "guest"), RUN_TABLE.get(action.value, ("", "", "")), strict=True))

    assert may(a_person(role), action) is (role in LAB_TABLE.get(action.value, "").split())
    for relation, run in runs.items():
        assert may(a_person(role), action, run) is (relation in columns[role].split())
        assert not may(a_person(role, disabled=5.0), action, run)
    assert not may(a_person(role, disabled=5.0), action)


def test_a_look_into_a_run_that_is_not_shared_is_logged():
    admin = a_person("admin")
    assert is_logged(admin, RunAccess("bea"))
    assert not is_logged(admin, RunAccess("bea", is_shared=True))
    assert not is_logged(admin, RunAccess("ann"))


@pytest.mark.parametrize(("typed", "name"), [("Ann", "ann"), (" bea-2 ", "bea-2"), ("o_k", "o_k")])
def test_names_are_kept_in_lower_case(typed, name):
    assert require_name(typed) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "-ann",
        "1st",
        "../etc",
        "a/b",
        "ann\n2",
        "ä-b",
        "a" * 33,
        "shared",
        " Demo ",
        "a b",
        ".ann",
        "ann\0",
        "CON",
        "com1",
    ],
)
def test_what_cannot_be_a_folder_cannot_be_a_name(name):
    with pytest.raises(AccountError, match="cannot be the name"):
        require_name(name)


def test_roles_are_looked_up():
    assert require_role("guest") == "guest"
    with pytest.raises(AccountError, match="'root' is not a role"):
        require_role("root")


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
