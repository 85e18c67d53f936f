"""An admin's rule makes members of those to whom all of it applies."""

import pytest

from loratory.engine.accounts.identities import Identity
from tests.ui.front.oidc.rounds import go, identities, person_in, refusal_of

ADMITTED = {"email": "ivy@example.edu", "email_verified": True, "groups": ["gpu-lab"], "preferred_username": "Ivy.Lee"}


def test_a_rule_makes_members_of_those_to_whom_all_of_it_applies(open_lab, institute):
    institute.user = "of-ivy"
    institute.userinfo |= ADMITTED
    with open_lab.browser() as browser:
        assert go(open_lab, institute, browser).headers["location"] == "/"
        assert person_in(browser) == "ivy-lee"
    assert open_lab.accounts.person("ivy-lee").role == "member"
    assert "email" in institute.authorizations[-1]["scope"].split()
    institute.userinfo.clear()
    with open_lab.browser() as browser:
        go(open_lab, institute, browser)
        assert person_in(browser) == "ivy-lee", "known from now on, without the rule"


@pytest.mark.exhaustive(quick=5)
@pytest.mark.parametrize("way", ["claims", "userinfo"])
@pytest.mark.parametrize(
    "change",
    [
        {"email_verified": False}, {"email_verified": None}, {"email_verified": "true"}, {"email_verified": 1},
        {"email": "eve@evil.example"}, {"email": "eve@sub.example.edu"}, {"email": "eve@example.edu.evil.example"},
        {"email": "example.edu@evil.example"}, {"email": ["ivy@example.edu"]}, {"email": None},
        {"groups": ["other"]}, {"groups": "gpu-lab"}, {"groups": None}, {"groups": [["gpu-lab"]]}, {"groups": ["GPU-Lab"]},
    ],
)  # fmt: skip
def test_a_rule_lets_in_no_one_else(open_lab, institute, way, change):
    institute.user = "of-eve"
    getattr(institute, way).update(ADMITTED | change)
    with open_lab.browser() as browser:
        assert refusal_of(open_lab, browser, go(open_lab, institute, browser))
    assert not identities(open_lab).was_linked(Identity(institute.issuer, "of-eve"))


def test_an_address_is_not_verified_by_another_source(open_lab, institute):
    institute.user = "of-kim"
    institute.claims |= {"email": "kim@example.edu", "groups": ["gpu-lab"]}
    institute.userinfo |= {"email": "kim@evil.example", "email_verified": True}
    with open_lab.browser() as browser:
        assert refusal_of(open_lab, browser, go(open_lab, institute, browser))


def test_what_is_reported_about_another_person_lets_no_one_in(open_lab, institute):
    institute.user = "of-liz"
    institute.userinfo |= {**ADMITTED, "sub": "of-ivy"}
    with open_lab.browser() as browser:
        assert refusal_of(open_lab, browser, go(open_lab, institute, browser))


def test_the_name_of_an_admin_gives_a_stranger_another_one(open_lab, institute):
    institute.user = "of-mallory"
    institute.userinfo |= {**ADMITTED, "preferred_username": "root"}
    with open_lab.browser() as browser:
        go(open_lab, institute, browser)
        assert person_in(browser) == "root-2"
    assert open_lab.accounts.person("root-2").role == "member"


def test_a_person_who_was_removed_does_not_come_back_by_the_rule(open_lab, institute):
    institute.user = "of-ned"
    institute.userinfo |= {**ADMITTED, "preferred_username": "ned"}
    with open_lab.browser() as browser:
        go(open_lab, institute, browser)
        assert person_in(browser) == "ned"
    open_lab.accounts.remove("ned")
    with open_lab.browser() as browser:
        assert refusal_of(open_lab, browser, go(open_lab, institute, browser))
    assert {person.name for person in open_lab.accounts.people()}.isdisjoint({"ned", "ned-2"})
