"""Nothing of a lab answers people who are not in it, nor one person with another's, over real TLS."""

import http.client
import re
import socket
import threading
from functools import partial
from urllib.parse import urlsplit

import gradio as gr
import pytest
from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route

from loratory.ui.front.gate import COOKIE, REQUESTED_COOKIE
from tests.ui.front.lab import PASSWORD, PATIENCE_SECONDS, running_lab
from tests.ui.front.space.stand_in import DEMO_WORDS, space_at

PLAIN = ("/sign-in", "/sign-out", "/join")
OF_A_PROVIDER = ("/sign-in/with", "/account/unlink", "/oidc/callback")  # refused where a lab has none
# Routes of Gradio that a page needs. All others are not offered, also those that a new Gradio brings.
OFFERED = {
    "GET /", "HEAD /", "GET /config", "GET /config/", "GET /theme.css", "GET /gradio_api/theme.css", "GET /favicon.ico",
    "GET /manifest.json", "GET /robots.txt", "GET /static/x", "GET /assets/x", "GET /svelte/x",
    "GET /gradio_api/startup-events", "GET /gradio_api/upload_progress", "GET /gradio_api/queue/data", "GET /gradio_api/heartbeat/x",
    "POST /gradio_api/queue/join", "POST /gradio_api/queue/join/", "POST /gradio_api/run/predict/", "POST /gradio_api/run/predict", "POST /gradio_api/upload", "POST /gradio_api/cancel",
    "POST /gradio_api/component_server", "POST /gradio_api/component_server/", "POST /gradio_api/reset", "POST /gradio_api/reset/",
}  # fmt: skip


@pytest.fixture(scope="module", params=["lab", "space"])
def lab(tmp_path_factory, request):
    """One with passwords, and that of a Space, whose provider is asked by no test here."""
    space = partial(space_at, issuer="https://127.0.0.1:1") if request.param == "space" else None
    with running_lab(tmp_path_factory.mktemp(request.param), space_at=space) as running:
        running.add("root", "admin")
        running.add("ann")
        running.add("bea")
        yield running


# What concerns a page and not its gate is the same in a Space.
of_a_page = pytest.mark.parametrize("lab", ["lab"], indirect=True)


@pytest.fixture(scope="module")
def ann(lab):
    with lab.signed_in("ann") as client:
        assert client.get("/").status_code == 200
        yield client


@pytest.fixture(scope="module")
def bea(lab):
    with lab.signed_in("bea") as client:
        assert client.get("/").status_code == 200
        yield client


def routes_of(routes: list[BaseRoute], prefix: str = "") -> set[str]:
    """Every method and path that the page's app answers, with x for what varies."""
    matches: set[str] = set()
    for route in routes:
        if isinstance(route, Mount):
            matches |= routes_of(list(route.routes), prefix + route.path)
        elif hasattr(route, "original_router"):  # FastAPI's, of a router that is included
            matches |= routes_of(route.original_router.routes, prefix)
        elif isinstance(route, Route):
            path = prefix + re.sub(r"\{[^}]*\}", "x", route.path)
            matches |= {f"{method} {path}" for method in route.methods or {"GET"}}
            matches |= {f"{method} {path}" for method in ("GET", "POST")}
    return matches


@pytest.fixture(scope="module")
def every_route():
    """Those of Gradio before a page of the lab loses what the gate does not offer."""
    with gr.Blocks() as blocks:
        gr.HTML()
    app = gr.mount_gradio_app(FastAPI(), blocks, path="/")
    routes = routes_of(app.router.routes)
    assert len(routes) > 60, "the app's routes are found"
    assert "POST /gradio_api/queue/join" in routes
    own = {f"GET {path}" for path in PLAIN}
    return sorted({*routes, *own, *(f"{method} {path}" for path in OF_A_PROVIDER for method in ("GET", "POST"))})


