"""An endpoint: what it is asked, and what of its answers is used."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest

from loratory.engine import endpoint as module
from loratory.engine.endpoint import Endpoint
from loratory.engine.errors import ModelError
from tests.local_endpoint import GOOD, completion, send, serving

SECRET = "sk-this/is+the=secret-of-a-test"
GOOD_REPLY = (200, completion(GOOD))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(module, "_WAITS_SECONDS", (0.0, 0.0, None))


def settings_for(address):
    return {"endpoint": address, "model": "m", "answer_tokens": 100}


def complete(server, endpoint=None):
    return (endpoint or Endpoint(settings_for(server.url), SECRET, 5.0)).complete([], {})


def test_a_newer_model_gets_the_limit_under_its_newer_name():
    refusal = (400, {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens' instead."}})
    with serving(refusal, GOOD_REPLY) as server:
        complete(server)

    assert server.requests[1]["max_completion_tokens"] == 100
    assert "max_tokens" not in server.requests[1]
    assert "response_format" in server.requests[1]


def drip(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def flood(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(10_000):
        handler.wfile.write(b"x" * 65536)


def drop(handler):
    handler.close_connection = True
    handler.connection.close()


def break_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    drop(handler)


def redirect(handler):
    send(handler, 307, b"", Location="http://127.0.0.1:9/")


BAD = {
    "key": ((401, {"error": f"Incorrect API key {SECRET}"}), 1, "answered 401: .*(key).*--key-variable"),
    "missing": ((404, {"error": "no such model"}), 1, "answered 404: .*no such model.*name of the model"),
    "page": ((200, b"<!doctype html><title>Welcome</title>"), 1, "answered 200: a web page. Check the address"),
    "error page": ((502, b"<html>Bad gateway</html>"), 3, "answered 502: a web page"),
    "text": ((200, b"hello"), 1, "answered 200: hello"),
    "other JSON": ((200, {"choices": []}), 1, "answered 200"),
    "deep": ((200, b"[" * 200_000), 1, "answered 200"),
    "wrong usage": ((200, completion(GOOD) | {"usage": {"prompt_tokens": "many"}}), 1, "answered 200"),
    "busy": ((429, {"error": "slow down"}), 3, "answered 429: .*slow down"),
    "redirect": (redirect, 1, "answered 307"),
    "slow": (drip, 1, "did not answer within 0.5 s. Raise the timeout"),
    "silent": (lambda handler: time.sleep(3), 1, "did not answer within 0.5 s"),
    "flood": (flood, 1, "sends more than 4,194,304 bytes"),
    "dead": (drop, 3, "did not answer: "),
    "half": (break_off, 3, "did not answer: "),
    "refused": ((422, {"error": "too long"}), 2, "answered 422: .*too long"),
}  # fmt: skip


@pytest.mark.parametrize("manner", BAD)
def test_a_bad_endpoint_is_a_fact_and_a_fix_without_the_key(manner, caplog):
    reply, requests, message = BAD[manner]
    with serving(GOOD_REPLY, reply) as server:
        endpoint = Endpoint(settings_for(server.url), SECRET, 0.5)
        assert complete(server, endpoint) == (json.dumps(GOOD), 120, False)
        with pytest.raises(ModelError, match=message) as error:
            complete(server, endpoint)

    assert len(server.requests) == 1 + requests
    assert SECRET not in repr(error.value) + str(error.value) + caplog.text


def test_a_busy_endpoint_is_asked_again():
    with serving((503, {}), (429, {}), GOOD_REPLY) as server:
        complete(server)

    assert len(server.requests) == 3


def test_an_endpoint_that_never_answered_is_not_waited_for_and_one_that_did_is(monkeypatch):
    waits: list[object] = []
    here, sleep = threading.get_ident(), time.sleep
    monkeypatch.setattr(
        time, "sleep", lambda seconds: (waits.append if threading.get_ident() == here else sleep)(seconds)
    )
    with serving() as server:
        known, new = (Endpoint(settings_for(server.url), None, 5.0) for _ in range(2))
        known.complete([], {})
    with socket.socket() as holder:  # the port, which another test might take
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", urlsplit(server.url).port or 0))
        for endpoint in (new, known):
            with pytest.raises(ModelError, match="did not answer: ConnectError"):
                endpoint.complete([], {})
            waits.append("end")

    assert waits == ["end", 0.0, 0.0, "end"]


@pytest.mark.parametrize(
    "address",
    ["ftp://host/v1", "file:///etc/passwd", "host", "http://", "http://user:pass@host/v1", "http://host/v1?key=x", "http://a b",
     "http://host/v1#x", "http://host\n/v1", "http://hö.de", "gopher://x", ""],
)  # fmt: skip
def test_only_plain_addresses_of_http_are_used(address):
    with pytest.raises(ModelError, match="cannot be used") as error:
        Endpoint(settings_for(address), None, 1.0)
    assert "pass@" not in str(error.value)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_an_address_may_end_in_several_ways(suffix):
    with serving() as server:
        Endpoint(settings_for(server.url + suffix), None, 5.0).complete([], {})

    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [None]


@pytest.mark.parametrize("key", ["", f"{SECRET}\n{SECRET}", "schlüssel", f"{SECRET} {SECRET}"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(key):
    with pytest.raises(ModelError, match="has characters that no key has") as error:
        Endpoint(settings_for("http://localhost"), key, 1.0)
    assert SECRET not in str(error.value)
    assert "schlüssel" not in str(error.value)


def test_an_address_that_was_checked_is_the_one_that_is_connected_to():
    questions = []

    def resolve(host, port):
        questions.append((host, port))
        return "127.0.0.1"

    with serving() as server:
        port = server.url.rpartition(":")[2]
        settings = settings_for(f"http://models.example:{port}/v1")
        assert Endpoint(settings, None, 5.0, resolve).complete([], {})[0] == json.dumps(GOOD)
    assert questions == [("models.example", int(port))]
    assert server.hosts == [f"models.example:{port}"]
