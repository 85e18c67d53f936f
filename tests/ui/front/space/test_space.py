"""In a Space, people sign in with Hugging Face, strangers see the demo, and tokens stay in memory."""

from dataclasses import replace

import pytest
from starlette.responses import JSONResponse

from loratory.engine.accounts.accounts import open_database
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.database import DATABASE_FILE
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.accounts.sessions import Sessions
from loratory.engine.chat.zero_gpu import ZeroGpu
from loratory.engine.errors import DeviceError, PushError
from loratory.engine.space.mirror import Unsaved
from loratory.ui.front.gate import COOKIE
from loratory.ui.front.space import open_space
from tests.browser.real_server import contents_of
from tests.ui.front.lab import PASSWORD, fake_services_of, running_lab
from tests.ui.front.oidc.rounds import NAVIGATION, come_back, go, log_of, person_in, refusal_of, start, visit
from tests.ui.front.space.stand_in import CREATOR, DEMO_WORDS, UNSAVED, environment_at, space_at
from tests.waiting import wait_until

CANARY = "hf_oauth_canary_9b1"
TOKEN = {"access_token": CANARY, "expires_in": 28_800, "scope": "openid profile jobs"}
FRAME = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}


def sign_in(lab, institute, browser, subject, user_name, *organizations):
    institute.user = subject
    organization_claims = [{"sub": f"org-{name}", "preferred_username": name} for name in organizations]
    institute.userinfo |= {"preferred_username": user_name, "orgs": organization_claims}
    return go(lab, institute, browser)


def names_of(lab):
    return {person.name: person.role for person in lab.accounts.people()}


def test_strangers_see_the_demo_at_the_root_and_nothing_else(lab):
    with lab.browser() as stranger:
        answer = stranger.get("/", headers={"Accept": "text/html"})
        assert (answer.status_code, DEMO_WORDS in answer.text) == (200, True)
        assert stranger.head("/").status_code == 200
        assert stranger.post("/demo/ask").text == "An answer"
        for path in ("/config", "/gradio_api/info", "/join", "/account/password"):
            assert stranger.get(path).status_code == 401, path
        assert stranger.post("/", json={}).status_code == 401
        assert stranger.post("/account/unlink").headers["location"] == "/sign-in"
        assert stranger.get("/oidc/callback").status_code == 400
        sign_in_page = stranger.get("/sign-in").text
    assert sign_in_page.count("<button") == 1
    assert "Sign in with Hugging Face" in sign_in_page
    assert "assword" not in sign_in_page
    assert "https://huggingface.co/spaces/Ann/loratory?duplicate=true" in sign_in_page


def test_the_creator_signs_in_as_admin_and_may_change_rights_at_once(lab, institute):
    with lab.browser() as browser:
        answer = sign_in(lab, institute, browser, CREATOR, "Ann")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert person_in(browser) == "ann"
        assert names_of(lab)["ann"] == "admin"
        assert browser.get("/config").status_code == 200
        assert DEMO_WORDS not in browser.get("/").text
        assert DEMO_WORDS in browser.get("/demo").text
        assert browser.get("/sign-in").headers["location"] == "/"
        account = browser.get("/account").text
        token = browser.cookies[COOKIE]
    assert "Password" not in account
    assert "Confirm with Hugging Face" in account
    assert lab.sessions.is_confirmed(lab.sessions.find(token))


def test_confirming_needs_the_same_account_and_no_second_sign_in_there(lab, institute):
    with lab.browser() as browser:
        sign_in(lab, institute, browser, CREATOR, "Ann")
        request_count = len(institute.authorizations)
        assert go(lab, institute, browser, "confirm").headers["location"] == "/account?confirmed=1"
        assert "prompt" not in institute.authorizations[request_count]
        institute.user = "another"
        assert go(lab, institute, browser, "confirm").status_code == 403


def test_who_is_listed_by_name_or_organization_is_a_member(lab, institute):
    with lab.browser() as bea, lab.browser() as cid:
        assert sign_in(lab, institute, bea, "sub-bea", "Bea").headers["location"] == "/"
        assert sign_in(lab, institute, cid, "sub-cid", "cid", "gpu-lab").headers["location"] == "/"
        assert (person_in(bea), person_in(cid)) == ("bea", "cid")
    assert {name: names_of(lab)[name] for name in ("bea", "cid")} == {"bea": "member", "cid": "member"}