def is_plain(lab, path):
    """Whether a plain page for people without a session answers a path; those of providers have tests of their own."""
    return path in PLAIN or (lab.has_demo and path in OF_A_PROVIDER)


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("cookie", [None, "", "x", "A" * 43])
def test_every_route_refuses_a_request_without_a_session(lab, every_route, cookie):
    with lab.browser(cookie) as visitor:
        for method, path in (route.split(" ", 1) for route in every_route):
            if is_plain(lab, path):
                continue
            answer = visitor.request(method, path, headers={"Accept": "text/html"})
            asks = answer.status_code == 303 and answer.headers["location"] == "/sign-in"
            is_demo = lab.has_demo and path == "/" and method in ("GET", "HEAD")
            assert asks or (is_demo and answer.status_code == 200) or answer.status_code in (401, 403), (
                method,
                path,
                answer.status_code,
            )
            assert "gradio" not in answer.text.lower(), (method, path)


def test_what_a_person_is_offered_is_a_list_that_was_decided(lab, ann, every_route):
    routes = set()
    for method, path in (route.split(" ", 1) for route in every_route):
        if is_plain(lab, path) or path.endswith(("heartbeat/x", "queue/data")):
            continue
        answer = ann.request(method, path)
        if answer.status_code != 404 or answer.text not in ("Not found", ""):
            routes.add(f"{method} {path}")

    assert routes <= OFFERED, "decide whether a new route is safe to offer"


@of_a_page
def test_a_page_has_no_route_that_is_not_offered(lab, ann, every_route):
    paths = {path.split(" ", 1)[1] for path in routes_of(lab.pages._pages["ann"].app.router.routes)}
    offers = {path.split(" ", 1)[1].replace("predict", "x") for path in OFFERED}

    assert paths - {"/gradio_api/file=x"} == offers & {path.split(" ", 1)[1] for path in every_route}


@of_a_page
def test_an_address_is_the_page_of_a_person_and_survives_signing_in(lab, ann):
    html = {"Accept": "text/html"}
    for path, base in (("/train", "./"), ("/runs/bea/20261130-1", "../../")):
        page = ann.get(path, headers=html)
        assert page.status_code == 200
        assert f'<base href="{base}"' in page.text
    assert ann.post("/train", headers=html).status_code == ann.get("/nowhere", headers=html).status_code == 404

    with lab.browser() as browser:
        for address, goes_to in (
            ("/runs/bea/20261130-1", "/runs/bea/20261130-1"),
            ("/data/a%20b", "/data/a%20b"),
            ("/", "/"),
        ):
            assert browser.get(address, headers=html).headers["location"] == "/sign-in"
            signed_in = browser.post("/sign-in", data={"name": "ann", "password": PASSWORD})
            assert signed_in.headers["location"] == goes_to
            browser.cookies.delete(COOKIE)
        for path in ("//evil.example", "https://evil.example/runs/x", "/account", "/runs/%0d%0aX: y"):
            browser.cookies.set(REQUESTED_COOKIE, path, domain=urlsplit(lab.url).hostname)
            location = browser.post("/sign-in", data={"name": "ann", "password": PASSWORD}).headers["location"]
            assert location == "/" or location.startswith("/runs/%0D%0A")
            browser.cookies.clear()


@pytest.mark.parametrize("name", ["evil.example", "localhost", "127.0.0.1", "localhost:1", ""])
def test_another_name_of_the_server_is_refused(lab, ann, name):
    assert ann.get("/config", headers={"Host": name}).status_code == 421
    assert ann.get("/sign-in", headers={"Host": name}).status_code == 421


