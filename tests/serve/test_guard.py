"""Programs on this computer are answered; pages of other sites are not."""

import asyncio
import json
import socket
from urllib.parse import urlsplit

import pytest

from loratory.engine.accounts.listener import bound_socket
from loratory.engine.serve.model import ServedModel
from tests.serve.running import TARGET, ScriptedSession, listening, send

BODY = json.dumps({"model": "my-run", "messages": [{"role": "user", "content": "Hi"}]})
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def address():
    with listening(ServedModel(ScriptedSession(), TARGET, "my-run")) as url:
        yield urlsplit(url).netloc


def post(address: str, **headers: str):
    return send(address, "POST", "/v1/chat/completions", BODY, **headers)


def test_a_program_is_answered(address):
    assert post(address, **JSON)[0] == 200
    assert post(address, Host="localhost:9", **JSON)[0] == 200
    assert post(address, **{"Content-Type": "application/json; charset=utf-8"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "rebound.evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": ""},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models")])
def test_a_page_of_another_site_is_not(address, headers, method, path):
    status, body, answer_headers = send(address, method, path, BODY, **{**JSON, **headers})

    assert status == 403
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert not [name for name in answer_headers if name.startswith("access-control")]


def test_a_form_cannot_ask(address):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert post(address, **{"Content-Type": kind})[0] == 415


def test_a_preflight_is_answered_without_a_permission(address):
    status, _, headers = send(
        address,
        "OPTIONS",
        "/v1/chat/completions",
        Origin="https://evil.example",
        **{"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"},
    )

    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", None, 404),
        ("POST", "/v1/completions", BODY, 404),
        ("GET", "/v1/chat/completions", None, 405),
        ("POST", "/v1/chat/completions", "{", 400),
        ("POST", "/v1/chat/completions", "[]", 400),
        ("POST", "/v1/chat/completions", "[" * 100_000, 400),
        ("POST", "/v1/chat/completions", " " * 8_000_001, 413),
    ],
)
def test_every_mistake_has_openais_form(address, method, path, body, status):
    answer_status, content, _ = send(address, method, path, body, **JSON)

    assert answer_status == status
    assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}


def test_health_reports_what_the_model_does(address):
    assert json.loads(send(address, "GET", "/health", None)[1]) == {"status": "ready"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_end_of_an_answer_does_not_wait_for_the_other_side(host):
    """Else each answer of two packets takes 40 ms longer: the second waits until the first is acknowledged."""

    async def delays() -> bool:
        accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def note(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            accepted.set_result(not connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = bound_socket(host, 0)
        async with await asyncio.start_server(note, sock=bound):
            _, writer = await asyncio.open_connection(host, bound.getsockname()[1])
            writer.close()
            return await accepted

    assert not asyncio.run(delays())
