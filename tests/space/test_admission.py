"""The creator and those whom the owner lists get in; a name is believed once, and then means who came under it."""

import pytest

from loratory.engine.accounts.accounts import Accounts, open_database
from loratory.engine.accounts.identities import Identities
from loratory.engine.errors import AccountError
from loratory.engine.space.admission import Admission, HubName, Visitor
from loratory.engine.space.environment import SpaceEnvironment
from tests.accounts.conftest import accounts, at_once, clock, database, quick_passwords  # noqa: F401 - fixtures

CREATOR, BEA, CID = "a" * 24, "b" * 24, "c" * 24
LAB, OTHER_LAB = "1" * 24, "2" * 24


def space(*names):
    return SpaceEnvironment(
        "Ann/loratory", "x.hf.space", CREATOR, "Ann", "id", "secret", admitted_names=frozenset(names)
    )


def visitor(subject, name, *organizations):
    return Visitor(HubName(subject, name), tuple(HubName(*organization) for organization in organizations))


@pytest.fixture
def make(database, accounts):  # noqa: F811
    return lambda *names: Admission(space(*names), database, accounts)


def test_the_creator_is_an_admin_under_every_name_and_again_on_an_empty_disk(make, home, quick_passwords):  # noqa: F811
    first = make().admit(visitor(CREATOR, "Ann"))
    assert (first.person.name, first.person.role, first.is_new) == ("ann", "admin", True)
    again = make().admit(visitor(CREATOR, "renamed"))
    assert (again.person.name, again.is_new) == ("ann", False)

    (home.root / "empty").mkdir()
    empty = open_database(home.__class__(home.root / "empty"))
    later = Admission(space(), empty, Accounts(empty, quick_passwords)).admit(visitor(CREATOR, "Ann"))
    empty.close()
    assert later.person.role == "admin"


def test_the_creator_cannot_be_kept_out(make, accounts):  # noqa: F811
    admission = make(BEA)
    admission.admit(visitor(CREATOR, "ann"))
    admission.admit(visitor(BEA, "bea"))
    accounts.set_role("bea", "admin")
    accounts.set_role("ann", "guest")
    accounts.disable("ann")
    back = admission.admit(visitor(CREATOR, "ann")).person
    assert (back.name, back.role, back.disabled) == ("ann", "admin", None)
    accounts.remove("ann")
    second = admission.admit(visitor(CREATOR, "ann")).person
    assert (second.name, second.role) == ("ann-2", "admin"), "the name and its folders are not given again"


@pytest.mark.parametrize(
    ("who", "gets_in"),
    [
        (visitor(BEA, "Bea"), True),
        (visitor(CID, "cid"), True),  # by id
        (visitor("d" * 24, "dan", (LAB, "GPU-lab")), True),
        (visitor("d" * 24, "dan", (OTHER_LAB, "elsewhere")), True),  # by id
        (visitor("d" * 24, "dan"), False),
        (visitor("d" * 24, "dan", ("3" * 24, "gpu-labs")), False),
        (visitor("d" * 24, "beatrice"), False),
        (visitor("d" * 24, ""), False),
        (visitor("", ""), False),
        (visitor("d" * 24, CID), False),  # a name that looks like an id that is listed
        (visitor("d" * 24, "Ann"), False),  # the owner's name is not on the list
    ],
)
def test_who_is_listed_is_a_member_and_strangers_get_no_account(make, accounts, who, gets_in):  # noqa: F811
    admission = make("bea", CID, "gpu-lab", OTHER_LAB)
    result = admission.admit(who)
    assert (result is not None) == gets_in
    assert [(person.name, person.role) for person in accounts.people()] == (
        [(result.person.name, "member")] if result is not None else []
    )


def test_a_name_that_changed_hands_lets_the_first_in_and_not_the_next(make):
    assert make("bea", "gpu-lab").admit(visitor(BEA, "bea")).is_new
    make("bea", "gpu-lab").role_of(visitor(CID, "cid", (LAB, "gpu-lab")))

    later = make("bea", "gpu-lab")
    assert later.admit(visitor("d" * 24, "bea")) is None
    assert later.role_of(visitor("d" * 24, "dan", (OTHER_LAB, "gpu-lab"))) is None
    assert later.admit(visitor(BEA, "renamed")).person.name == "bea"
    assert later.role_of(visitor(CID, "cid", (LAB, "renamed-lab"))) == "member"


def test_a_name_off_the_list_keeps_its_person_out_and_is_believed_again_later(make):
    make("bea").admit(visitor(BEA, "bea"))
    assert make().admit(visitor(BEA, "bea")) is None
    assert make("bea").admit(visitor(CID, "bea")).person.name == "bea-2", "the account of the other stays theirs"
    assert make("bea").admit(visitor(BEA, "bea")) is None


def test_whom_an_admin_disabled_or_removed_stays_out(make, accounts):  # noqa: F811
    admission = make("bea")
    admission.admit(visitor(CREATOR, "ann"))
    admission.admit(visitor(BEA, "bea"))
    accounts.disable("bea")
    with pytest.raises(AccountError, match="disabled"):
        admission.admit(visitor(BEA, "bea"))
    accounts.remove("bea")
    with pytest.raises(AccountError, match="removed"):
        admission.admit(visitor(BEA, "bea"))


@pytest.mark.parametrize("subject", [CREATOR, BEA])
def test_two_tabs_that_sign_in_at_once_get_one_account(make, accounts, subject):  # noqa: F811
    admission = make("bea")
    assert at_once(8, lambda _: admission.admit(visitor(subject, "bea")).person.name) == ["bea"] * 8
    assert [person.name for person in accounts.people()] == ["bea"]


@pytest.mark.parametrize("subject", [CREATOR, BEA])
def test_a_tab_that_comes_a_moment_later_gets_the_account_of_the_first(make, monkeypatch, subject):
    admission = make("bea")
    first = admission.admit(visitor(subject, "bea"))
    name_of, not_yet = Identities.name_of, iter([None])
    monkeypatch.setattr(Identities, "name_of", lambda self, identity: next(not_yet, name_of(self, identity)))

    second = admission.admit(visitor(subject, "bea"))

    assert (second.person.name, second.is_new) == (first.person.name, False)


@pytest.mark.parametrize(
    ("sources", "name", "organizations"),
    [
        (({"preferred_username": "old"}, {"preferred_username": "new"}), "new", []),
        (({}, {"orgs": [{"sub": LAB, "preferred_username": "gpu-lab"}]}), "", [(LAB, "gpu-lab")]),
        (({"orgs": [{"sub": LAB}]}, {"orgs": [{"sub": LAB}]}), "", [(LAB, "")]),
        (({"orgs": [{"sub": LAB, "securityRestrictions": ["mfa"]}]},), "", []),
        (({"orgs": [{"sub": LAB, "pendingSSO": True}, {"sub": OTHER_LAB, "missingMFA": False}]},), "", [(OTHER_LAB, "")]),
        (({"preferred_username": ["x"], "orgs": "gpu-lab"},), "", []),
        (({"orgs": ["gpu-lab", None, 3, {"sub": 7, "preferred_username": "gpu-lab"}, {"preferred_username": "x"}]},), "", []),
    ],
)  # fmt: skip
def test_only_claims_in_the_form_of_hugging_face_count(sources, name, organizations):
    result = Visitor.from_claims(BEA, sources)
    assert (result.account.subject, result.account.name) == (BEA, name)
    assert [tuple(organization) for organization in result.organizations] == organizations
