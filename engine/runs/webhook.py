"""A person's webhook: a secret address that gets the end of their runs. No message contains it."""

import asyncio
import ipaddress
import logging
import queue
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr, field_serializer

from loratory.engine.accounts.lab import read_rules, read_settings
from loratory.engine.accounts.limits import is_lab
from loratory.engine.errors import EngineError
from loratory.engine.files import read_model, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.public_hosts import PrivateHostError, address_of
from loratory.engine.quantities import duration
from loratory.engine.runs.run import Run, RunState
from loratory.engine.runs.summary import RunSummary, summarize

WebhookKind = Literal["json", "slack", "discord"]
KINDS: tuple[WebhookKind, ...] = get_args(WebhookKind)
_LONGEST = 2000  # characters of an address
_DEADLINE_SECONDS = 10.0
_HOSTS: dict[str, WebhookKind] = {"hooks.slack.com": "slack", "discord.com": "discord", "discordapp.com": "discord"}


class WebhookError(EngineError):
    """A message could not be sent, or an address cannot be used; the text never holds the address."""


class Webhook(BaseModel, frozen=True, hide_input_in_errors=True):
    """Where the end of runs is sent, as a file that only its user may read keeps it."""

    url: SecretStr
    kind: WebhookKind

    @field_serializer("url", when_used="json")
    def _reveal(self, url: SecretStr) -> str:
        return url.get_secret_value()

    @property
    def host(self) -> str:
        """The part that may be shown."""
        return urlsplit(self.url.get_secret_value()).hostname or ""


class WebhookOutcome(BaseModel, frozen=True):
    """The outcome of the newest message."""

    at: float
    problem: str = ""  # empty: it was accepted


@dataclass(frozen=True)
class WebhookStore:
    """The webhook of one person, and the outcome of the newest message."""

    home: LoratoryHome
    owner: str

    def read(self) -> Webhook | None:
        """Return the webhook; None where there is none."""
        return read_model(self._file("address"), Webhook)

    def save(self, webhook: Webhook) -> None:
        """Replace the webhook; what cannot be written is a StorageError."""
        self._write("address", webhook)
        self._file("outcome").unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the webhook."""
        for name in ("address", "outcome"):
            self._file(name).unlink(missing_ok=True)

    def outcome(self) -> WebhookOutcome | None:
        """Return the outcome of the newest message; None if none was sent."""
        return read_model(self._file("outcome"), WebhookOutcome)

    def note(self, outcome: WebhookOutcome) -> None:
        """Save the outcome of the newest message; raises as `save` does."""
        self._write("outcome", outcome)

    def _write(self, name: str, value: BaseModel) -> None:
        write_atomically(self._file(name), value.model_dump_json(), makes_folder=True)

    def _file(self, name: str) -> Path:
        return self.home.server / "webhooks" / f"{self.owner}.{name}.json"


def parse_webhook(text: str, kind: str = "") -> Webhook:
    """Parse an address that a person typed.

    Args:
        text: https; http for this machine alone.
        kind: One of `KINDS`; any other is found out from the address.

    Raises:
        WebhookError: If it is not such an address. The message does not hold it.
    """
    url = text.strip()
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise _unusable("it is not an address") from None
    if not url or len(url) > _LONGEST or re.search(r"[^\x21-\x7e]", url) or not host:
        raise _unusable("it is not an address")
    if parts.username is not None or parts.fragment:
        raise _unusable("it has a user name or a fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_this_machine(host)):
        raise _unusable("it does not begin with https://")
    service = next((name for name in KINDS if name == kind), _HOSTS.get(host, "json"))
    return Webhook(url=SecretStr(url), kind=service)


def _unusable(why: str) -> WebhookError:
    return WebhookError(f"The webhook cannot be used: {why}.", "Copy the whole address from the service that gave it.")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def payload_of(kind: WebhookKind, text: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a message; names of runs are neither mentions nor markup.

    Slack: https://docs.slack.dev/messaging/formatting-message-text; Discord: https://discord.com/developers/docs/resources/webhook.
    """
    if kind == "slack":
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if kind == "discord":
        return {"content": text[:2000], "allowed_mentions": {"parse": []}}
    return {"text": text, **facts}


