"""The page answers itself and programs on this computer; pages of other sites neither read nor change anything."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from tests.browser.real_server import real_server

pytestmark = pytest.mark.e2e

A_CLICKED_LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with real_server(tmp_path_factory.mktemp("guarded")) as server:
        yield urlsplit(server.url).netloc


def send(address: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=300)
    body = json.dumps({"fn_index": 0, "data": [], "session_hash": "x"}) if method == "POST" else None
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    return response.status, response.read().decode()


def test_the_page_and_its_own_questions_are_answered(address):
    own = {"Origin": f"http://{address}", "Sec-Fetch-Site": "same-origin"}

    assert send(address, "GET", "/", {})[0] == 200
    assert send(address, "GET", "/", A_CLICKED_LINK)[0] == 200
    assert send(address, "GET", "/gradio_api/info", own)[0] == 200
    # Gradio itself refuses what names no event of the page; only that the question arrived matters here.
    assert "another site" not in send(address, "POST", "/gradio_api/queue/join", own)[1]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {**A_CLICKED_LINK, "Sec-Fetch-Dest": "iframe"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/info")])
def test_a_page_of_another_site_may_not_ask(address, headers, method, path):
    status, reply = send(address, method, path, headers)

    assert status == 403
    assert "A page of another site may not ask it." in reply


@pytest.mark.parametrize("host", ["rebound.evil.example", "127.0.0.1.evil.example:80"])
@pytest.mark.parametrize("headers", [{}, A_CLICKED_LINK], ids=["script", "link"])
def test_a_name_that_was_pointed_at_this_computer_opens_nothing(address, host, headers):
    status, reply = send(address, "GET", "/", {"Host": host, **headers})

    assert status == 403
    assert "127.0.0.1 or localhost only" in reply
