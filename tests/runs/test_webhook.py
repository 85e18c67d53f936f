"""The end of a run, sent to a person's webhook: what is sent, where it may go, and that the address stays a secret."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr

from loratory.engine.runs.summary import RunSummary
from loratory.engine.runs.webhook import (
    Webhook,
    WebhookError,
    WebhookStore,
    deliver,
    parse_webhook,
    payload_of,
    send,
    words_of,
)
from tests.supervision.fake_runs import config_for
from tests.waiting import PATIENCE_SECONDS

SECRET = "T0pS3cret"
RUN = RunSummary(
    id="20260101-000000-abcd", owner="ann", name="<b>@everyone</b>", state="completed", best_eval_loss=1.92,
    base_eval_loss=2.31, started=0.0, ended=720.0,
)  # fmt: skip


class Receiver(ThreadingHTTPServer):
    """A service on loopback that keeps what it gets and answers with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 204
        self.got: list[tuple[str, dict]] = []
        self.has_got = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/{SECRET}"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.server.has_got.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver(monkeypatch):
    monkeypatch.setattr("loratory.engine.runs.webhook._DEADLINE_SECONDS", PATIENCE_SECONDS)
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def webhooks(home) -> WebhookStore:
    return WebhookStore(home, "ann")


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (f"https://hooks.slack.com/services/{SECRET}", "slack"),
        (f"https://discord.com/api/webhooks/1/{SECRET}", "discord"),
        (f"https://ci.example/{SECRET}", "json"),
        (f"http://localhost:8080/{SECRET}", "json"),
    ],
)
def test_the_service_is_known_by_its_address(url, kind):
    assert parse_webhook(url).kind == kind
    assert parse_webhook(url, "discord").kind == "discord"
    assert SECRET not in repr(parse_webhook(url))


@pytest.mark.parametrize(
    "text",
    [
        "", SECRET, f"http://example.com/{SECRET}", f"ftp://example.com/{SECRET}", f"https://me:{SECRET}@example.com/",
        f"https://example.com/{SECRET}#x", f"https://example.com/{SECRET}\r\nHost: evil", f"https://[{SECRET}/",
        f"https://example.com:port/{SECRET}", "https://example.com/" + SECRET * 400, f"http://127.0.0.1.evil.example/{SECRET}",
    ],
)  # fmt: skip
def test_what_is_not_a_safe_address_is_refused_without_being_repeated(text):
    with pytest.raises(WebhookError) as error_info:
        parse_webhook(text)

    assert SECRET not in str(error_info.value)


def test_names_of_runs_mention_no_one():
    text = words_of(RUN, "https://lab.example")

    assert text == "“<b>@everyone</b>” completed. Held-out loss 1.920 (base model 2.310). 12 min. https://lab.example"
    assert payload_of("slack", text, {})["text"].startswith("“&lt;b&gt;")
    assert payload_of("discord", text, {})["allowed_mentions"] == {"parse": []}


def test_a_message_arrives_and_the_address_is_only_in_a_file_of_its_user(receiver, home, webhooks):
    webhooks.save(parse_webhook(receiver.url))

    assert deliver(home, "ann", "Hello", {"event": "test"}) == ""

    assert receiver.got == [(f"/hook/{SECRET}", {"text": "Hello", "event": "test"})]
    holders = [path for path in home.root.rglob("*") if path.is_file() and SECRET in path.read_text()]
    assert [path.stat().st_mode & 0o077 for path in holders] == [0]
    webhooks.forget()
    assert webhooks.read() is None


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_refusal_is_kept_without_the_address_and_no_redirect_is_followed(receiver, home, webhooks, status):
    receiver.status = status
    webhooks.save(parse_webhook(receiver.url))

    problem = deliver(home, "ann", "Hello", {})

    assert str(status) in problem
    assert webhooks.outcome().problem == problem
    assert SECRET not in problem
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "[::ffff:10.0.0.1]"]
)
def test_a_lab_sends_to_no_private_address_unless_its_admin_allows_it(host):
    webhook = Webhook(url=SecretStr(f"https://{host}/{SECRET}"), kind="json")

    with pytest.raises(WebhookError, match="private network") as error_info:
        send(webhook, "Hello", {}, allows_private=False)

    assert SECRET not in str(error_info.value)


def test_a_server_that_never_finishes_is_left(monkeypatch, home, webhooks):
    monkeypatch.setattr("loratory.engine.runs.webhook._DEADLINE_SECONDS", 0.3)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # listens and does not answer
        webhooks.save(parse_webhook(f"http://127.0.0.1:{silent.server_port}/{SECRET}"))

        assert "did not answer" in deliver(home, "ann", "Hello", {})


@pytest.mark.parametrize(("name", "state"), [("steps=3 pace=0.01", "completed"), ("steps=9 fail@2", "failed")])
def test_the_end_of_a_run_is_sent_by_its_supervisor(receiver, store, webhooks, start_supervisor, name, state):
    webhooks.save(parse_webhook(receiver.url))
    start_supervisor()
    run = store.create(config_for(name))

    assert receiver.has_got.wait(PATIENCE_SECONDS)

    message = receiver.got[0][1]
    assert (message["run"], message["state"]) == (run.id, state)
    assert state in message["text"]
    assert SECRET not in "".join(path.read_text() for path in run.folder.path.rglob("*.json*"))
