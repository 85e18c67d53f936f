"""Reports the end of runs to their owners' webhooks, in a separate thread."""

import logging
import queue
import threading
import time
from typing import Any, NamedTuple

from engine.accounts.limits import is_lab, read_rules
from engine.errors import EngineError
from engine.paths import LoratoryHome
from engine.quantities import duration
from engine.runs.run import Run, RunState, State
from engine.runs.summary import RunSummary, summarize
from engine.runs.webhook import WebhookError, WebhookOutcome, WebhookStore, send

ENDED: dict[State, str] = {
    "completed": "completed", "stopped": "stopped", "failed": "failed", "interrupted": "was interrupted",
}  # fmt: skip
_MOST_WAITING = 500  # messages; a sweep that fails at once must not fill the memory
_log = logging.getLogger(__name__)


class _EndedRun(NamedTuple):
    run: Run
    state: RunState


class Notifier:
    """Sends the end of runs, one after the other."""

    def __init__(self, home: LoratoryHome) -> None:
        self._home = home
        self._waiting: queue.Queue[_EndedRun] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None

    def note_end(self, run: Run, state: RunState) -> None:
        """Report the end of a run, if its owner has a webhook; returns at once."""
        if WebhookStore(self._home, run.owner).read() is None:
            return
        try:
            self._waiting.put_nowait(_EndedRun(run, state))
        except queue.Full:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            end = self._waiting.get()
            try:
                tell(self._home, end.run, end.state)
            except Exception as error:
                # Only the name of the error: its text may contain a secret.
                _log.error("The end of %s could not be sent: %s", end.run.id, type(error).__name__)


def tell(home: LoratoryHome, run: Run, state: RunState) -> None:
    """Report the end of a run, and save the outcome.

    Raises:
        EngineError: If the run cannot be read, or how it went cannot be written.
    """
    summary = summarize(run).model_copy(update={"state": state.state, "cause": state.cause})
    link = _link(home)
    deliver(home, run.owner, words_of(summary, link), facts_of(summary, link))


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
        send(webhook, text, facts, allows_private=_allows_private(home))
    except WebhookError as error:
        problem = str(error)
    store.note(WebhookOutcome(at=time.time(), problem=problem))
    return problem


def _allows_private(home: LoratoryHome) -> bool:
    try:
        rules = read_rules(home)
    except EngineError:
        return False
    return rules is None or rules.limits.private_webhooks


def _link(home: LoratoryHome) -> str:
    """Return the address of the lab; empty where there is none."""
    if not is_lab(home):
        return ""
    from engine.accounts.lab import read_settings  # not needed at home

    return read_settings(home).public_url


def words_of(run: RunSummary, link: str) -> str:
    """Return the end of a run for people: its name, how it ended, held-out loss, duration and where to look."""
    loss = ""
    if run.best_eval_loss is not None:
        base = f" (base model {run.base_eval_loss:.3f})" if run.base_eval_loss is not None else ""
        loss = f"Held-out loss {run.best_eval_loss:.3f}{base}."
    elif run.final_loss is not None:
        loss = f"Loss {run.final_loss:.3f}."
    cause = run.cause[:300] if run.state in ("failed", "interrupted") else ""
    duration_words = "" if run.seconds is None else f"{duration(run.seconds)}."
    return " ".join(
        filter(None, (f"“{run.name[:200]}” {ENDED.get(run.state, run.state)}.", cause, loss, duration_words, link))
    )


def facts_of(run: RunSummary, link: str) -> dict[str, Any]:
    """Return the end of a run for programs; losses in nats per trained token, durations in seconds."""
    return {
        "event": "run_ended", "run": run.id, "owner": run.owner, "name": run.name, "state": run.state,
        "reason": run.reason, "cause": run.cause[:300], "held_out_loss": run.best_eval_loss,
        "base_held_out_loss": run.base_eval_loss, "loss": run.final_loss, "seconds": run.seconds, "url": link,
    }  # fmt: skip