def test_who_is_not_admitted_sees_the_demo_with_the_reason_and_gets_no_account(lab, institute):
    before = names_of(lab)
    institute.token |= {name: value for name, value in TOKEN.items() if name != "access_token"}
    with lab.browser() as browser:
        answer = sign_in(lab, institute, browser, "sub-eve", "<b>eve</b>", "elsewhere")
        assert refusal_of(lab, browser, answer)
        assert DEMO_WORDS in answer.text
        assert "Ask Ann to add you, or duplicate" in answer.text
    assert names_of(lab) == before
    assert lab.logins.token_of("eve") is None
    assert log_of(lab)[-1][:2] == ("", "sign-in failed")


def test_a_name_taken_over_by_another_account_opens_nothing(lab, institute):
    with lab.browser() as bea, lab.browser() as thief, lab.browser() as new_name:
        sign_in(lab, institute, bea, "sub-bea", "bea")
        assert refusal_of(lab, thief, sign_in(lab, institute, thief, "sub-thief", "bea"))
        assert sign_in(lab, institute, new_name, "sub-bea", "beatrice").headers["location"] == "/"
        assert person_in(new_name) == "bea"


def test_a_changed_subject_is_another_person(lab, institute):
    with lab.browser() as browser:
        values = visit(institute, start(browser))
        institute.user, institute.claims["sub"] = "sub-eve", CREATOR
        institute.userinfo["preferred_username"] = "Ann"
        answer = come_back(browser, values)  # the subject of the token is not that of the user info
        assert answer.status_code == 403
        assert person_in(browser) is None


def test_a_token_is_kept_in_memory_until_the_last_session_ends(lab, institute):
    institute.token |= TOKEN
    with lab.browser() as first, lab.browser() as second:
        # The stand-in knows its own tokens alone, so the provider's answer comes without being asked.
        institute.answers["/userinfo"] = lambda: JSONResponse({"sub": "sub-bea", "preferred_username": "bea"})
        sign_in(lab, institute, first, "sub-bea", "bea")
        sign_in(lab, institute, second, "sub-bea", "bea")
        assert lab.logins.token_of("bea") == CANARY
        pages = [first.get(path).text for path in ("/", "/config", "/account", "/sign-in")]
        first.post("/sign-out")
        assert lab.logins.token_of("bea") == CANARY
        second.post("/sign-out", data={"everywhere": "1"})
    assert lab.logins.token_of("bea") is None
    assert CANARY not in "".join(pages)
    assert not [path for path, content in contents_of(lab.home.root).items() if CANARY.encode() in content]


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        ({}, True), ({"scope": "openid profile"}, False), ({"scope": None}, True), ({"scope": ["jobs"]}, True),
        ({"expires_in": None}, False), ({"expires_in": -5}, False), ({"expires_in": "28800"}, False),
        ({"expires_in": 1e30}, False), ({"access_token": None}, False), ({"access_token": ["x"]}, False),
    ],
)  # fmt: skip
def test_a_token_without_use_or_end_is_not_kept(lab, institute, changes, is_kept):
    lab.logins.forget("bea")
    institute.token |= {**TOKEN, **changes}
    institute.answers["/userinfo"] = lambda: JSONResponse({"sub": "sub-bea", "preferred_username": "bea"})
    institute.claims["preferred_username"] = "bea"
    with lab.browser() as browser:
        assert sign_in(lab, institute, browser, "sub-bea", "bea").headers["location"] == "/"
    assert (lab.logins.token_of("bea") is not None) == is_kept


def test_a_disabled_person_loses_token_and_way_in(lab, institute):
    with lab.browser() as browser:
        sign_in(lab, institute, browser, "sub-dan", "dan", "gpu-lab")
        lab.logins.put("dan", "x", 9e12)
        lab.accounts.disable("dan")
        assert DEMO_WORDS in browser.get("/").text
        answer = sign_in(lab, institute, browser, "sub-dan", "dan", "gpu-lab")
        assert refusal_of(lab, browser, answer)
        assert "disabled your account" in answer.text
    wait_until(lambda: lab.logins.token_of("dan") is None)
    lab.accounts.enable("dan")


