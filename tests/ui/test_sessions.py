"""What the server keeps of each page is little, and goes some time after the page."""

import asyncio
import datetime
import threading
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest

from loratory.ui.gradio_internals import Blocks, PageSession, PageSessions
from loratory.ui.serve import launch
from tests.page_client import PageClient, read_config
from tests.waiting import wait_until


@pytest.fixture
def blocks():
    with gr.Blocks() as blocks:
        gr.Textbox(label="Name")
        gr.Dropdown(["a", "b"], label="Choice")
        gr.State(0)
    return blocks


def ids(blocks) -> SimpleNamespace:
    return SimpleNamespace(**{block.get_block_name(): block._id for block in blocks.default_config.blocks.values()})


def test_a_session_holds_what_differs_from_the_layout_and_nothing_else(blocks):
    session, part = PageSession(blocks), ids(blocks)

    session[part.textbox] = gr.Textbox(label="Name", render=False)
    session[part.dropdown] = gr.Dropdown(["a", "b", "c"], label="Choice", render=False)
    session[part.state] = 7

    assert session[part.textbox] is blocks.blocks[part.textbox]
    assert [value for _, value in session[part.dropdown].choices] == ["a", "b", "c"]
    assert session[part.state] == 7
    assert set(session.blocks_config.blocks.maps[0]) == {part.dropdown}
    assert list(session.components) == []
    session[part.dropdown] = gr.Dropdown(["a", "b"], label="Choice", render=False)
    assert session[part.dropdown] is blocks.blocks[part.dropdown]


def test_a_session_begins_and_ends_without_describing_the_whole_layout(blocks, monkeypatch):
    keys = []
    monkeypatch.setattr(type(blocks.default_config), "config_for_block", lambda _, key, *__: keys.append(key))

    PageSession(blocks)

    assert keys == [], "a thousand streams that close at once begin a session each"


def test_a_closed_page_is_forgotten_after_an_hour_and_an_open_one_never(blocks):
    sessions = PageSessions()
    sessions.set_blocks(blocks)
    for name in ("open", "closed", "closed and used"):
        sessions[name].is_closed = name != "open"
    long_ago = datetime.datetime.now() - datetime.timedelta(minutes=61)
    sessions.time_last_used.update({"open": long_ago, "closed": long_ago})

    sessions.delete_all_expired_state()

    assert set(sessions.session_data) == set(sessions.time_last_used) == {"open", "closed and used"}


def test_beyond_the_limit_closed_pages_go_first(blocks):
    sessions = PageSessions(capacity=3)
    sessions.set_blocks(blocks)
    for name in ("first", "second", "third"):
        sessions[name].is_closed = name == "second"

    assert sessions["fourth"] is sessions["fourth"]
    assert list(sessions.session_data) == ["first", "third", "fourth"]
    sessions["first"]  # used again
    sessions["fifth"]
    assert list(sessions.session_data) == ["fourth", "first", "fifth"]


@pytest.mark.exhaustive(quick=0)
def test_opened_pages_leave_little_behind(services):
    page = launch(services, "127.0.0.1", None)
    sessions = page.server_app.state_holder
    try:
        with httpx.Client(base_url=page.local_url, timeout=300) as http:
            config = read_config(http)
            for number in range(3):
                with PageClient.open(http, config):
                    assert len(sessions.session_data) == number + 1
        left = list(sessions.session_data.values())
        wait_until(lambda: all(session.is_closed for session in left))
    finally:
        page.close(verbose=False)

    assert [len(session.blocks_config.blocks.maps[0]) for session in left] == [0] * 3
    assert [len(session.config_values) for session in left] == [0] * 3


def test_values_are_converted_without_a_thread_each_and_handlers_called_in_one():
    threads = {}

    def note(what, value):
        threads[what] = threading.get_ident()
        return value

    class Box(gr.Textbox):
        def preprocess(self, payload):
            return note("before", payload)

        def postprocess(self, value):
            return note("after", value)

    with Blocks() as blocks:
        box = Box()
        event = box.change(lambda text: note("handler", text + "b"), box, box)

    answer = asyncio.run(blocks.process_api(event["id"], ["a"], PageSession(blocks)))

    assert answer["data"] == ["ab"]
    assert threads["before"] == threads["after"] == threading.get_ident() != threads["handler"]
