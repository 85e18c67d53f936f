"""A person sees and ends the own sessions and changes the own password, over real TLS, without JavaScript."""

import pytest

from engine.accounts.audit import AuditLog
from engine.accounts.lab import audit_log_path, change_settings
from tests.ui.front.lab import PASSWORD, running_lab
from ui.front.account import browser_name

NEW = "another horse battery"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        running.add("ann")
        running.add("bea")
        yield running


def change(client, old=PASSWORD, new=NEW, again=NEW):
    return client.post("/account/password", data={"old": old, "new": new, "again": again})


def test_without_a_session_there_is_no_account(lab):
    with lab.browser() as nobody, lab.browser("A" * 43) as forged:
        for client in (nobody, forged):
            for path in ("/account", "/account/password", "/account/session"):
                for answer in (client.get(path), client.post(path, data={"session": "0" * 12})):
                    assert answer.status_code in (303, 405), path
                    assert answer.headers.get("location", "/sign-in") == "/sign-in"
                    assert "ann" not in answer.text


def test_a_person_sees_their_own_sessions_alone(lab):
    lab.sessions.begin(lab.accounts.person("ann"), "10.1.1.1", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0")
    lab.sessions.begin(lab.accounts.person("bea"), "10.2.2.2", "<b>bea's</b>")
    with lab.signed_in("ann") as ann, lab.signed_in("bea") as bea:
        seen, of_bea = ann.get("/account").text, bea.get("/account").text

    assert "Firefox on Linux" in seen
    assert "10.1.1.1 · last used" in seen
    assert "this session" in seen
    assert "10.2.2.2" not in seen
    assert "10.2.2.2" in of_bea
    assert "<b>bea's" not in of_bea


def test_one_session_is_ended_and_another_persons_is_not(lab):
    ann, bea = lab.accounts.person("ann"), lab.accounts.person("bea")
    lost = lab.sessions.begin(ann, "10.3.3.3", "")
    lost_name = next(one.session for one in lab.sessions.list_for(ann) if one.address == "10.3.3.3")
    other = lab.sessions.begin(bea, "10.4.4.4", "")
    other_name = next(one.session for one in lab.sessions.list_for(bea) if one.address == "10.4.4.4")
    with lab.signed_in("ann") as client:
        for name in (lost_name, other_name, "", "%", "' OR 1=1 --"):
            client.post("/account/session", data={"session": name})
        assert client.get("/account").status_code == 200, "this one is still there"

    assert lab.sessions.find(lost) is None
    assert lab.sessions.find(other) is not None


def test_signing_out_everywhere_ends_all_sessions_of_this_person(lab):
    tokens = [lab.sessions.begin(lab.accounts.person("ann"), "", "") for _ in range(3)]
    other = lab.sessions.begin(lab.accounts.person("bea"), "", "")
    with lab.browser(tokens[0]) as client:
        assert client.post("/sign-out", data={"everywhere": "1"}).headers["location"] == "/sign-in"

    assert [lab.sessions.find(token) for token in tokens] == [None] * 3
    assert lab.sessions.find(other) is not None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"old": "wrong " + PASSWORD}, "current password is wrong"),
        ({"again": "not the same words"}, "differ"),
        ({"new": "short", "again": "short"}, "characters"),
    ],
)
def test_a_password_that_cannot_be_changed_stays(lab, values, reason):
    token = lab.sessions.begin(lab.accounts.person("bea"), "", "")
    with lab.browser(token) as client:
        answer = change(client, **values)
    assert answer.status_code == 400
    assert reason in answer.text
    assert lab.sessions.find(token) is not None
    assert lab.accounts.check_password("bea", PASSWORD) is not None


def test_a_changed_password_ends_all_other_sessions_and_is_logged(lab):
    lab.add("cid")
    elsewhere = lab.sessions.begin(lab.accounts.person("cid"), "", "")
    with lab.signed_in("cid") as client:
        answer = change(client)
        assert answer.headers["location"] == "/account?changed=1"
        assert "Password changed" in client.get(answer.headers["location"]).text, "signed in with another session"

    assert lab.sessions.find(elsewhere) is None
    assert lab.accounts.check_password("cid", PASSWORD) is None
    assert lab.accounts.check_password("cid", NEW) is not None
    log = audit_log_path(lab.home)
    assert ("cid", "password set") in [(entry.person, entry.kind) for entry in AuditLog(log).entries()]
    assert NEW not in log.read_text()


def test_guesses_of_a_password_in_a_stolen_session_are_throttled(lab):
    lab.add("dan")
    with lab.signed_in("dan") as client:
        answers = [change(client, old=f"guess number {guess}").text for guess in range(12)]

    assert "too many attempts" in answers[-1]


def test_an_announcement_is_on_the_sign_in_page_and_on_every_page(lab):
    change_settings(lab.home, announcement="Driver update <b>at noon</b>")
    try:
        with lab.browser() as nobody, lab.signed_in("bea") as bea:
            assert "Driver update &lt;b&gt;at noon&lt;/b&gt;" in nobody.get("/sign-in").text
            assert "Driver update" in bea.get("/config").text
    finally:
        change_settings(lab.home, announcement="")


def test_a_password_in_the_field_of_the_name_is_not_logged(lab):
    with lab.browser() as client:
        for name in (PASSWORD, "Bea"):
            assert client.post("/sign-in", data={"name": name, "password": "wrong " + PASSWORD}).status_code == 403

    log = audit_log_path(lab.home)
    assert [one.subject for one in AuditLog(log).newest(2, kind="sign-in failed")] == ["bea", "unknown name"]
    assert PASSWORD not in log.read_text()


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36", "Chrome on Windows"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/140.0 Safari/537.36 Edg/140.0", "Edge on Windows"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.0 Safari/605.1.15", "Safari on macOS"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Version/18.0 Mobile/15E148 Safari/604.1", "Safari on iPhone"),
        ("", "Unknown browser"),
        ("x" * 100, "x" * 40),
    ],
)  # fmt: skip
def test_browsers_are_named_as_people_know_them(description, name):
    assert browser_name(description) == name


FORM = "application/x-www-form-urlencoded"


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("path", ["/sign-in", "/join"])
@pytest.mark.parametrize(
    ("body", "kind", "statuses"),
    [
        (b"name=ann&password=" + b"x" * 9_000, FORM, (413,)),
        (b"name=%00&password=%ff%fe&code=%00", FORM, (400, 403)),
        (b"\xff\xfe name=ann", FORM, (400, 403)),
        (b"&".join(b"field%d=1" % number for number in range(50)), FORM, (400, 403)),
        (b'{"name": "ann"}', "application/json", (400, 403)),
        (b'--x\r\nContent-Disposition: form-data; name="name"; filename="a"\r\n\r\nann\r\n--x--', "multipart/form-data; boundary=x", (400, 403)),
        (b"", FORM, (400, 403)),
    ],
    ids=["large", "odd characters", "not UTF-8", "many fields", "JSON", "a file", "empty"],
)  # fmt: skip
def test_what_is_not_one_of_the_forms_signs_no_one_in(tmp_path, path, body, kind, statuses):
    with running_lab(tmp_path) as lab, lab.browser() as browser:
        lab.add("ann")
        answer = browser.post(path, content=body, headers={"Content-Type": kind})

    assert answer.status_code in statuses
    assert "set-cookie" not in answer.headers
    assert "Traceback" not in answer.text
