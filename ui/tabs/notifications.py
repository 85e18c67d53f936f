"""Notifications when a run ends: in the browser, and by a webhook."""

import time
from html import escape
from typing import Any

import gradio as gr

from loratory.engine.errors import EngineError
from loratory.engine.runs.webhook import KINDS, WebhookOutcome, WebhookStore, deliver, parse_webhook
from loratory.ui.components import QUICK, SLOW, pick_list, picked_value, script
from loratory.ui.gradio_internals import Dropdown
from loratory.ui.page import Page
from loratory.ui.views.html import error_box, notice, pick_button, small
from loratory.ui.views.run_table import when

_KIND_NAMES = {"json": "Generic JSON", "slack": "Slack", "discord": "Discord"}
_BY_ADDRESS = "auto"


class NotificationsPart:
    """Lays out the fold and connects it. The address of a webhook is never sent to a page."""

    def __init__(self, page: Page) -> None:
        services = page.services
        self._store = WebhookStore(services.home, services.runs.owner)
        with gr.Accordion("Notifications", open=False, elem_id="notifications") as fold:
            gr.HTML(
                html_template='<button type="button"></button><p class="small" role="status"></p>',
                js_on_load=script("notify"), elem_id="notify-here",
            )  # fmt: skip
            if services.home.is_guest:
                return
            self.state = pick_list(elem_id="webhook-state")
            with gr.Row(elem_id="webhook-row"):
                self.url = gr.Textbox(
                    label="Webhook URL", info="Receives a message when one of your runs ends. Saved here and never shown again.",
                    type="password", scale=3, min_width=240, elem_id="webhook-url",
                )  # fmt: skip
                names = [("Found from the URL", _BY_ADDRESS), *((_KIND_NAMES[kind], kind) for kind in KINDS)]
                self.kind = Dropdown(names, value=_BY_ADDRESS, label="Service", scale=1, min_width=160)
            save = gr.Button("Save webhook", scale=0, min_width=140, elem_id="webhook-save")
        fold.expand(self.render, None, self.state, **QUICK)
        save.click(self.save, [self.url, self.kind], [self.state, self.url], **QUICK)
        self.state.click(self.act, None, self.state, **SLOW)

    def render(self, problem: str = "") -> str:
        webhook, state = self._store.read(), ""
        if webhook is not None:
            actions = pick_button("test", "Send a test") + " " + pick_button("remove", "Remove webhook")
            state = notice(f"{_KIND_NAMES[webhook.kind]} at {webhook.host}.") + actions
        return state + (problem or render_outcome(self._store.outcome()))

    def save(self, url: str, kind: str) -> tuple[str, Any]:
        try:
            self._store.save(parse_webhook(str(url or ""), str(kind)))
        except EngineError as error:
            return self.render(error_box(error)), gr.skip()
        return self.render(), ""

    def act(self, event: gr.EventData) -> str:
        """Send a test, or remove the webhook."""
        pick = picked_value(event)
        if pick == "remove":
            self._store.forget()
        try:
            if pick == "test":
                deliver(self._store.home, self._store.owner, "This is a test from Loratory.", {"event": "test"})
        except EngineError as error:
            return self.render(error_box(error))
        return self.render()


def render_outcome(outcome: WebhookOutcome | None) -> str:
    """Return whether the newest message was sent."""
    if outcome is None:
        return ""
    moment = when(outcome.at, time.time())
    if outcome.problem:
        return f'<div class="trouble" role="alert"><b>Not sent, {moment}</b>{escape(outcome.problem)}</div>'
    return small(f"Newest message: sent, {moment}.", role="status")
