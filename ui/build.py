"""The page: header, tabs in the order of the work, the side panel, and the bar with the next step."""

import time
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr
from gradio.events import Dependency

from loratory.engine.accounts.people import Action, Person
from loratory.engine.errors import EngineError, RunError
from loratory.engine.hardware.device import Device
from loratory.engine.runs.control import request_stop
from loratory.engine.runs.run import LIVE_STATES
from loratory.ui import components as ui
from loratory.ui.addresses import parse_address
from loratory.ui.backend.background import Cache
from loratory.ui.backend.models import FitTable
from loratory.ui.backend.run_reader import RunReader
from loratory.ui.backend.transfers import LARGEST_FILE_BYTES
from loratory.ui.draft import Draft
from loratory.ui.gradio_internals import Blocks
from loratory.ui.page import Page, request_view
from loratory.ui.polls import HEADER_SECONDS, digest, poll, poll_answer
from loratory.ui.services import Services
from loratory.ui.side_panel import SidePanel
from loratory.ui.tabs.chat import ChatTab
from loratory.ui.tabs.data import DataTab, dataset_name
from loratory.ui.tabs.draft_yaml import YamlDrawer
from loratory.ui.tabs.export import ExportTab
from loratory.ui.tabs.method import MethodTab
from loratory.ui.tabs.model import ModelTab
from loratory.ui.tabs.runs import RunsTab
from loratory.ui.tabs.start import why_not
from loratory.ui.tabs.train import FOLLOW, SET_UP, TrainTab
from loratory.ui.theme import STYLESHEETS
from loratory.ui.views import draft as views
from loratory.ui.views.html import gib, pick_button, plural
from loratory.ui.views.run_line import render_active, render_run_line
from loratory.ui.views.run_view import tab_title

# How Gradio serves every page.
SERVING: dict[str, Any] = {
    "css_paths": STYLESHEETS, "footer_links": [], "run_history": False, "ssr_mode": False, "enable_monitoring": False,
    "max_file_size": LARGEST_FILE_BYTES,
}  # fmt: skip
QUICK_START = "quickstart-cpu"  # the preset that trains on any machine
_TABS = ("model", "data", "method", "train")  # of the draft
_TAB_OF_VIEW = {"details": "runs", "export": "export", **dict.fromkeys(("look", "chat", "blind", "measure"), "chat")}
_OF_ADDRESS = {"train": "follow", "chat": "look", "runs": "details"}  # what to do with the run of an address


