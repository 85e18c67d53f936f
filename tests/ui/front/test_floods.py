"""Floods of a lab by strangers and by its own people: everyone else is answered meanwhile, over real TLS."""

import asyncio
import http.client
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from loratory.engine.accounts.passwords import Passwords
from loratory.ui.front import connections
from loratory.ui.front.gate import COOKIE
from tests.ui.front.lab import PASSWORD, PATIENCE_SECONDS, running_lab
from tests.waiting import wait_until

SIGN_IN = "/sign-in"


@pytest.fixture
def lab(tmp_path):
    with running_lab(tmp_path, behind_proxy=True) as running:  # which names addresses; tests have one alone
        running.add("ann")
        running.add("bea")
        yield running


@pytest.fixture
def bea(lab):
    with lab.signed_in("bea") as client:
        assert client.get("/config").status_code == 200
        yield client


def connect(lab, request):
    """Return a connection on which so much of a request was sent."""
    address = urlsplit(lab.url)
    plain = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_SECONDS)
    connection = lab.trust.wrap_socket(plain, server_hostname=address.hostname)
    connection.sendall(request.replace(b"HOST", address.netloc.encode()))
    return connection


def has_ended(connection):
    try:
        return connection.recv(1) == b""
    except OSError:
        return True


def is_closed(connection):
    """Whether the server has closed it, after all that it has sent."""
    try:
        while connection.recv(1000):
            pass
    except TimeoutError:
        return False
    return True


UNFINISHED = [
    b"GET / HTTP/1.1\r\nHost: HOST\r\nX-More: ",
    b"",
    b"POST /sign-in HTTP/1.1\r\nHost: HOST\r\nOrigin: https://HOST\r\nSec-Fetch-Site: same-origin\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\nname=",
]


def test_a_request_that_does_not_arrive_is_given_up(lab, bea, monkeypatch):
    for request_start in UNFINISHED:
        with monkeypatch.context() as patch:  # not for what is asked below: a busy machine may need longer
            patch.setattr(connections, "_TIMEOUT_SECONDS", 0.5)
            with connect(lab, request_start) as connection:
                assert has_ended(connection), request_start
    assert bea.get("/config").status_code == 200


def test_a_body_that_arrives_steadily_may_take_longer(lab, monkeypatch):
    """The clock of the server is put forward, as a busy machine may take seconds between two parts."""
    received, later = [], [0.0]
    take, clock = connections.TimedConnection.data_received, asyncio.BaseEventLoop.time

    def note(connection, data):
        take(connection, data)
        received.append(data)

    monkeypatch.setattr(connections.TimedConnection, "data_received", note)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: clock(loop) + later[0])
    monkeypatch.setattr(connections, "_SLOWEST_BYTES_PER_SECOND", 1)
    with connect(lab, UNFINISHED[-1]) as slow:
        for _ in range(10):
            count = len(received)
            slow.sendall(b"aaaaa")
            wait_until(lambda count=count: len(received) > count)
            later[0] += connections._TIMEOUT_SECONDS / 4
        slow.sendall(b"&password=" + b"x" * 35)
        assert slow.recv(12) == b"HTTP/1.1 403"


def test_one_more_connection_of_a_network_replaces_the_oldest_that_waits(lab, bea, monkeypatch):
    monkeypatch.setattr(connections, "_MOST_OF_A_NETWORK", 6)
    token = lab.sessions.begin(lab.accounts.person("ann"), "", "")
    stream = connect(
        lab, f"GET /gradio_api/heartbeat/x HTTP/1.1\r\nHost: HOST\r\nCookie: {COOKIE}={token}\r\n\r\n".encode()
    )
    assert stream.recv(12) == b"HTTP/1.1 200"
    waiting = [connect(lab, UNFINISHED[0]) for _ in range(12)]

    with lab.signed_in("bea") as other:
        assert other.get("/config").status_code == 200
    assert has_ended(waiting[0])
    stream.settimeout(0.2)
    assert not is_closed(stream), "an answer is under way"
    for connection in (stream, *waiting):
        connection.close()


def guess(lab, number, name="ann", address="10.0.0.1"):
    with lab.browser(**{"X-Forwarded-For": address}) as browser:
        return browser.post(SIGN_IN, data={"name": name, "password": f"guess number {number}"}).status_code


def test_sessions_are_found_while_passwords_wait_for_their_turn(lab, bea, monkeypatch):
    may_end, checks = threading.Event(), []

    def wait(_passwords, password, _stored_hash):
        checks.append(password)
        assert may_end.wait(PATIENCE_SECONDS)
        return False

    monkeypatch.setattr(Passwords, "_matches", wait)
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(guess, lab, number, f"name-{number}", f"10.0.{number}.1") for number in range(24)]
        # Turned away are six; two are checked, and 16 wait.
        wait_until(lambda: len(checks) == 2 and sum(answer.done() for answer in answers) == 6)
        assert bea.get("/config").status_code == 200
        assert len(checks) == 2
        may_end.set()

    assert Counter(answer.result() for answer in answers) == {503: 6, 403: 18}


def test_of_forty_guesses_at_once_ten_are_checked(lab, within_a_moment):
    with ThreadPoolExecutor(40) as pool:
        answers = Counter(pool.map(lambda number: guess(lab, number), range(40)))

    assert answers[403] + answers[503] == 10
    assert answers[429] == 30


def test_wrong_passwords_lock_no_one_out(lab, monkeypatch, within_a_moment):
    monkeypatch.setattr(Passwords, "_matches", lambda _, password, _stored_hash: password == PASSWORD)
    with lab.browser(**{"X-Forwarded-For": "10.0.0.1"}) as known, lab.browser(**{"X-Forwarded-For": "10.0.0.2"}) as new:
        right = {"name": "ann", "password": PASSWORD}
        assert known.post(SIGN_IN, data=right).status_code == 303
        assert [guess(lab, number) for number in range(11)] == [403] * 10 + [429]

        answer = new.post(SIGN_IN, data=right)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) <= 60
        assert known.post(SIGN_IN, data=right).status_code == 303, "in a browser that is known, at the same address"


MANY = b"[" + b",".join([b'{"a":1}'] * 60_000) + b"]"


def test_json_of_many_small_values_is_refused_before_it_is_parsed(lab, bea):
    body = b'{"data":' + MANY + b',"session_hash":"x"}'
    for path in ("queue/join", "run/predict", "component_server", "component_server/", "cancel"):
        answer = bea.post(f"/gradio_api/{path}", content=body, headers={"Content-Type": "application/json"})

        assert answer.status_code == 413, path
        assert answer.text == "A request may hold at most 50,000 values. Shorten what was typed or opened."
    assert bea.get("/config").status_code == 200


def test_a_client_that_leaves_within_a_large_body_holds_no_other_one(lab, bea):
    address = urlsplit(lab.url)
    headers = {
        "Content-Type": "application/json", "Content-Length": "1000000", "Origin": lab.url,
        "Sec-Fetch-Site": "same-origin", "Cookie": f"{COOKIE}={bea.cookies[COOKIE]}",
    }  # fmt: skip
    leaving = http.client.HTTPSConnection(address.hostname, address.port, context=lab.trust)
    leaving.request("POST", "/gradio_api/queue/join", b"x" * 1000, headers)
    leaving.close()

    answer = bea.post("/gradio_api/queue/join", content=MANY, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
