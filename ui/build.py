"""The page: header, tabs in the order of the work, and the side panel."""

import time
import zlib
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from engine.accounts.people import Person
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.runs.run import LIVE_STATES
from ui.backend.background import Cache
from ui.backend.models import FitTable
from ui.backend.run_reader import RunReader
from ui.components import NOT_SHOWN, QUICK, SHOWN, live_html, nothing
from ui.gradio_internals import Blocks
from ui.next_step import NextStepBar, StartHere
from ui.page import Page
from ui.polls import poll, poll_answer
from ui.services import Services
from ui.side_panel import SidePanel
from ui.tabs.chat import ChatTab
from ui.tabs.data import DataTab
from ui.tabs.export import ExportTab
from ui.tabs.method import MethodTab
from ui.tabs.model import ModelTab
from ui.tabs.runs import RunsTab
from ui.tabs.train import TrainTab
from ui.views.html import gib, pick_button, plural
from ui.views.run_view import tab_title

_COUNTED_RUNS = 200  # of the newest; those that wait or run are among them
_HEADER_SECONDS = 5
_OTHER_TABS: dict[str, Callable[[Page], Any]] = {
    "Chat": ChatTab, "Export": ExportTab, "Runs": RunsTab,
}  # fmt: skip


def build_app(services: Services) -> gr.Blocks:
    """Lay out the whole page on `services`; the caller launches it."""
    fits = FitTable(services.shapes.learn, services.devices, services.fits)
    with Blocks(title="Loratory", analytics_enabled=False, fill_width=True) as app:
        page = Page(services)
        header = live_html(_header(services, page.reader).html, elem_id="header", more=("access", "pick"))
        news = poll(
            _header_news(page, header), _HEADER_SECONDS, question="header", elem_id="header-live", while_hidden=True
        )
        with gr.Row(equal_height=False, elem_id="bench"):
            with gr.Column(scale=7, min_width=560, elem_id="work"):
                start_here = StartHere(page)
                with gr.Tabs(selected="model", elem_id="tabs") as page.tabs:
                    with gr.Tab("Model", id="model"):
                        model_tab = ModelTab(page, fits)
                    with gr.Tab("Data", id="data"):
                        data_tab = DataTab(page)
                    with gr.Tab("Method", id="method"):
                        others: list[Any] = [MethodTab(page)]
                    with gr.Tab("Train", id="train"):
                        train_tab = TrainTab(page)
                    for title, kind in _OTHER_TABS.items():
                        with gr.Tab(title, id=title.lower()):
                            others.append(kind(page))
                    if services.lab is not None:
                        from ui.tabs.lab import LabTab

                        with gr.Tab("Lab", id="lab"):
                            others.append(LabTab(page, services.lab))
            with gr.Column(scale=3, min_width=320, elem_id="side") as side:
                train_tab.follow.lay_out_side()
                with gr.Column(elem_id="draft-side"):
                    side_panel = SidePanel(page)
        bar = NextStepBar(page, train_tab)
        page.form.complete()
        train_tab.start.enable_after(bar.redraw_after(train_tab.wire()))
        bar.redraw_after(news.submit(nothing, None, None, **QUICK))
        bar.offer(header.click)
        start_here.wire(train_tab)
        for part in (model_tab, data_tab, *others, side_panel, bar):
            part.wire()
        # Alpha follows the rank; the revision is looked up first.
        undone = page.wire(exclude=("adapter.r", "model.revision"))

        for tab in page.tabs.children:
            is_beside = tab.id in ("model", "data", "method", "train")
            tab.select(None, None, side, js=SHOWN if is_beside else NOT_SHOWN, **QUICK)
        # The model and the rows follow the browser's draft: they ask another process.
        restore_event = page.restore(app)
        model_tab.open_restored(restore_event)
        data_tab.open_restored(restore_event)
        data_tab.open_after(undone)

    return app


class _Header(NamedTuple):
    html: str  # the line on top
    titles: str  # what the browser's tab shows
    states: str  # a stamp of the runs' states, on which the next step depends


def _header(services: Services, reader: RunReader) -> _Header:
    devices = services.devices()
    usable = (device for device in devices if device.obstacle is None)
    device = max(usable, key=lambda device: (device.kind == "cuda", device.free_bytes), default=None)
    problems = [f"{device.obstacle.what} {device.obstacle.fix}" for device in devices if device.obstacle is not None]
    run_states = {run.id: run.folder.read_state() for run in services.runs.list()[:_COUNTED_RUNS]}
    states = {run_id: state.state for run_id, state in run_states.items()}
    active = next((run_id for run_id, state in states.items() if state in LIVE_STATES), "")
    end_time = max(
        (run_id for run_id in run_states if run_states[run_id].is_final),
        key=lambda one: run_states[one].ended or 0.0,
        default="",
    )
    # Browsers compare later ends with the first answer of a poll, not with the layout, which may be old.
    titles = f'<div hidden id="tab-titles">{"".join(_tab_title(reader, run_id) for run_id in (active, end_time) if run_id)}</div>'
    running = sum(state in LIVE_STATES for state in states.values())
    waiting = sum(state == "queued" for state in states.values())
    notice = " ".join(filter(None, [services.notice(), services.standing_by(), *problems]))
    html = render_header(device, running, waiting, notice, services.person, active=active)
    return _Header(html, titles, _digest(str(states)))


def _tab_title(reader: RunReader, run_id: str) -> str:
    try:
        return tab_title(reader.observe(run_id))
    except EngineError:  # deleted meanwhile
        return ""


def render_header(
    device: Device | None,
    running: int,
    waiting: int,
    notice: str = "",
    person: Person | None = None,
    *,
    active: str = "",
) -> str:
    """Return the line on top: device, active and waiting runs, who is signed in; below it what concerns the whole page.

    A click on the active runs sends `follow:` and the id of `active`, the newest.
    """
    parts = ["no device found"]
    if device is not None:
        parts = [f"<b>{escape(device.name)}</b>", f"{gib(device.free_bytes)} of {gib(device.total_bytes)} GiB free"]
    if running:
        words = plural(running, "active run")
        parts.append(pick_button(f"follow:{active}", words, css="inline") if active else words)
    if waiting:
        parts.append(f"{waiting} waiting")
    return (
        '<div class="mast" role="banner"><h1 class="name">Lora<i>tory</i></h1>'
        '<span class="sub">fine-tuning with PEFT</span>'
        f'<span class="chip">{" · ".join(parts)}</span>{_account(person)}</div>'
        + (f'<p class="notice" role="status">{escape(notice)}</p>' if notice else "")
    )


def _account(person: Person | None) -> str:
    if person is None:
        return ""
    return (
        f'<form class="account" method="post" action="/sign-out"><a href="/account">{escape(person.name)}</a>'
        '<button class="link">Sign out</button></form>'
    )


def _digest(text: str) -> str:
    return f"{zlib.crc32(text.encode()):x}"


def _header_news(page: Page, header: gr.HTML) -> Callable[[str, str], str | None]:
    cache: Cache[_Header] = Cache(capacity=1)

    def answer(_question: str, last_stamp: str) -> str | None:
        # Every open page asks; one look at the runs and devices serves them all.
        html, titles, states = cache.get(
            time.monotonic() // _HEADER_SECONDS, lambda: _header(page.services, page.reader)
        )
        now = f"{_digest(html + titles)} {states}"
        if now == last_stamp:
            return None
        return poll_answer(
            now, {header.elem_id: html + titles}, submit=bool(last_stamp) and not last_stamp.endswith(states)
        )

    return answer
