"""How people of a lab sign in at Hugging Face on the Train tab, over HTTP as their pages do it."""

from collections import Counter
from dataclasses import replace

import pytest

from loratory.engine.accounts.people import Logins
from loratory.engine.places.huggingface_jobs.account import HardwareList, logins_of
from loratory.engine.supervision.supervisor import Supervisor
from loratory.ui.serve import build_services
from tests.browser.real_server import contents_of
from tests.fake_services import fake_services
from tests.hub.server import TOKEN
from tests.page_client import PageClient, read_config
from tests.ui.front.lab import running_lab

WRONG = "hf_CanaryThatOpensNothing46"


@pytest.fixture
def logins():
    return Logins()


@pytest.fixture
def lab(hugging_face, tmp_path, logins, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_OfTheServer")

    def services(own, person):
        page_services = fake_services(own.root, home=own, owner=person.name)
        hardware = HardwareList(lambda: logins_of(own, logins)(person.name))
        return replace(page_services, person=person, hardware=hardware, logins=None if own.is_guest else logins)

    with running_lab(tmp_path / "lab", services, logins=logins) as running:
        running.add("ann")
        running.add("bea")
        running.add("gus", "guest")
        yield running


def test_a_token_is_its_persons_alone_and_forgotten_with_their_last_session(lab, logins, hugging_face):
    with lab.signed_in("ann") as ann, PageClient.open(ann, read_config(ann)) as page:
        page.press("jobs-use-token", "click")
        assert "not a Hugging Face token" in page.value("jobs-login-status")
        page.press("jobs-token", "submit", WRONG)
        refusal = page.value("jobs-login-status")
        assert "does not accept your token" in refusal
        assert WRONG not in refusal
        assert logins.token_of("ann") is None

        page.press("jobs-token", "submit", TOKEN)
        assert "Signed in at Hugging Face as ada" in page.value("jobs-login-status")
        assert page.value("jobs-token") == ""
        assert logins.token_of("ann") == TOKEN
        page.press("jobs-forget-token", "click")
        assert logins.token_of("ann") is None
        page.press("jobs-token", "submit", TOKEN)
        with lab.signed_in("ann") as phone:
            phone.post("/sign-out")
        assert logins.token_of("ann") == TOKEN, "another browser of hers is signed in"
        assert logins.token_of("bea") is None
        ann.post("/sign-out")
    assert logins.token_of("ann") is None
    assert Counter(token for step, token in hugging_face.asked_as if step != "other") == {WRONG: 1, TOKEN: 2}
    contents = contents_of(lab.home.root)
    assert contents
    assert not [path for path, content in contents.items() if TOKEN.encode() in content]


def test_a_guest_has_no_choice_of_the_place(lab):
    with lab.signed_in("gus") as gus:
        ids = [part["props"].get("elem_id") for part in read_config(gus)["components"]]
    assert "where" not in ids
    assert "jobs-token" not in ids


def test_a_page_asks_in_the_name_of_its_person_alone(lab, logins, tmp_path, hugging_face):
    home = lab.home.for_person("ann", "member")
    logins.put("bea", TOKEN, 4e9)
    services = build_services(home, "ann", (), Supervisor(lab.home), lab.accounts.person("ann"), logins=logins)
    with pytest.raises(Exception, match="you are not signed in there"):
        services.hardware.refresh()
    services.inspector.close()
    assert hugging_face.asked_as == []