def test_passwords_and_invitations_open_nothing(lab):
    invitation = lab.accounts.invite("admin", by="")
    lab.add("pat")
    form = {"code": invitation.token, "name": "mal", "password": PASSWORD, "again": PASSWORD}
    with lab.browser() as browser:
        assert browser.post("/join", data=form).status_code == 401
        assert browser.post("/sign-in", data={"name": "pat", "password": PASSWORD}).status_code == 405
        for purpose in ("join", "link"):
            assert refusal_of(lab, browser, browser.post("/sign-in/with", data={"for": purpose, **form}))
    assert "mal" not in names_of(lab)


def test_a_frame_of_the_spaces_page_shows_the_demo_even_with_a_session(lab, institute):
    with lab.browser() as browser:
        sign_in(lab, institute, browser, "sub-bea", "bea")
        del browser.headers["Origin"]
        for headers in (FRAME, {**FRAME, "Sec-Fetch-Site": "same-origin"}, {**FRAME, "Sec-Fetch-Dest": "embed"}):
            answer = browser.get("/", headers=headers)
            is_frame = headers["Sec-Fetch-Dest"] == "iframe"
            assert answer.status_code == (200 if is_frame else 403)
            assert "gradio" not in answer.text.lower()
            assert answer.headers["content-security-policy"].endswith("frame-ancestors https://huggingface.co")
            assert "x-frame-options" not in answer.headers
        for path in ("/config", "/account", "/sign-in", "/theme.css", "/demo", "/oidc/callback"):
            assert browser.get(path, headers=FRAME).status_code == 403, path


def test_the_platform_may_ask_under_another_name_whether_the_server_answers(lab):
    with lab.browser() as probe:
        for name in ("10.20.3.4:7860", "evil.example", ""):
            answer = probe.get("/", headers={"Host": name})
            assert (answer.status_code, DEMO_WORDS in answer.text) == (200, False)
            assert answer.text == f"This lab is reached as {lab.url}."
            for path in ("/config", "/sign-in", "/demo", "/oidc/callback"):
                assert probe.get(path, headers={"Host": name}).status_code == 421
            assert probe.post("/", headers={"Host": name}).status_code == 421


def test_what_a_client_claims_about_its_way_here_is_not_believed(lab, institute):
    forgery = {
        "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-For": "1.2.3.4, 10.9.8.7",
        "Space-Id": "evil/space", "SPACE_CREATOR_USER_ID": "sub-eve", "X-Space-Host": "evil.example", "Referer": "https://evil.example/",
    }  # fmt: skip
    with lab.browser(**forgery) as browser:
        address = start(browser)
        assert "evil" not in address
        answer = sign_in(lab, institute, browser, "sub-eve", "eve")
        assert answer.status_code == 403
        assert browser.get("/", headers={"Host": lab.url.removeprefix("https://")}).status_code == 200
    (*_, last) = AuditLog(audit_log_path(lab.home)).entries()
    assert last.address == "10.9.8.7", "what our proxy saw comes last"
    with lab.browser() as browser:
        twice = [("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", "10.9.8.6"), *browser.headers.items()]
        browser.post("/sign-in/with", data={"for": "sign in"}, headers=twice)
        institute.user = "sub-eve"
        values = visit(institute, start(browser))
        browser.get("/oidc/callback", params={**values, "iss": "https://evil.example"}, headers=twice)
    (*_, last) = AuditLog(audit_log_path(lab.home)).entries()
    assert last.address == "10.9.8.6"
    assert "1.2.3.4" not in (lab.home.root / "audit.jsonl").read_text()


def test_each_person_reads_what_they_would_lose(lab, institute):
    UNSAVED["bea"] = "2 checkpoints are not mirrored yet."
    with lab.browser() as bea, lab.browser() as ann:
        sign_in(lab, institute, bea, "sub-bea", "bea")
        sign_in(lab, institute, ann, CREATOR, "Ann")
        bea.get("/"), ann.get("/")
        answers = {name: lab.pages._pages[name].services.notice() for name in ("bea", "ann")}
    assert "2 checkpoints are not mirrored yet." in answers["bea"]
    assert "mirrored" not in answers["ann"]
    assert "LORATORY_ADMITTED" in lab.pages._pages["ann"].services.lab.who_gets_in


