"""An account of another service opens one account of the lab, of a person who was invited or whom a rule lets in."""

import pytest

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.identities import Identities, Identity
from loratory.engine.errors import AccountError
from tests.accounts.conftest import PASSWORD, at_once

ISSUER = "https://id.example"
ANN = Identity(ISSUER, "4711")


@pytest.fixture
def identities(database, accounts, clock):
    return Identities(database, accounts, clock)


def test_an_invitation_is_used_with_an_account_of_another_service(accounts, identities):
    invitation = accounts.invite("guest", by="root")

    person = identities.accept(invitation.token, "Ann", ANN)

    assert (person.name, person.role) == ("ann", "guest")
    assert identities.person_of(ANN) == person
    assert accounts.check_password("ann", "") is None
    with pytest.raises(AccountError, match="not valid"):
        identities.accept(invitation.token, "bea", Identity(ISSUER, "4712"))


def test_issuer_and_subject_decide_together(identities, make_person):
    identities.link(make_person("ann"), ANN)

    for other in (
        Identity(ISSUER, "4711 "),
        Identity(ISSUER, "ann"),
        Identity("https://id.example/", "4711"),
        Identity("", "4711"),
    ):
        assert identities.person_of(other) is None


def test_an_identity_opens_one_account_and_an_account_has_one_of_a_service(identities, make_person, accounts):
    ann, bea = make_person("ann"), make_person("bea")
    identities.link(ann, ANN)

    with pytest.raises(AccountError, match="opens another account"):
        identities.link(bea, ANN)
    with pytest.raises(AccountError, match="linked already"):
        identities.link(ann, Identity(ISSUER, "4712"))
    invitation = accounts.invite("admin", by="")
    with pytest.raises(AccountError, match="opens another account"):
        identities.accept(invitation.token, "root", ANN)

    assert identities.person_of(ANN) == ann
    assert accounts.find_invitation(invitation.token).role == "admin", "it stays usable"
    assert [person.name for person in accounts.people()] == ["ann", "bea"]


@pytest.mark.parametrize("end", ["disable", "remove", "reset", "unlink"])
def test_what_an_admin_ended_opens_nothing_and_no_rule_lets_it_in_again(identities, accounts, make_person, end):
    ann = make_person("ann")
    identities.link(ann, ANN)
    if end == "unlink":
        identities.unlink(ann, ISSUER)
    else:
        getattr(accounts, end)(*(["ann", ""] if end == "reset" else ["ann"]))

    assert identities.person_of(ANN) is None
    assert identities.was_linked(ANN)
    with pytest.raises(AccountError, match="known to the lab before"):
        identities.join("ann", "member", ANN)
    if end != "disable":
        assert identities.accept(accounts.invite("member", by="").token, "new-ann", ANN).name == "new-ann"
        assert identities.person_of(ANN).name == "new-ann"


def test_a_disabled_person_is_let_in_again_once_enabled(identities, accounts, make_person):
    identities.link(make_person("ann"), ANN)
    accounts.disable("ann")
    assert identities.person_of(ANN) is None

    accounts.enable("ann")
    assert identities.person_of(ANN).name == "ann"


def test_a_reset_link_is_used_with_an_account_of_another_service(identities, accounts, make_person):
    make_person("ann", "admin")

    person = identities.accept(accounts.reset("ann", by="").token, "ignored", ANN)

    assert person.name == "ann"
    assert accounts.check_password("ann", PASSWORD) is None
    assert identities.person_of(ANN) == person


def test_the_last_way_into_an_account_stays(identities, accounts, make_person):
    person = identities.accept(accounts.invite("member", by="").token, "ann", ANN)
    with pytest.raises(AccountError, match="Set a password first"):
        identities.unlink(person, ISSUER)
    assert identities.subject_of(person, ISSUER)


@pytest.mark.parametrize(
    ("suggestion", "name"),
    [
        ("Bea", "bea"), ("bea.smith@example.edu", "bea-smith-example-edu"), ("root", "root-2"), ("shared", "shared-2"), ("b", "b-2"),
        ("", "member-2"), ("../../etc", "etc"), ("日本", "member-2"), ("007", "member-2"), ("x" * 90, "x" * 28), ("lab\n; DROP", "lab-drop"),
    ],
)  # fmt: skip
def test_a_new_member_gets_a_name_that_is_free_and_a_folder_name(identities, make_person, suggestion, name):
    make_person("root", "admin")
    assert identities.join(suggestion, "member", ANN).name == name
    assert identities.person_of(Identity(ISSUER, "4711")).name == name


def test_of_ten_who_join_with_one_identity_at_once_one_gets_an_account(home, quick_passwords):
    databases = [open_database(home) for _ in range(10)]  # as in other processes
    identities = [Identities(database, Accounts(database, quick_passwords)) for database in databases]

    results = at_once(10, lambda number: identities[number].join("ann", "member", ANN).name)

    assert results.count("ann") == 1
    assert sum(isinstance(result, AccountError) for result in results) == 9
