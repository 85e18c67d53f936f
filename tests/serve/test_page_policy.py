"""What every answer of the page carries, what a request may hold, and what of a request is not believed."""

import gzip
import http.client
import json
import re
import socket
from base64 import b64encode
from hashlib import sha256
from urllib.parse import urlsplit

import pytest

from loratory.ui.backend.transfers import Transfers
from loratory.ui.policy import quick_front_end
from tests.browser.show_fake import page_of
from tests.fake_services import fake_services
from tests.real_tls import public_site
from tests.serve.running import send

JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
A_CLICKED_LINK = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
EVENT = b'{"fn_index": 0, "data": [], "session_hash": "x"}'


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    services = fake_services(tmp_path_factory.mktemp("home") / ".hidden")
    object.__setattr__(services, "transfers", Transfers(services.home, 1000, 500_000))
    return services


@pytest.fixture(scope="module")
def address(services):
    with page_of(services) as address:
        yield urlsplit(address).netloc


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/config", {}, 200),
        ("GET", "/gradio_api/info", {}, 200),
        ("GET", "/static/img/logo.svg", {}, 200),
        ("GET", "/nothing/here", {}, 404),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 403),
        ("GET", "/", {"Host": "evil.example"}, 403),
        ("OPTIONS", "/", {"Origin": "https://evil.example", "Access_Control_Request_Method": "POST"}, 403),
        ("POST", "/gradio_api/run/predict", JSON, 422),
    ],
)
def test_every_answer_reports_what_a_browser_may_do_with_it(address, method, path, headers, status):
    body = b"{}" if method == "POST" else None
    answer_status, _, answer_headers = send(address, method, path, body, **headers)

    assert answer_status == status
    assert answer_headers["x-content-type-options"] == "nosniff"
    assert answer_headers["x-frame-options"] == "SAMEORIGIN"
    assert answer_headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors" in answer_headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer_headers


def test_the_page_and_its_own_requests_are_answered(address):
    own = {"Origin": f"http://{address}", "Sec_Fetch_Site": "same-origin"}

    assert send(address, "GET", "/", **A_CLICKED_LINK)[0] == 200
    assert send(address, "GET", "/gradio_api/info", **own)[0] == 200
    # Gradio itself refuses what names no event of the page; only that the request arrived matters here.
    assert "another site" not in send(address, "POST", "/gradio_api/queue/join", EVENT, **JSON, **own)[1]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {**A_CLICKED_LINK, "Sec_Fetch_Dest": "iframe"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/info")])
def test_a_page_of_another_site_may_not_ask(address, headers, method, path):
    status, reply, _ = send(address, method, path, EVENT if method == "POST" else None, **JSON, **headers)

    assert status == 403
    assert "A page of another site may not ask it." in reply


@pytest.mark.parametrize("host", ["rebound.evil.example", "127.0.0.1.evil.example:80"])
@pytest.mark.parametrize("headers", [{}, A_CLICKED_LINK], ids=["script", "link"])
def test_a_name_that_was_pointed_at_this_computer_opens_nothing(address, host, headers):
    status, reply, _ = send(address, "GET", "/", Host=host, **headers)

    assert status == 403
    assert "127.0.0.1 or localhost only" in reply


def test_the_page_runs_its_own_scripts_and_no_others(address):
    _, html, headers = send(address, "GET", "/")

    scripts = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))["script-src"]
    inline = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", html, re.DOTALL)
    hashes = {f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in inline}
    assert len(inline) >= 4
    assert set(scripts.split()) == {"'self'", "'unsafe-eval'", *hashes}
    assert "http" not in headers["content-security-policy"]


def test_the_front_end_finds_the_description_of_the_page_unwatched(address):
    html = send(address, "GET", "/")[1]

    (script,) = re.findall(r"<script>([^<]*class Unwatched extends Array.*?)</script>", html, re.DOTALL)
    assert html.index("window.gradio_config = ") < html.index(script) < html.index("</head>")
    assert "gradio_config.components, gradio_config.dependencies" in script


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("header", ["X-Forwarded-Host", "X-Gradio-Server", "X-Forwarded-Proto", "Forwarded"])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info"])
def test_what_a_request_says_of_a_proxy_is_not_believed(address, path, header):
    value = {"X-Gradio-Server": "http://evil.example", "X-Forwarded-Proto": "https"}.get(header, "evil.example")

    _, plain, _ = send(address, "GET", path)
    _, html, _ = send(address, "GET", path, **{header: value})

    assert "evil.example" not in html
    assert re.findall(r'"root":"[^"]*"', html) == re.findall(r'"root":"[^"]*"', plain)


def test_document_and_answers_are_compressed_where_the_client_accepts_it(address):
    plain = send(address, "GET", "/")[1]
    connection = http.client.HTTPConnection(address, timeout=300)
    for path in ("/", "/config"):
        connection.request("GET", path, headers={"Accept-Encoding": "gzip, deflate"})
        response = connection.getresponse()
        packed = response.read()

        assert response.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in response.headers["Vary"]
        assert len(packed) == int(response.headers["Content-Length"]) < 150_000
        assert "frame-ancestors" in response.headers["Content-Security-Policy"]
        if path == "/":
            assert len(gzip.decompress(packed).decode()) == len(plain) > 500_000