def test_a_restart_signs_everyone_out_and_asks_again_who_is_admitted(tmp_path, module_institute, institute, throttle):
    with (
        running_lab(
            tmp_path,
            fake_services_of,
            space_at=lambda origin: space_at(origin, module_institute.issuer, module_institute.trust),
        ) as first,
        first.browser() as browser,
    ):
        sign_in(first, institute, browser, "sub-bea", "bea")
        token = browser.cookies[COOKIE]
    for name in ("tls.pem", "tls.key"):
        (tmp_path / name).unlink()

    with running_lab(
        tmp_path,
        fake_services_of,
        space_at=lambda origin: space_at(
            origin, module_institute.issuer, module_institute.trust, admitted_names=frozenset()
        ),
    ) as second:
        with second.browser(token) as browser:
            assert browser.get("/config").status_code == 401
            assert refusal_of(second, browser, sign_in(second, institute, browser, "sub-bea", "bea"))
        assert [person.name for person in second.accounts.people()] == ["bea"], "with their runs"
        database = open_database(second.home)
        assert Sessions(database).list_for(second.accounts.person("bea")) == []
        database.close()


class Bucket:
    """A mirror that notes what is asked of it."""

    def __init__(self, home, refuses=False):
        self.home, self.refuses, self.requests = home, refuses, []

    def restore(self):
        self.requests.append("restore")
        assert not (self.home.root / DATABASE_FILE).exists(), "before anything is opened"
        if self.refuses:
            raise PushError("The bucket is another Space's.", "Name another.")

    def start(self):
        self.requests.append("start")

    def stop(self, deadline_seconds):
        self.requests.append(f"stop {deadline_seconds:g}")
        return True

    def unsaved(self, owner):
        return Unsaved(runs=(f"first of {owner}",))


def open_space_app(monkeypatch, home, mirror):
    monkeypatch.setattr("loratory.ui.front.space.mirror_of", lambda *_: mirror)
    return open_space(environment_at("https://ann-loratory.hf.space", "https://huggingface.co"), home)


def test_a_space_is_restored_first_and_mirrored_to_its_end(monkeypatch, home):
    mirror = Bucket(home)
    with open_space_app(monkeypatch, home, mirror) as space:
        assert mirror.requests == ["restore", "start"]
        assert space.unsaved_words("ann") == "A restart of this Space would lose all of “first of ann”."
    assert mirror.requests == ["restore", "start", "stop 7"]


def test_a_space_whose_runs_cannot_be_brought_back_does_not_start_on_an_empty_disk(monkeypatch, home):
    mirror = Bucket(home, refuses=True)
    with pytest.raises(PushError, match="another Space"), open_space_app(monkeypatch, home, mirror):
        raise AssertionError("it was opened")
    assert mirror.requests == ["restore"]


def test_without_a_bucket_people_see_that_nothing_is_kept(monkeypatch, home):
    with open_space_app(monkeypatch, home, None) as space:
        assert "are lost when this Space sleeps or restarts" in space.unsaved_words("ann")


@pytest.mark.parametrize("fails", [False, True])
def test_a_space_on_zero_gpu_reports_before_it_is_served_and_chats_there(monkeypatch, home, fails):
    reports = []

    def report(self, _):
        reports.append(dict(self.variables))
        if fails:
            raise DeviceError("Not told.", "Restart.")

    monkeypatch.setattr(ZeroGpu, "report", report)
    monkeypatch.setattr("loratory.ui.front.space.mirror_of", lambda *_: None)
    plain = environment_at("https://ann-loratory.hf.space", "https://huggingface.co")
    with open_space(replace(plain, zero_gpu={"SPACES_ZERO_GPU": "true"}), home) as space:
        assert reports == [{"SPACES_ZERO_GPU": "true"}]
        assert space.zero_gpu.variables == reports[0]
    with open_space(plain, home) as space:
        assert (space.zero_gpu, len(reports)) == (None, 1)


def test_a_cross_site_link_opens_the_sign_in_page(lab):
    with lab.browser() as browser:
        del browser.headers["Origin"]
        assert browser.get("/sign-in", headers=NAVIGATION).status_code == 200
