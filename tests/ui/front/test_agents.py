"""Agents in a lab: a person makes a token on the account page, an agent uses it at `/mcp`, and it ends when it is revoked."""

import re

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import TextContent

from loratory.engine.accounts.access_tokens import UNUSED_SECONDS, AccessTokens
from loratory.engine.accounts.audit import AuditLog
from loratory.engine.accounts.lab import audit_log_path
from loratory.engine.errors import AccountError
from loratory.engine.runs.store import RunStore
from tests.supervision.fake_runs import config_for
from tests.ui.front.lab import PASSWORD, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        running.add("ann")
        running.add("bea")
        yield running


def make_token(lab, person: str, name: str, *scopes: str, password: str = PASSWORD) -> httpx2.Response:
    with lab.signed_in(person) as client:
        return client.post("/account/token", data={"name": name, "password": password, **dict.fromkeys(scopes, "1")})


def token_in(answer) -> str:
    return re.search(r"<code>([\w-]{43})</code>", answer.text)[1]


def call(lab, token: str, *calls: tuple[str, dict]) -> list[str]:
    """Return the answers of tools as text."""

    async def run():
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(headers=headers, verify=lab.trust, timeout=300) as http:
            transport = streamable_http_client(f"{lab.url}/mcp", http_client=http)
            async with Client(transport) as client:
                answers = [await client.call_tool(name, arguments) for name, arguments in calls]
                return [part.text for answer in answers if isinstance(part := answer.content[0], TextContent)]

    return anyio.run(run)


def post(lab, **headers: str) -> int:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    own = {"Accept": "application/json, text/event-stream", **headers}
    with httpx2.Client(verify=lab.trust) as client:
        return client.post(f"{lab.url}/mcp", json=body, headers=own).status_code


def test_a_token_acts_for_its_person_until_it_is_revoked(lab):
    mine, theirs = (RunStore(lab.home, name).create(config_for("steps=1")) for name in ("ann", "bea"))
    answer = make_token(lab, "ann", "my agent", "read")
    token = token_in(answer)

    answers = call(
        lab, token,
        ("list_runs", {}),
        ("run_status", {"run_id": theirs.id}),
        ("stop_run", {"run_id": mine.id}),
        ("start_run", {"settings": "quickstart-cpu"}),
        ("estimate", {"settings": "/etc/passwd"}),
    )  # fmt: skip

    assert mine.id in answers[0]
    assert theirs.id not in answers[0]
    assert "was not found" in answers[1]
    assert "This access is not for" in answers[2]
    assert "This access is not for" in answers[3]
    assert "no file, preset or run" in answers[4] or "preset or run" in answers[4]
    assert mine.folder.read_state().state == "queued"
    with lab.signed_in("ann") as client:
        page = client.get("/account").text
        assert "my agent" in page
        assert token not in page
        assert client.post("/account/token/revoke", data={"name": "my agent"}).status_code == 303
        assert "my agent" not in client.get("/account").text
    assert post(lab, Authorization=f"Bearer {token}") == 401


def test_a_token_to_run_stops_runs_and_the_log_says_so(lab):
    run = RunStore(lab.home, "ann").create(config_for("steps=1"))
    token = token_in(make_token(lab, "ann", "runner", "read", "run"))

    (answer,) = call(lab, token, ("stop_run", {"run_id": run.id}))

    assert run.id in answer
    assert run.folder.stop_request.exists()
    kinds = [(entry.kind, entry.subject) for entry in AuditLog(audit_log_path(lab.home)).newest(20)]
    assert ("run stopped", f"ann/{run.id}") in kinds
    assert ("token made", "ann") in kinds
    assert token not in audit_log_path(lab.home).read_text()
    assert token.encode() not in b"".join(file.read_bytes() for file in lab.home.root.glob("accounts.sqlite3*"))


def test_requests_without_a_valid_token_or_from_other_pages_are_refused(lab):
    token = token_in(make_token(lab, "bea", "agent", "read"))

    assert post(lab) == 401
    assert post(lab, Authorization="Bearer " + "A" * 43) == 401
    assert post(lab, Authorization=f"Basic {token}") == 401
    assert post(lab, Authorization=f"Bearer {token}", Host="evil.example") == 421
    assert post(lab, Authorization=f"Bearer {token}", Origin="https://evil.example") == 403
    with lab.signed_in("bea") as client:  # a session opens nothing here
        assert client.post("/mcp", json={}).status_code == 401
    with lab.browser(headers_only := None) as stranger:
        assert headers_only is None
        assert stranger.get("/mcp").status_code == 401


@pytest.mark.parametrize(
    ("fields", "status", "reason"),
    [
        ({"name": "", "read": "1"}, 400, "cannot be the name"),
        ({"name": "x" * 61, "read": "1"}, 400, "cannot be the name"),
        ({"name": "nothing"}, 400, "may do nothing"),
        ({"name": "taken", "read": "1"}, 400, "token of that name"),
        ({"name": "wrong", "read": "1", "password": "guess"}, 400, "current password is wrong"),
        ({"name": "everything", "admin": "1"}, 400, "may do nothing"),
    ],
)
def test_a_token_that_cannot_be_made_is_refused_with_the_reason(lab, fields, status, reason):
    if fields["name"] == "taken":
        make_token(lab, "ann", "taken", "read")
    with lab.signed_in("ann") as client:
        answer = client.post("/account/token", data={"password": PASSWORD, **fields})
    assert answer.status_code == status
    assert reason in answer.text
    with lab.browser() as stranger:
        assert stranger.post("/account/token", data=fields).headers["location"] == "/sign-in"


def test_tokens_end_with_the_account_the_password_and_disuse(database, accounts, make_person, clock):
    tokens = AccessTokens(database, clock)
    ann = make_person("ann")
    make_person("root", "admin")

    first = tokens.new(ann, "first", ["run", "read"])
    assert tokens.find(first) == (accounts.person("ann"), frozenset({"read", "run"}))
    accounts.disable("ann")
    assert tokens.find(first) is None
    accounts.enable("ann")
    assert tokens.find(first) is None, "what was disabled stays revoked"

    second = tokens.new(ann, "second", ["read"])
    accounts.reset("ann", by="root")
    assert tokens.find(second) is None

    third = tokens.new(ann, "third", ["read"])
    clock.now += UNUSED_SECONDS - 60
    assert tokens.find(third) is not None
    clock.now += UNUSED_SECONDS - 60
    assert tokens.find(third) is not None, "it was used in between"
    clock.now += UNUSED_SECONDS + 60
    assert tokens.find(third) is None
    for number in range(20):
        tokens.new(ann, f"token {number}", ["read"])
    with pytest.raises(AccountError, match="You have 20 tokens"):
        tokens.new(ann, "one more", ["read"])
