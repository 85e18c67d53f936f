"""Votes: look through them, delete them, and use them as a dataset of pairs."""

from typing import Any

import gradio as gr

from engine.errors import EngineError
from engine.evaluation.votes import Votes, pairs_of_votes
from ui.components import QUICK, SLOW, UNCHANGED, Confirmation, Updates, pick_list, picked_value, shown_as_message
from ui.page import Page
from ui.tabs.data import with_source
from ui.views import evaluation as view
from ui.views.html import ListPage, error_box, plural, small

_DELETE, _REALLY = "delete:", "really:"


class VotesPart:
    """Lays out the votes of the person; `wire` connects them."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._votes = Votes(page.services.home)
        gr.HTML(
            '<p class="lead">A vote records which of two answers to the same prompt is better. Preference tuning (DPO, ORPO) '
            "trains on such pairs.</p>"
        )
        self.counts = gr.HTML(elem_id="votes-counts")
        with gr.Column(visible=False, elem_id="votes") as self.panel:
            self.with_cut_off = gr.Checkbox(
                label="Include cut-off answers",
                info="Pairs whose better answer hit the token limit train the model to stop there.",
                elem_id="votes-cut-off",
            )
            with gr.Row(elem_id="votes-buttons"):
                self.use_button = gr.Button(
                    "Use as dataset", variant="primary", scale=0, min_width=170, elem_id="votes-use"
                )
                self.delete_all = gr.Button("Delete all", scale=0, min_width=110, elem_id="votes-delete-all")
            self.confirm = Confirmation(
                "Delete votes", "Keep votes", elem_id="votes-confirm", yes_id="votes-really", no_id="votes-keep"
            )
            with gr.Row(elem_id="votes-pages"):
                self.newer = gr.Button("← Newer", size="sm", scale=0, min_width=90, elem_id="votes-newer")
                self.older = gr.Button("Older →", size="sm", scale=0, min_width=90, elem_id="votes-older")
                self.where = gr.HTML(elem_id="votes-where")
        self.status = gr.HTML(elem_id="votes-status")
        self.list = pick_list(elem_id="votes-list")
        self.number = gr.State(0)  # of the page
        self._change = gr.State({})
        self._outputs = [
            self.counts, self.panel, self.use_button, self.newer, self.older, self.where, self.list, self.number,
            self.confirm.panel,
        ]  # fmt: skip

    def wire(self, mode_event: Any) -> None:
        """Connect the events; the votes are read after each `mode_event`."""
        page, shown = self._page, [self.with_cut_off, self.number]
        for event in (mode_event.then, self.with_cut_off.input):
            event(self.show, shown, self._outputs, **QUICK)
        self.newer.click(lambda cut_off, number: self.show(cut_off, number - 1), shown, self._outputs, **QUICK)
        self.older.click(lambda cut_off, number: self.show(cut_off, number + 1), shown, self._outputs, **QUICK)
        self.list.click(self.pick, shown, [*self._outputs, self.status], **QUICK)
        self.confirm.wire(self.delete_all.click, self._ask, self.number)
        self.confirm.really.click(self.delete, self.with_cut_off, [*self._outputs, self.status], **QUICK)
        use_event = self.use_button.click(
            shown_as_message(self.use), self.with_cut_off, [self._change, self.status], trigger_mode="once", **SLOW
        )
        change_event = page.change_undoably_after(use_event, self._change)
        change_event.then(None, None, page.wants_data, js="() => String(Math.random())", **QUICK)
        page.open_tab(use_event, "data")

    def show(self, with_cut_off: bool, number: int = 0) -> Updates:
        """Return the counts and one page of the votes."""
        votes = self._votes.read()
        pairs = pairs_of_votes(votes.votes, with_cut_off=bool(with_cut_off))
        page = ListPage.at(int(number), len(votes.votes), view.VOTES_PER_PAGE)
        return {
            self.counts: view.render_counts(votes, pairs),
            self.panel: gr.update(visible=bool(votes.votes or votes.damaged_lines)),
            self.use_button: gr.update(interactive=bool(pairs.rows)),
            self.newer: gr.update(interactive=page.start > 0),
            self.older: gr.update(interactive=page.end < page.rows),
            self.where: page.position("vote", "the newest first"),
            self.list: view.render_votes(votes.votes, page),
            self.number: page.number,
            self.confirm.panel: gr.update(visible=False),
        }

    def use(self, with_cut_off: bool) -> Updates:
        """Write the pairs of the votes as a dataset, and choose it."""
        path, pairs = self._votes.snapshot(with_cut_off=bool(with_cut_off))
        return {self._change: with_source(str(path)), self.status: small(f"In use as {path.name}: {pairs.words}")}

    def pick(self, event: gr.EventData, with_cut_off: bool, number: int) -> Updates:
        """Ask at the first click, delete at the second."""
        pick = picked_value(event)
        if pick.startswith(_DELETE):
            votes = self._votes.read().votes
            page = ListPage.at(int(number), len(votes), view.VOTES_PER_PAGE)
            votes_html = view.render_votes(votes, page, pick.removeprefix(_DELETE))
            return {self.list: votes_html, self.status: ""}
        if not pick.startswith(_REALLY):
            return UNCHANGED
        return self.delete(with_cut_off, number, [pick.removeprefix(_REALLY)])

    def delete(self, with_cut_off: bool, number: int = 0, identifiers: list[str] | None = None) -> Updates:
        """Delete votes; all of them without identifiers."""
        try:
            words = small(f"{plural(self._votes.remove(identifiers), 'vote')} deleted.", role="status")
        except EngineError as error:
            words = error_box(error)
        return {**self.show(with_cut_off, number), self.status: words}

    def _ask(self, _number: int) -> tuple[str, str]:
        count = plural(len(self._votes.read().votes), "vote")
        return f"Delete {count}?", "Datasets made from them are kept."
