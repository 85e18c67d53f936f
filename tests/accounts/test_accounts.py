"""Invitations are used once, passwords open one account, and a lab never loses its last admin."""

import stat
import subprocess
import sys

import pytest

from loratory.engine.accounts.accounts import INVITATION_SECONDS, Accounts, open_database
from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.accounts.lab import read_rules
from loratory.engine.errors import AccountError, StorageError
from tests.accounts.conftest import PASSWORD, at_once


def test_an_invitation_makes_an_account_of_its_role(accounts, clock):
    invitation = accounts.invite("member", by="root")

    person = accounts.accept(invitation.token, "Ann", PASSWORD)

    assert (person.name, person.role, person.created, person.last_sign_in) == ("ann", "member", clock.now, None)
    assert accounts.people() == [person]
    assert accounts.check_password("ANN ", PASSWORD) == person


def test_an_invitation_is_used_once(accounts):
    invitation = accounts.invite("member", by="")
    accounts.accept(invitation.token, "ann", PASSWORD)

    with pytest.raises(AccountError, match="not valid"):
        accounts.accept(invitation.token, "bea", PASSWORD)

    assert [person.name for person in accounts.people()] == ["ann"]


def test_of_twenty_who_use_one_invitation_at_once_one_gets_in(home, quick_passwords):
    invitation = Accounts(open_database(home), quick_passwords).invite("member", by="")
    own = [Accounts(open_database(home), quick_passwords) for _ in range(20)]  # as in other processes

    results = at_once(20, lambda number: own[number].accept(invitation.token, f"person-{number}", PASSWORD))

    assert sum(isinstance(result, AccountError) for result in results) == 19
    assert len(Accounts(open_database(home), quick_passwords).people()) == 1


def test_an_invitation_ends_after_72_hours(accounts, clock):
    invitation = accounts.invite("guest", by="")
    assert accounts.find_invitation(invitation.token).role == "guest"
    clock.now += INVITATION_SECONDS

    with pytest.raises(AccountError, match="not valid"):
        accounts.accept(invitation.token, "ann", PASSWORD)
    assert accounts.invitations() == []


@pytest.mark.parametrize("token", ["", "x", "\ud800", "a" * 43])
def test_other_tokens_are_not_valid(accounts, token):
    accounts.invite("admin", by="")

    with pytest.raises(AccountError, match="not valid"):
        accounts.accept(token, "ann", PASSWORD)


def test_a_name_that_is_taken_leaves_the_invitation_usable(accounts, make_person):
    make_person("ann")
    invitation = accounts.invite("member", by="")

    with pytest.raises(AccountError, match="'ann' is taken"):
        accounts.accept(invitation.token, "ANN", PASSWORD)

    assert accounts.accept(invitation.token, "bea", PASSWORD).name == "bea"


@pytest.mark.parametrize(
    ("password", "message"),
    [
        ("short", "has 5 characters"),
        ("x" * 201, "has 201"),
        ("aaaaaaaaaaaa", "easy to guess"),
        ("ann-ann-ann1", "easy"),
    ],
)
def test_weak_passwords_are_refused(accounts, password, message):
    with pytest.raises(AccountError, match=message):
        accounts.accept(accounts.invite("member", by="").token, "ann", password)


def test_a_wrong_password_and_an_unknown_name_open_nothing(accounts, make_person):
    make_person("ann")

    assert accounts.check_password("ann", PASSWORD + "!") is None
    assert accounts.check_password("bea", PASSWORD) is None
    assert accounts.check_password("ann", "") is None
    assert accounts.check_password("' OR 1=1 --", PASSWORD) is None


def test_a_reset_ends_the_password_and_its_link_sets_another(accounts, make_person):
    make_person("ann", "admin")
    first, second = accounts.reset("ann", by=""), accounts.reset("ann", by="")

    assert accounts.check_password("ann", PASSWORD) is None
    with pytest.raises(AccountError, match="not valid"):
        accounts.accept(first.token, "ignored", PASSWORD)
    assert accounts.accept(second.token, "ignored", "another good password").name == "ann"
    assert accounts.check_password("ann", "another good password") is not None
    assert [person.name for person in accounts.people()] == ["ann"]