class NextStepBar:
    """Lays out the bar: the draft and its next step, and the run in hand; the stylesheet shows what a tab is about."""

    def __init__(self, page: Page, train: TrainTab) -> None:
        self.page = page
        self.train = train
        self._lines: Cache[str] = Cache()  # pages with one run in hand share one look at it
        with gr.Row(equal_height=True, elem_id="next-step"):
            self.line = ui.pick_list(views.OPENING_BAR, elem_id="next-step-line")
            self.run = ui.live_html(elem_id="next-step-run")  # the script `access` sends what is picked as the header's
            self.start = gr.Button(
                "Start training", variant="primary", visible=False, elem_id="next-step-start", scale=0, min_width=160
            )
        train.start.offer(self.start)
        page.on_draft(self.line, self.render)
        page.on_draft(self.start, lambda draft: ui.visible_if(self.step(draft).starts))

    def wire(self, header: gr.HTML, news: gr.HTML) -> None:
        """Connect the events; the header sends what is picked there and addresses, its poll follows the run in hand."""
        self.redraw_after(self.offer(self.line.click))  # a run may have been resumed
        chosen = self.page.chosen_run
        self.offer(header.click).then(self.render_run, chosen, self.run, **ui.QUICK)
        chosen.change(None, chosen, news, js="(run) => run ? `header ${run}` : 'header'", **ui.QUICK)

    def offer(self, click: Any) -> Dependency:
        """Open on a click what is picked: a tab, an address, or a run and what to do with it."""
        page, train = self.page, self.train
        opening = [page.tabs, train.view, page.chosen_run, page.wants_run, page.wants_result, page.other_run]
        # By the queue: Gradio 6.31 shows no error of an event without it, and starts nothing `then` after one. What is picked
        # while an address is looked up comes after it.
        open_event: Dependency = click(
            ui.shown_as_message(self.open), None, opening, trigger_mode="multiple", **ui.SLOW
        )
        train.follow.show_after(open_event, train.view)
        for end in (open_event.then, open_event.failure):
            end(None, None, None, js="() => window.loratoryArrive()", **ui.QUICK)
        return open_event

    def redraw_after(self, event: Any) -> Dependency:
        """Update the next step after an event that changed the active runs."""
        return self.page.redraw_after(event, self.line, self.start)

    def step(self, draft: Draft) -> views.NextStep:
        # Defaults that depend on the rows are set once these are counted, maybe after the start.
        open_ones = [name for name, default in draft.derived_defaults.items() if default.awaits_rows]
        reader = self.page.reader
        run = reader.newest_of(draft.config, open_ones) if draft.config is not None else None
        if _is_first_visit(self.page, draft):
            return views.QUICK_START_STEP
        return views.next_step(
            draft, reader.observe(run.id) if run is not None else None, can_start=why_not(draft) is None
        )

    def render(self, draft: Draft) -> str:
        """Return the draft's line; a browser without an address lands on the active run, where the draft is, or on the list of runs."""
        step, active = self.step(draft), self.page.reader.newest_active(or_waiting=False)
        here = step.target if step.target in _TABS else "train"
        if draft.is_empty:
            here = "model" if step == views.QUICK_START_STEP else "runs"
        lands = f"train/{active}" if active else here
        name = dataset_name(self.page.services.home, str(draft.mapping["dataset"].get("source") or ""))
        return views.render_bar(draft, step, views.outlook(*self.train.plan_facts(draft)), lands=lands, dataset=name)

    def render_run(self, chosen: str) -> str:
        """Return the lines of the active run, and of the one in hand: the chosen one, unless it is gone."""
        return self._lines.get((time.monotonic() // HEADER_SECONDS, chosen), lambda: self._render_run(chosen))

    def _render_run(self, chosen: str) -> str:
        reader, active = self.page.reader, self.page.reader.newest_active(or_waiting=False)
        in_hand = chosen if reader.exists(chosen) else active or ""
        try:
            works = self.page.services.results.under_way(in_hand)
            line = render_run_line(reader.observe(in_hand), under_way=works) if in_hand else ""
            return (render_active(reader.observe(active)) if active else "") + line
        except EngineError:  # deleted meanwhile
            return ""

    def open(self, event: gr.EventData) -> ui.Updates:
        """Open what was picked, if it exists; of an address, the browser opens the tab, unless its person left meanwhile."""
        pick, page = ui.picked_value(event), self.page
        tab, name = parse_address(pick)
        if not tab:
            target, _, run_id = pick.partition(":")
            return self._open(target, run_id) if target in _TABS or page.reader.exists(run_id) else ui.UNCHANGED
        if tab == "runs" and "/" in name and page.shared is not None:
            page.shared.observe(name, Action.READ)
            return {page.other_run: name}
        if tab == "data":
            return ui.UNCHANGED  # its tab looks the name up
        if name and not page.reader.exists(name):
            raise RunError(f"Run {name[:40]!r} was not found here.", "Choose one in the Runs tab.")
        updates = self._open(_OF_ADDRESS.get(tab, tab) if name else tab, name)
        return {part: value for part, value in updates.items() if part is not page.tabs}

    def _open(self, target: str, run_id: str) -> ui.Updates:
        page, train = self.page, self.train
        if target in _TABS:
            return {page.tabs: gr.Tabs(selected=target), train.view: SET_UP}
        if target in ("stop", "resume"):
            self._lines = Cache()
        if target == "stop":
            train.follow.send(request_stop, "run stopped", run_id)
            return ui.UNCHANGED
        if target == "resume":
            train.follow.resume.resume(run_id, "", "", None)
        tab = _TAB_OF_VIEW.get(target, "train")
        opened: ui.Updates = {page.tabs: gr.Tabs(selected=tab), page.chosen_run: run_id}
        if tab == "train":
            return {**opened, train.view: FOLLOW, page.wants_run: request_view("follow")}
        return {**opened, (page.wants_run if tab == "runs" else page.wants_result): request_view(target)}


def render_card(page: Page, draft: Draft) -> str:
    """Return the card of a first visit, which fills the form with the quick start; empty later."""
    return views.render_start_here(QUICK_START) if _is_first_visit(page, draft) else ""


def _is_first_visit(page: Page, draft: Draft) -> bool:
    return draft.is_empty and not page.services.runs.ids()


_COUNTED_RUNS = 200  # of the newest; those that wait or run are among them


def build_app(services: Services) -> gr.Blocks:
    """Lay out the whole page on `services`; the caller launches it."""
    fits = FitTable(services.shapes.learn, services.devices, services.fits)
    with Blocks(title="Loratory", analytics_enabled=False, fill_width=True) as app:
        page = Page(services)
        header = ui.live_html(_header(services, page.reader).html, elem_id="header", more=("terms", "access", "pick"))
        header.js_on_load = f"{ui.shared_scripts()}\n{header.js_on_load}"
        newest: Cache[_Header] = Cache(capacity=1)

        def answer(question: str, last_stamp: str) -> str | None:
            # Every open page asks; one look at the runs and devices serves them all.
            now = newest.get(time.monotonic() // HEADER_SECONDS, lambda: _header(services, page.reader))
            values = {"header": now.html + now.titles, "next-step-run": bar.render_run(question.partition(" ")[2])}
            stamp = f"{digest(''.join(values.values()))} {now.states}"
            submits = bool(last_stamp) and not last_stamp.endswith(now.states)
            return None if stamp == last_stamp else poll_answer(stamp, values, submit=submits)

        news = poll(answer, HEADER_SECONDS, question="header", elem_id="header-live", while_hidden=True)
        with gr.Row(equal_height=False, elem_id="bench"):
            with gr.Column(scale=7, min_width=560, elem_id="work"):
                start_here = ui.pick_list(elem_id="start-here")
                page.on_draft(start_here, partial(render_card, page))
                with gr.Tabs(selected="model", elem_id="tabs") as page.tabs:
                    with gr.Tab("Model", id="model"):
                        model_tab = ModelTab(page, fits)
                    with gr.Tab("Data", id="data"):
                        data_tab = DataTab(page)
                    with gr.Tab("Method", id="method"):
                        others: list[Any] = [MethodTab(page)]
                    with gr.Tab("Train", id="train"):
                        train_tab = TrainTab(page)
                    for title, kind in (("Chat", ChatTab), ("Export", ExportTab), ("Runs", RunsTab)):
                        with gr.Tab(title, id=title.lower()):
                            others.append(kind(page))
                    if services.lab is not None:
                        from loratory.ui.tabs.lab import LabTab

                        with gr.Tab("Lab", id="lab"):
                            others.append(LabTab(page, services.lab))
            with gr.Column(scale=3, min_width=320, elem_id="side"):
                train_tab.follow.lay_out_side()
                with gr.Column(elem_id="draft-side"):
                    side_panel = SidePanel(page)
        bar = NextStepBar(page, train_tab)
        page.form.complete()
        train_tab.start.enable_after(bar.redraw_after(train_tab.wire()))
        bar.redraw_after(news.submit(ui.nothing, None, None, **ui.QUICK))
        data_tab.open_named_by(header.click)
        train_tab.use_preset_by(start_here.click)
        for part in (model_tab, data_tab, *others, side_panel, YamlDrawer(page, train_tab)):
            part.wire()
        bar.wire(header, news)
        # Alpha follows the rank; the revision is looked up first.
        undone = page.wire(exclude=("adapter.r", "model.revision"))

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
    ended = [run_id for run_id, state in run_states.items() if state.is_final]
    newest = max(ended, key=lambda run_id: run_states[run_id].ended or 0.0, default="")
    # Browsers compare later ends with the first answer of a poll, not with the layout, which may be old.
    titles = "".join(_tab_title(reader, run_id) for run_id in (active, newest) if run_id)
    running = sum(state in LIVE_STATES for state in states.values())
    waiting = sum(state == "queued" for state in states.values())
    notice = " ".join(filter(None, [services.notice(), services.standing_by(), *problems]))
    html = render_header(device, running, waiting, notice, services.person, active=active)
    return _Header(html, f'<div hidden id="tab-titles">{titles}</div>', digest(states))


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
        parts.append(pick_button(f"follow:{active}", plural(running, "active run"), css="inline"))
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