def test_what_is_too_large_is_refused_before_it_is_read(address):
    """The bodies are announced and never sent."""
    for path, length, status, message in (
        ("/gradio_api/upload", 200_000, 413, "the page moves files of at most 1.0 kB"),
        ("/gradio_api/queue/join", 17_000_000, 413, "at most 16 MB"),
        ("/gradio_api/component_server", 17_000_000, 413, "at most 16 MB"),
    ):
        answer_status, reply, _ = send(address, "POST", path, None, Content_Length=str(length), **MULTIPART)

        assert answer_status == status
        assert message in reply


def test_a_request_of_unknown_length_is_refused(address):
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address}\r\nContent-Type: {MULTIPART['Content-Type']}\r\n"
    parts = urlsplit(f"//{address}")
    with socket.create_connection((parts.hostname, parts.port), 300) as connection:
        # At once: the answer does not wait for the body.
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\n--x--\r\n0\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection)
        response.begin()

        assert response.status == 411


def test_an_upload_arrives_below_the_home_and_no_further_one_where_there_is_no_room(address, services):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="rows.jsonl"\r\n\r\n{}\r\n--x--\r\n'
    status, reply, _ = send(address, "POST", "/gradio_api/upload", body, **MULTIPART)
    assert status == 200
    (path,) = json.loads(reply)
    assert path.startswith(str(services.home.transfers))

    (services.home.transfers / "large.zip").write_bytes(b"x" * 499_999)
    status, reply, _ = send(address, "POST", "/gradio_api/upload", body, **MULTIPART)
    assert status == 413
    assert "Delete datasets that you no longer need" in reply


@pytest.mark.parametrize(
    "path",
    ["deep_link?session_hash=x", "file=http://127.0.0.1:1/", "file=https://example.org/", "proxy=http://x", "runs"],
)
def test_routes_that_the_page_does_not_use_are_not_offered(address, path):
    assert send(address, "GET", f"/gradio_api/{path}")[0] == 404


def test_no_address_that_a_client_names_is_fetched(address, services):
    before = list(services.home.transfers.iterdir())
    events = json.loads(send(address, "GET", "/config")[1])["dependencies"]
    event = next(
        entry for entry in events if entry["targets"][0][1] == "input" and entry["inputs"] and not entry["queue"]
    )
    with public_site() as site:
        file = {"path": f"{site.url}/forged", "meta": {"_type": "gradio.FileData"}}
        body = {"data": [[file]] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "x"}
        status, text, _ = send(address, "POST", "/gradio_api/run/predict", json.dumps(body).encode(), **JSON)
        streamed, _, _ = send(address, "GET", f"/gradio_api/file/{site.url}/streamed")  # an old name of the route

    assert site.visits == []
    assert (status, streamed) == (500, 403)
    assert json.loads(text)["error"] == "That file is an address. Addresses are not fetched here; upload the file."
    assert list(services.home.transfers.iterdir()) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"[]", 422),
        (b'{"data": ["q", ""], "fn_name": "__init__", "component_id": 1, "session_hash": "x"}', 422),
        (b'{"data": [{"path": "/etc/passwd"}, ""], "fn_name": "query", "component_id": 1, "session_hash": "x"}', 422),
        (b'{"data": ["q", "", ""], "fn_name": "query", "component_id": 1, "session_hash": "x"}', 422),
        (b'{"data": ["q", ""], "fn_name": "query", "component_id": 1e9, "session_hash": "x"}', 404),
        (b'{"data": ["q", ""], "fn_name": "query", "component_id": -1, "session_hash": "x"}', 404),
    ],
)
def test_a_question_that_is_not_a_poll_of_the_page_is_refused(address, body, status):
    answer_status, text, _ = send(address, "POST", "/gradio_api/component_server", body, **JSON)

    assert answer_status == status, text


def test_a_component_that_is_not_a_poll_answers_nothing(address):
    components = json.loads(send(address, "GET", "/config")[1])["components"]
    kinds = {part["type"]: part["id"] for part in components}
    for number in kinds.values():
        question = {"data": ["", "seen"], "fn_name": "query", "component_id": number, "session_hash": "x"}
        status, text, _ = send(address, "POST", "/gradio_api/component_server", json.dumps(question).encode(), **JSON)
        is_poll = any(
            part["id"] == number and "live" in (part["props"].get("elem_classes") or []) for part in components
        )
        assert status == (200 if is_poll else 404), (number, text)


def test_the_script_that_finds_components_is_served_with_a_map(address):
    path, expected = quick_front_end()
    assert path, "this Gradio has no such function"

    status, script, headers = send(address, "GET", path)

    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/javascript")
    assert script.count("WeakMap") == 1
    assert script == expected


def test_scripts_of_a_component_that_is_not_in_sight_at_first_are_a_module(address, services):
    page = json.loads(send(address, "GET", "/config")[1])
    (sets,) = (part["props"] for part in page["components"] if part["props"].get("elem_id") == "sets")
    path = re.search(r"'(assets/loratory/[^']+)'", sets["js_on_load"])[1]

    status, module, headers = send(address, "GET", f"/{path}")

    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/javascript")
    assert module.startswith("export default (element, props, trigger, watch, server, upload) => {")
    assert 'class=\\"documents\\"' in module
    assert "VERBS.review" in module
    assert sets["html_template"] == ""
    assert len(sets["js_on_load"]) < 500


@pytest.mark.parametrize("name", ["nothing", "sets-nothing", "", "../../app.py", "..%2f..%2fapp", "sets.html", "sets-"])
def test_no_other_file_is_a_module(address, name):
    status, text, _ = send(address, "GET", f"/assets/loratory/{name}.js")

    assert status == 404 or "export default" not in text
