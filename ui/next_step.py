"""Guidance: the bar at the bottom of every tab, and the card of a first visit."""

from typing import Any

import gradio as gr
from gradio.events import Dependency

from ui.components import QUICK, UNCHANGED, Updates, pick_list, picked_value, shown_as_message, visible_if
from ui.draft import Draft
from ui.page import Page
from ui.tabs.start import why_not
from ui.tabs.train import FOLLOW, SET_UP, TrainTab
from ui.views.draft import OPENING_BAR, NextStep, next_step, render_bar, render_start_here

QUICK_START = "quickstart-cpu"  # the preset that trains on any machine
_TABS = ("model", "data", "method", "train")


class NextStepBar:
    """Lays out the bar: what is chosen, what is missing, whether it fits, and one action."""

    def __init__(self, page: Page, train: TrainTab) -> None:
        self._page = page
        self._train = train
        with gr.Row(equal_height=True, elem_id="next-step"):
            self.line = pick_list(OPENING_BAR, elem_id="next-step-line")
            self.start = gr.Button(
                "Start training", variant="primary", visible=False, elem_id="next-step-start", scale=0, min_width=160
            )
        train.start.offer(self.start)
        page.on_draft(self.line, lambda draft: render_bar(draft, self._step(draft)))
        page.on_draft(self.start, lambda draft: visible_if(self._step(draft).starts))

    def wire(self) -> None:
        """Connect the events."""
        self.redraw_after(self.offer(self.line.click))  # a run may have been resumed

    def offer(self, click: Any) -> Dependency:
        """Open on a click what is picked: a tab, or a run to follow, to resume or to chat with."""
        page, train = self._page, self._train
        opening = [page.tabs, train.view, page.chosen_run, page.wants_run, page.wants_chat]
        open_event: Dependency = click(shown_as_message(self._open), None, opening, **QUICK)
        train.follow.show_after(open_event, train.view)
        return open_event

    def redraw_after(self, event: Any) -> Dependency:
        """Update the next step after an event that changed the active runs."""
        return self._page.redraw_after(event, self.line, self.start)

    def _step(self, draft: Draft) -> NextStep:
        # Defaults that depend on the rows are set once these are counted, maybe after the start.
        open_ones = [name for name, default in draft.suited_defaults.items() if default.awaits_rows]
        reader = self._page.reader
        run = reader.newest_of(draft.config, open_ones) if draft.config is not None else None
        if run is None and (active := reader.newest_active() if draft.is_empty else None) is not None:
            run = reader.summary(active)
        resumes = run is not None and self._page.reader.is_resuming(run.id)
        return next_step(draft, run, can_start=why_not(draft) is None, resumes=resumes)

    def _open(self, event: gr.EventData) -> Updates:
        page = self._page
        place, _, run_id = picked_value(event).partition(":")
        if place in _TABS:
            return {page.tabs: gr.Tabs(selected=place), self._train.view: SET_UP}
        if not page.reader.exists(run_id):
            return UNCHANGED
        if place == "resume":
            self._train.follow.resume_shown(run_id, "", "", None)
        if place == "chat":
            return {page.tabs: gr.Tabs(selected="chat"), page.chosen_run: run_id, page.wants_chat: True}
        return {
            page.tabs: gr.Tabs(selected="train"),
            self._train.view: FOLLOW,
            page.chosen_run: run_id,
            page.wants_run: True,
        }


class StartHere:
    """Lays out the card of a first visit, which fills the form with the quick start."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.card = pick_list(elem_id="start-here")
        page.on_draft(self.card, self._render)

    def wire(self, train: TrainTab) -> None:
        """Connect the events."""
        train.use_preset_by(self.card.click)

    def _render(self, draft: Draft) -> str:
        is_new = draft.is_empty and not self._page.services.runs.ids()
        return render_start_here(QUICK_START) if is_new else ""