@pytest.mark.exhaustive(quick=2)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "https://localhost:1", ""])
def test_pages_of_other_sites_are_refused_and_read_nothing(lab, every_route, ann, origin):
    for method, path in (route.split(" ", 1) for route in every_route):
        answer = ann.request(method, path, headers={"Origin": origin, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 403, (method, path)
        assert not [header for header in answer.headers if header.startswith("access-control")]


def test_a_form_of_another_site_changes_nothing(lab, ann):
    for site, mode in (("cross-site", "navigate"), ("same-site", "navigate"), ("none", "navigate")):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": "document"}
        assert ann.post("/sign-out", headers=headers).status_code == 403
        assert ann.post("/gradio_api/queue/join", headers=headers).status_code == 403
    assert ann.get("/config").status_code == 200


def test_a_request_that_names_no_page_changes_nothing(lab):
    with lab.browser(lab.sessions.begin(lab.accounts.person("ann"), "", "")) as plain:
        del plain.headers["Origin"], plain.headers["Sec-Fetch-Site"]
        assert plain.post("/gradio_api/queue/join", json={}).status_code == 403
        assert plain.post("/sign-in", data={"name": "ann", "password": PASSWORD}).status_code == 403


def test_a_link_on_another_site_opens_the_page_and_a_frame_does_not(lab, ann):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    del ann.headers["Origin"]
    try:
        assert ann.get("/", headers={**headers, "Sec-Fetch-Dest": "document"}).status_code == 200
        frame = ann.get("/", headers={**headers, "Sec-Fetch-Dest": "iframe"})
        assert frame.status_code == (200 if lab.has_demo else 403)
        assert (DEMO_WORDS in frame.text) == lab.has_demo
    finally:
        ann.headers["Origin"] = str(ann.base_url).rstrip("/")


@pytest.mark.parametrize("path", ["/", "/config", "/account", "/sign-in", "/gradio_api/info", "/theme.css", "/x"])
def test_every_answer_limits_what_a_browser_does_with_it(lab, ann, path):
    with lab.browser() as visitor:
        # A Space shows its demo at the root, which another site may frame.
        for client in (ann,) if path == "/" and lab.has_demo else (ann, visitor):
            headers = client.get(path).headers
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'self'" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "same-origin"
            assert headers["strict-transport-security"].startswith("max-age=")
            assert headers["x-frame-options"] == "DENY"


def join(client, session, fn_index=0, data=()):
    body = {"data": list(data), "fn_index": fn_index, "session_hash": session, "trigger_id": None, "event_data": None}
    return client.post("/gradio_api/queue/join", json=body)


def listen(client, session, seconds=PATIENCE_SECONDS):
    """Return the lines of a session's stream, until it ends or nothing comes."""
    lines = []
    try:
        with client.stream("GET", f"/gradio_api/queue/data?session_hash={session}", timeout=seconds) as stream:
            for line in stream.iter_lines():
                lines.append(line)
                if "process_completed" in line or "close_stream" in line:
                    break
    except Exception as error:
        lines.append(type(error).__name__)
    return "\n".join(lines)


@of_a_page
def test_the_session_of_another_gives_nothing_and_its_stream_still_arrives(lab, ann, bea):
    config = ann.get("/config").json()
    load = next(
        event["id"]
        for event in config["dependencies"]
        if [None, "load"] in event["targets"] or event["targets"][0][1] == "load"
    )
    event = join(ann, "ofann", load, [None] * 40).json()["event_id"]

    stolen = listen(bea, "ofann", 2.0)
    bea.post("/gradio_api/cancel", json={"session_hash": "ofann", "fn_index": load, "event_id": event})
    bea.post("/gradio_api/reset", json={"event_id": event})
    own_stream = listen(ann, "ofann")

    assert event not in stolen
    assert "process_completed" not in stolen
    assert event in own_stream
    assert "process_completed" in own_stream


@of_a_page
def test_an_upload_belongs_to_who_sent_it(lab, ann, bea):
    answer = ann.post("/gradio_api/upload?upload_id=first", files={"files": ("rows.jsonl", b'{"text": "of ann"}\n')})
    assert answer.status_code == 200
    (path,) = answer.json()

    assert ann.get(f"/gradio_api/file={path}").text == '{"text": "of ann"}\n'
    assert "/transfers/ann/" in path
    refusal = bea.get(f"/gradio_api/file={path}")
    assert (refusal.status_code, refusal.text) == (404, "Not found")
    assert bea.get("/gradio_api/upload_progress?upload_id=first").status_code == 404
    assert bea.post("/gradio_api/upload?upload_id=first", files={"files": ("a", b"a")}).status_code == 404


@of_a_page
@pytest.mark.parametrize(
    "path",
    [
        "{home}/accounts.sqlite3", "{home}/audit.jsonl", "/etc/passwd", "/proc/self/environ", "{own}/../bea/x",
        "{own}/link", "https://example.com/", "~/.ssh/id_rsa", "{home}/runs", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd",
        "{own}/%00", "{own}/..%2fbea%2fsecret", "{home}/transfers/bea/secret",
    ],
)  # fmt: skip
def test_no_file_but_a_persons_own_is_given(lab, ann, bea, path):
    own, other = lab.home.for_person("ann").transfers, lab.home.for_person("bea").transfers
    (other / "secret").write_text("of bea")
    if not (own / "link").is_symlink():
        (own / "link").symlink_to(other / "secret")

    answer = ann.get("/gradio_api/file=" + path.format(home=lab.home.root, own=own))

    assert answer.status_code in (403, 404)
    assert "of bea" not in answer.text
    assert "root:" not in answer.text


@of_a_page
def test_forwarding_headers_of_a_client_are_ignored(lab, ann):
    forgery = {
        "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "host=evil.example", "X-Gradio-Server": "https://evil.example",
    }  # fmt: skip
    assert ann.get("/config", headers=forgery).json()["root"] == lab.url
    with lab.browser() as browser:
        browser.post("/sign-in", data={"name": "ann", "password": PASSWORD}, headers=forgery)
    log = (lab.home.root / "audit.jsonl").read_text()
    assert "1.2.3.4" not in log
    assert "127.0.0.1" in log


def test_a_session_that_was_signed_out_cannot_be_replayed(lab):
    token = lab.sessions.begin(lab.accounts.person("ann"), "", "")
    with lab.browser(token) as browser:
        assert browser.get("/config").status_code == 200
        left = browser.post("/sign-out")
        assert (left.status_code, left.headers["location"]) == (303, "/sign-in")
        assert '"cookies"' in left.headers["clear-site-data"]
        cookie = left.headers["set-cookie"]
        assert f'{COOKIE}=""' in cookie
        assert "Secure" in cookie
    with lab.browser(token) as replay:
        assert replay.get("/config").status_code == 401


def test_two_cookies_of_one_name_open_nothing_that_one_would_not(lab):
    token = lab.sessions.begin(lab.accounts.person("ann"), "", "")
    with lab.browser() as browser:
        answer = browser.get("/config", headers={"Cookie": f"{COOKIE}={token}; {COOKIE}=forged"})
        assert answer.status_code in (200, 401)
        assert browser.get("/config", headers={"Cookie": f"loratory={token}"}).status_code == 401


def open_stream(lab, token):
    """Open a stream that continues for as long as the session does."""
    address = urlsplit(lab.url)
    connection = http.client.HTTPSConnection(
        address.hostname, address.port, context=lab.trust, timeout=PATIENCE_SECONDS
    )
    headers = {"Cookie": f"{COOKIE}={token}", "Origin": lab.url, "Sec-Fetch-Site": "same-origin"}
    connection.request("GET", "/gradio_api/heartbeat/streaming", headers=headers)
    return connection, connection.getresponse()


@of_a_page
def test_the_open_stream_of_a_disabled_person_ends_soon(lab):
    lab.add("cid")
    token = lab.sessions.begin(lab.accounts.person("cid"), "", "")
    connection, stream = open_stream(lab, token)
    assert stream.status == 200
    end = threading.Event()

    def read() -> None:
        try:
            while stream.read1():
                pass
        except (OSError, http.client.HTTPException):
            pass
        end.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert not end.wait(0.5)
    lab.accounts.disable("cid")

    assert end.wait(PATIENCE_SECONDS)  # it is looked at every two seconds
    connection.close()
    with lab.browser(token) as browser:
        assert browser.get("/config").status_code == 401


@of_a_page
def test_a_changed_role_gets_another_page(lab):
    lab.add("dan")
    token = lab.sessions.begin(lab.accounts.person("dan"), "", "")
    with lab.browser(token) as browser:
        browser.get("/config")
        first = lab.pages._pages["dan"]
        lab.accounts.set_role("dan", "guest")
        assert browser.get("/config").status_code == 200
        assert lab.pages._pages["dan"] is not first


def test_plain_http_gets_no_answer(lab):
    address = urlsplit(lab.url)
    with socket.create_connection((address.hostname, address.port), timeout=300) as plain:
        plain.sendall(f"GET /sign-in HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        assert b"Loratory" not in plain.recv(4096)