def send(webhook: Webhook, text: str, facts: dict[str, Any], *, allows_private: bool) -> None:
    """Send one message. Redirects are not followed; the address that was checked is the one that is connected to.

    Args:
        facts: For programs; generic JSON holds them.
        allows_private: Whether addresses of this machine and of private networks may be asked.

    Raises:
        WebhookError: If it is not accepted within ten seconds.
    """
    import httpx  # not before a message is sent: commands start without it

    url = httpx.URL(webhook.url.get_secret_value())
    address = resolve(webhook.host, url.port or (443 if url.scheme == "https" else 80), allows_private)
    request: dict[str, Any] = {
        "url": url.copy_with(host=address),
        "headers": {"Host": url.netloc.decode(), "User-Agent": "Loratory"},
        "json": payload_of(webhook.kind, text, facts),
        "extensions": {"sni_hostname": webhook.host},  # by which the certificate is checked as well
    }

    async def post() -> int:
        # A server that sends a byte now and then would bind the thread for hours: the deadline is for all of it.
        async with (
            asyncio.timeout(_DEADLINE_SECONDS),
            httpx.AsyncClient(trust_env=False, timeout=_DEADLINE_SECONDS) as client,
            client.stream("POST", **request) as response,
        ):
            return response.status_code

    try:
        status = asyncio.run(post())
    except (TimeoutError, OSError, httpx.HTTPError) as error:
        reason = (
            f"no answer within {_DEADLINE_SECONDS:g} s"
            if isinstance(error, TimeoutError | httpx.TimeoutException)
            else type(error).__name__
        )
        raise WebhookError(f"{webhook.host} did not answer ({reason}).", "Send a test from the page.") from None
    if not 200 <= status < 300:
        redirects = ", a redirect, which is not followed" if 300 <= status < 400 else ""
        fix = "Check the webhook there, and set it again."
        raise WebhookError(f"{webhook.host} answered {status}{redirects}.", fix)


def resolve(host: str, port: int, allows_private: bool) -> str:
    """Return an address of a host where all of them may be asked; else raise a WebhookError."""
    try:
        return address_of(host, port, allows_private=allows_private)
    except OSError:
        raise WebhookError(f"The host {host} is not known.", "Check the address, and the network.") from None
    except PrivateHostError as error:
        raise WebhookError(f"{error}, which this lab does not send to.", "Ask an admin to allow it.") from None


_MOST_WAITING = 500  # messages; a sweep that fails at once must not fill the memory
_log = logging.getLogger(__name__)


class Notifier:
    """Sends the end of runs, one after the other."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._waiting: queue.Queue[tuple[Run, RunState]] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def note_end(self, run: Run, state: RunState) -> None:
        """Report the end of a run, if its owner has a webhook; returns at once."""
        if WebhookStore(self._home, run.owner).read() is None:
            return
        try:
            self._waiting.put_nowait((run, state))
        except queue.Full:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            run, state = self._waiting.get()
            try:
                summary = summarize(run).model_copy(update={"state": state.state, "cause": state.cause})
                link = _link(self._home)
                deliver(self._home, run.owner, words_of(summary, link), facts_of(summary, link))
            except Exception as error:
                # Only the name of the error: its text may contain a secret.
                _log.error("The end of %s could not be sent: %s", run.id, type(error).__name__)


def deliver(home: LoratoryHome, owner: str, text: str, facts: dict[str, Any]) -> str:
    """Send a message to a person's webhook; return the error, or "".

    Raises:
        EngineError: If how it went cannot be written.
    """
    store, problem = WebhookStore(home, owner), ""
    webhook = store.read()
    if webhook is None:
        return "No webhook is set."
    try:
        send(webhook, text, facts, allows_private=allows_private_hosts(home))
    except WebhookError as error:
        problem = str(error)
    store.note(WebhookOutcome(at=time.time(), problem=problem))
    return problem


def allows_private_hosts(home: LoratoryHome) -> bool:
    """Return whether addresses of this machine and of private networks may be asked for the people of a home."""
    try:
        rules = read_rules(home)
    except EngineError:
        return False
    return rules is None or rules.limits.private_webhooks


def _link(home: LoratoryHome) -> str:
    """Return the address of the lab; empty where there is none."""
    return read_settings(home).public_url if is_lab(home) else ""


def words_of(run: RunSummary, link: str) -> str:
    """Return the end of a run for people: its name, how it ended, held-out loss, duration and where to look."""
    loss = ""
    if run.best_eval_loss is not None:
        base = f" (base model {run.base_eval_loss:.3f})" if run.base_eval_loss is not None else ""
        loss = f"Held-out loss {run.best_eval_loss:.3f}{base}."
    elif run.final_loss is not None:
        loss = f"Loss {run.final_loss:.3f}."
    cause = run.cause[:300] if run.state in ("failed", "interrupted") else ""
    end = "was interrupted" if run.state == "interrupted" else run.state
    took = "" if run.seconds is None else f"{duration(run.seconds)}."
    return " ".join(filter(None, (f"“{run.name[:200]}” {end}.", cause, loss, took, link)))


def facts_of(run: RunSummary, link: str) -> dict[str, Any]:
    """Return the end of a run for programs; losses in nats per trained token, durations in seconds."""
    return {
        "event": "run_ended", "run": run.id, "owner": run.owner, "name": run.name, "state": run.state,
        "reason": run.reason, "cause": run.cause[:300], "held_out_loss": run.best_eval_loss,
        "base_held_out_loss": run.base_eval_loss, "loss": run.final_loss, "seconds": run.seconds, "url": link,
    }  # fmt: skip
