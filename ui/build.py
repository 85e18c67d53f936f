"""The page: header, tabs in the order of the work, and the side panel that never leaves."""

import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import gradio as gr

from engine.errors import EngineError
from engine.memory.advice import Advice, advise
from engine.runs.run import LIVE_STATES
from ui.backend.fit_table import FitTable
from ui.backend.rendered import Rendered
from ui.draft import Draft
from ui.errors import shown_as_message
from ui.live import asking, news, place
from ui.measure import MeasureStep
from ui.page import Page, overridden
from ui.pick import pick_list, picked
from ui.services import Services
from ui.tabs.chat.tab import ChatTab
from ui.tabs.data.tab import DataTab
from ui.tabs.export.tab import ExportTab
from ui.tabs.method import MethodTab
from ui.tabs.model import ModelTab
from ui.tabs.runs.tab import RunsTab
from ui.tabs.train.tab import TrainTab
from ui.views.advice import render_advice
from ui.views.header import render_header
from ui.views.side_panel import OPENING_PANEL, render_side_panel

_COUNTED_RUNS = 200  # of the newest; whatever waits or works is among them
_QUEUE_SECONDS, _PROGRESS_SECONDS = 0.05, 0.2  # between two looks for an event that waits, or for a progress bar
_HEADER_SECONDS = 5
_TABS_WITH_PANEL = ("model", "data", "method", "train")


def build_app(services: Services) -> gr.Blocks:
    """Lay out the whole page on `services`; the caller launches it."""
    fits = FitTable(services.shapes.learn, services.devices)
    with gr.Blocks(title="Loratory", analytics_enabled=False, fill_width=True) as app:
        page = Page(services)
        header = place(_header(services), elem_id="header")
        asking(_header_news(services, header), _HEADER_SECONDS, question="header", elem_id="header-live")
        with gr.Row(equal_height=False, elem_id="bench"):
            with (
                gr.Column(scale=7, min_width=560, elem_id="work"),
                gr.Tabs(selected="model", elem_id="tabs") as page.tabs,
            ):
                with gr.Tab("Model", id="model"):
                    model_tab = ModelTab(page, fits)
                with gr.Tab("Data", id="data"):
                    data_tab = DataTab(page)
                with gr.Tab("Method", id="method"):
                    method_tab = MethodTab(page)
                with gr.Tab("Train", id="train"):
                    train_tab = TrainTab(page)
                with gr.Tab("Chat", id="chat"):
                    chat_tab = ChatTab(page)
                with gr.Tab("Export", id="export"):
                    export_tab = ExportTab(page)
                with gr.Tab("Runs", id="runs"):
                    runs_tab = RunsTab(page)
            with gr.Column(scale=3, min_width=320, elem_id="side") as side:
                panel = gr.HTML(OPENING_PANEL, elem_id="panel")
                measure = MeasureStep(page)
                advice = pick_list(elem_id="advice")
        page.form.complete()
        page.on_draft(panel, lambda draft: render_side_panel(draft, page.begins_with(draft)))
        page.on_draft_later(advice, _render_advice)
        for tab in (model_tab, data_tab, method_tab, train_tab, chat_tab, export_tab, runs_tab):
            tab.wire()
        measure.wire()
        page.wire(exclude=("adapter.r", "model.revision"))  # alpha comes along first; the revision is looked up first
        _wire_side_panel(page, side, advice)
        _wire_opening(app, page, model_tab, data_tab)

        def leave(request: gr.Request) -> None:
            services.checks.leave(request.session_hash or "")

        app.unload(leave)
    # Gradio counts its last 10,000 events anew, with pandas, after each one; nothing here reads the counts.
    app._queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize
    app._queue.ANALYTICS_MAX_EVENTS = 1
    # Gradio looks for work a thousand times a second, which costs an idle server 6% of a core; twenty times is enough.
    app._queue.sleep_when_free = _QUEUE_SECONDS
    app._queue.progress_update_sleep_when_free = _PROGRESS_SECONDS
    return app


def _wire_side_panel(page: Page, side: gr.Column, advice: gr.HTML) -> None:
    for tab in page.tabs.children:
        tab.select(_show_beside, None, side, show_progress="hidden", queue=False, api_visibility="private")
    change = gr.State({})

    def apply(event: gr.EventData, *values: Any) -> dict[str, Any]:
        return with_advice(page.draft(values), picked(event))

    applied = advice.click(
        shown_as_message(apply), page.form.components, change, show_progress="hidden", api_visibility="private"
    )
    page.fill_after(applied, change)


def with_advice(draft: Draft, kind: str) -> dict[str, Any]:
    """The settings of a draft with one advised change.

    Args:
        draft: The draft.
        kind: Of the change; its words have figures that follow the free memory, also after they were drawn.

    Raises:
        EngineError: If that is not advised now.
    """
    known = _advice(draft)
    for candidate in (*known.changes, *known.limits) if known is not None else ():
        if candidate.kind == kind:
            return overridden(draft.mapping, candidate.overrides)
    raise EngineError("This change does not help any more: settings or free memory have changed.", "Choose another.")


def _show_beside(event: gr.SelectData) -> Any:
    return gr.update(visible=str(event.value).lower() in _TABS_WITH_PANEL)


def _advice(draft: Draft) -> Advice | None:
    if draft.shape is None or draft.assumed is None or draft.device is None or draft.estimate is None:
        return None
    return advise(draft.shape, draft.assumed, draft.device)


def _render_advice(draft: Draft) -> str:
    advice = _advice(draft)
    if advice is None or draft.estimate is None:
        return ""
    return render_advice(advice, draft.estimate)


def _header(services: Services) -> str:
    devices = services.devices()
    usable = (device for device in devices if device.obstacle is None)
    device = max(usable, key=lambda device: (device.kind == "cuda", device.free_bytes), default=None)
    unused = [f"{device.obstacle.what} {device.obstacle.fix}" for device in devices if device.obstacle is not None]
    states = [run.folder.read_state().state for run in services.runs.list()[:_COUNTED_RUNS]]
    running = sum(state in LIVE_STATES for state in states)
    waiting = sum(state == "queued" for state in states)
    return render_header(device, running, waiting, " ".join(filter(None, [services.standing_by(), *unused])))


def _header_news(services: Services, header: gr.HTML) -> Callable[[str, str], str | None]:
    drawn = Rendered(kept=1)

    def answer(_question: str, seen: str) -> str | None:
        # Every open page asks; one look at the runs and devices serves them all.
        html = drawn.get(time.monotonic() // _HEADER_SECONDS, lambda: _header(services))
        stamp = f"{zlib.crc32(html.encode()):x}"
        return None if stamp == seen else news(stamp, {header.elem_id: html})

    return answer


def _wire_opening(app: gr.Blocks, page: Page, model_tab: ModelTab, data_tab: DataTab) -> None:
    """Bring back the draft that this browser had; the model and the rows follow, for they ask another process."""
    restored = page.restore(app)
    model_tab.open_after(restored)
    data_tab.open_after(restored)