def test_a_password_is_changed_by_who_knows_it(accounts, make_person):
    make_person("ann")

    with pytest.raises(AccountError, match="present password is wrong"):
        accounts.change_password("ann", "something else entirely", "another good password")
    accounts.change_password("ann", PASSWORD, "another good password")

    assert accounts.check_password("ann", PASSWORD) is None
    assert accounts.check_password("ann", "another good password") is not None


def test_a_disabled_person_stays_out_until_enabled(accounts, make_person):
    make_person("ann")
    accounts.disable("ann")
    assert accounts.check_password("ann", PASSWORD) is None

    accounts.enable("ann")
    assert accounts.check_password("ann", PASSWORD) is not None


def test_a_removed_name_is_not_given_again(accounts, make_person):
    make_person("ann")
    accounts.remove("ann")

    assert accounts.people() == []
    with pytest.raises(AccountError, match="taken"):
        make_person("ann")


def test_the_last_admin_stays(accounts, make_person):
    make_person("ann", "admin")
    make_person("bea", "admin")
    accounts.disable("bea")

    for change in (accounts.disable, accounts.remove, lambda name: accounts.set_role(name, "member")):
        with pytest.raises(AccountError, match="No admin would be left"):
            change("ann")
    assert accounts.person("ann").role == "admin"
    assert accounts.person("ann").disabled is None

    accounts.enable("bea")
    assert accounts.set_role("ann", "member").role == "member"


def test_the_file_is_for_its_user_alone_and_holds_no_secret(accounts, home, make_person):
    invitation = accounts.invite("member", by="")
    make_person("ann")

    files = [path for path in home.root.iterdir() if path.name.startswith(DATABASE_FILE)]
    assert len(files) == 3  # with SQLite's log and shared memory
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = path.read_bytes()
        assert PASSWORD.encode() not in content
        assert invitation.token.encode() not in content


def test_a_file_that_is_something_else_is_reported(home):
    (home.root / DATABASE_FILE).write_text("not a database, but long enough to be taken for one" * 10)

    with pytest.raises(StorageError, match="cannot be used"):
        open_database(home)


def test_what_a_server_writes_is_seen_after_commands_came_and_went(home):
    """Closing a file drops all POSIX locks on it; SQLite then removed the log that the server continued writing to."""
    script = "from loratory.engine.accounts.accounts import *; d = open_database(LoratoryHome(Path(sys.argv[1]))); print(len(Accounts(d).people())); d.close()"
    command = [sys.executable, "-c", f"import sys; from pathlib import Path; {script}", str(home.root)]
    server = open_database(home)
    open_database(home).close()  # as what reads the limits does

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
    with server.transaction() as connection:
        connection.execute("INSERT INTO people (name, role, created) VALUES ('ann', 'member', 1)")

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1\n"
    assert len(server.rows("SELECT name FROM people")) == 1
    server.close()


def test_a_removed_guest_stays_a_guest_for_the_limits_of_their_runs(accounts, home, make_person):
    make_person("root", "admin")
    make_person("gus", "guest")
    accounts.remove("gus")

    assert read_rules(home).guests == {"gus"}


def test_a_browser_is_known_to_its_person_until_the_password_changes(accounts, make_person):
    make_person("ann")
    make_person("bea")
    token = accounts.device_token("ann")

    assert accounts.known_device("Ann ", token)
    assert accounts.known_device("ann", accounts.device_token("ann")) != accounts.known_device("ann", token)
    for name, token_guess in (
        ("bea", token),
        ("nobody", token),
        ("ann", token[:-1]),
        ("ann", "x" + token),
        ("ann", ""),
        ("ann", "."),
    ):
        assert not accounts.known_device(name, token_guess)
    accounts.change_password("ann", PASSWORD, "another battery staple")
    assert not accounts.known_device("ann", token)
    assert not accounts.device_token("nobody")
