"""The fold in which a person sets a webhook: its address never comes back to a page, and problems are shown once."""

import gradio as gr
import pytest

from loratory.engine.runs.webhook import WebhookOutcome, WebhookStore
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page
from loratory.ui.tabs.notifications import NotificationsPart, render_outcome

SECRET = "T0pS3cret"


@pytest.fixture
def part(services) -> NotificationsPart:
    with Blocks():
        return NotificationsPart(Page(services))


def test_a_saved_webhook_shows_its_host_alone(part, services):
    state, url = part.save(f"https://hooks.slack.com/services/{SECRET}", "auto")

    assert url == ""
    assert "Slack at hooks.slack.com." in state
    assert "Send a test" in state
    assert SECRET not in state + part.render()
    store = WebhookStore(services.home, services.runs.owner)
    assert store.read() is not None
    assert "Send a test" not in part.act(gr.EventData(None, {"pick": "remove"}))
    assert store.read() is None


def test_what_is_not_an_address_is_refused_and_the_former_one_stays(part):
    part.save(f"https://discord.com/api/webhooks/1/{SECRET}", "auto")

    state, _ = part.save("http://example.com/other", "slack")

    assert "does not begin with https://" in state
    assert "Discord at discord.com." in state


def test_a_problem_of_the_newest_message_is_shown_escaped():
    assert "&lt;b&gt;" in render_outcome(WebhookOutcome(at=1.0, problem="<b>"))
    assert "sent" in render_outcome(WebhookOutcome(at=1.0))
    assert render_outcome(None) == ""
