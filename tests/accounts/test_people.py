"""Who may do what: the function that decides, against a table written by hand."""

import random

import pytest

from engine.accounts.people import (
    ROLES,
    RUN_ACTIONS,
    Action,
    Person,
    RunAccess,
    is_logged,
    may,
    require_name,
    require_role,
)
from engine.errors import AccountError

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


def test_may_agrees_with_the_table_for_random_people_runs_and_actions():
    draw = random.Random(7)
    for _ in range(20_000):
        person = a_person(
            draw.choice(ROLES), draw.choice(["ann", "bea"]), disabled=draw.choice([None, None, None, 5.0])
        )
        action = draw.choice(list(Action))
        run = draw.choice([None, RunAccess(draw.choice(["ann", "bea", "cid"]), draw.random() < 0.5)])

        if person.disabled is not None:
            expected = False
        elif run is None:
            expected = person.role in LAB_TABLE.get(action.value, "").split()
        else:
            relation = "own" if run.owner == person.name else "shared" if run.is_shared else "foreign"
            columns = RUN_TABLE.get(action.value, ("", "", ""))
            expected = relation in columns[("admin", "member", "guest").index(person.role)].split()

        assert may(person, action, run) is expected, (person, action, run)


def test_a_look_into_a_run_that_is_not_shared_is_logged():
    admin = a_person("admin")
    assert is_logged(admin, RunAccess("bea"))
    assert not is_logged(admin, RunAccess("bea", is_shared=True))
    assert not is_logged(admin, RunAccess("ann"))


@pytest.mark.parametrize(("typed", "kept"), [("Ann", "ann"), (" bea-2 ", "bea-2"), ("o_k", "o_k")])
def test_names_are_kept_in_lower_case(typed, kept):
    assert require_name(typed) == kept


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
        "a b",
        ".ann",
        "ann\0",
        "CON",
        "nul",
        "com1",
        "lpt9",
    ],
)
def test_what_cannot_be_a_folder_cannot_be_a_name(name):
    with pytest.raises(AccountError, match="cannot be the name"):
        require_name(name)


def test_roles_are_looked_up():
    assert require_role("guest") == "guest"
    with pytest.raises(AccountError, match="'root' is not a role"):
        require_role("root")
