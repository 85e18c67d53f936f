"""One run on the Runs tab: all that the Train tab shows of it, its record, and what can be done with it."""

import contextlib
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.errors import EngineError
from engine.runs.electricity import read_electricity
from engine.runs.notes import change_notes
from engine.runs.store import folder_size_bytes
from ui.errors import shown_as_message, trouble
from ui.page import Page
from ui.tabs.runs.confirmation import Confirmation, render_question
from ui.tabs.train.follow import FollowPart
from ui.views.quantities import size
from ui.views.run_details import render_run_details
from ui.views.run_record import render_record


class OneRunPart:
    """Lays out the picked run below the table; hidden while none is picked."""

    def __init__(self, page: Page) -> None:
        self._page = page
        with gr.Column(visible=False, elem_id="run-details") as self.panel:
            self.follow = FollowPart(page, prefix="one-")
            with gr.Row(elem_id="run-actions"):
                self.to_train = gr.Button("Open in Train", scale=0, min_width=140, elem_id="run-to-train")
                self.duplicate = gr.Button("Duplicate into the form", scale=0, min_width=200, elem_id="run-duplicate")
                self.train_on = gr.Button("Train on from its adapter", scale=0, min_width=210, elem_id="run-train-on")
                self.delete = gr.Button("Delete …", scale=0, min_width=110, elem_id="run-delete")
            self.confirm = Confirmation(
                "Delete for good", "Keep it", elem_id="confirm-delete", yes_id="really-delete", no_id="keep-run"
            )
            self.details = gr.HTML(elem_id="run-facts")
            with gr.Accordion("Name, note and tags", open=False, elem_id="run-notes"):
                with gr.Row():
                    self.name = gr.Textbox(
                        label="Name", max_length=120, max_lines=1, elem_id="note-name", min_width=220
                    )
                    self.tags = gr.Textbox(
                        label="Tags", placeholder="separated by commas", max_lines=1, elem_id="note-tags", min_width=220
                    )
                self.note = gr.Textbox(label="Note", lines=2, max_lines=12, max_length=10_000, elem_id="note-text")
                self.save = gr.Button("Save", scale=0, min_width=110, elem_id="note-save")
            self.record = gr.HTML(elem_id="run-record")
        self._change = gr.State({})

    def wire(self, compared: gr.State) -> tuple[Dependency, Dependency]:
        """Connect the events; after the two that come back, a note or a deletion, the table is to be drawn again."""
        page, shown = self._page, self.follow.shown
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        for changed in self.follow.wire():
            changed.then(self.changed, shown, self._changing, **quick)
        wanted = self.to_train.click(lambda run_id: (run_id, True), shown, [page.chosen_run, page.wants_run], **quick)
        page.open_tab(wanted, "train")
        slow: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for button, configuration in ((self.duplicate, self.configuration), (self.train_on, self.continuation)):
            copied = button.click(_with_its_run(configuration), shown, [self._change, page.copied_from], **slow)
            page.open_tab(page.fill_after(copied, self._change), "method")
        self.confirm.wire(self.delete.click, self.ask_delete, shown)
        deleted = self.confirm.really.click(
            shown_as_message(self.delete_run),
            [shown, page.chosen_run, compared],
            [page.chosen_run, compared, self.panel, shown],
            trigger_mode="once", **slow,
        )  # fmt: skip
        saved = self.save.click(
            shown_as_message(self.save_notes), [shown, self.name, self.tags, self.note], None, **quick
        )
        saved.then(self.describe, shown, self._described, **quick)
        return saved, deleted

    def show_after(self, event: Dependency, *, again: bool) -> Dependency:
        """After an event that may have chosen a run: show it.

        Args:
            event: The event.
            again: Whether the run that is shown already may have changed meanwhile. What is typed stays either way.
        """
        return event.then(
            self._show_again if again else self.show,
            [self._page.chosen_run, *self.follow.look_inputs],
            [*self._described, *self.follow.outputs],
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )

    @property
    def _changing(self) -> list[Any]:
        """What changes with the run, as `changed` gives it."""
        return [self.details, self.record, self.train_on, self.delete, self.confirm.panel]

    @property
    def _described(self) -> list[Any]:
        return [self.panel, *self._changing, self.name, self.tags, self.note]

    def show(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, shown: str) -> tuple[Any, ...]:
        """All of a run, unless it is the one that is shown."""
        if run_id == shown:
            return (gr.skip(),) * (len(self._described) + len(self.follow.outputs))
        return self._show_again(run_id, smoothing, log_axis, log_open, shown)

    def _show_again(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, shown: str) -> tuple[Any, ...]:
        if run_id and run_id == shown and self._page.reader.exists(run_id):
            described = gr.update(visible=True), *self.changed(run_id), *(gr.skip(),) * 3
        else:
            described = self.describe(run_id)
        drawn = self.follow.look(run_id, smoothing, log_axis, log_open, shown)
        return *described, *drawn[: len(self.follow.outputs)]

    def describe(self, run_id: str) -> tuple[Any, ...]:
        """The picked run, with what a person wrote about it."""
        if not self._page.reader.exists(run_id):
            gone = gr.update(visible=False)
            return gone, "", "", gone, gone, gone, "", "", ""
        # A question about another run goes with it.
        changing = (*self.changed(run_id)[:-1], gr.update(visible=False))
        try:
            observed = self._page.reader.observe(run_id)
        except EngineError:
            return gr.update(visible=True), *changing, "", "", ""
        notes = observed.notes
        return gr.update(visible=True), *changing, observed.title, ", ".join(notes.tags), notes.note

    def changed(self, run_id: str) -> tuple[Any, ...]:
        """Facts and record of a run, and what can be done with it now; a question about what cannot goes."""
        gone, reader = gr.update(visible=False), self._page.reader
        try:
            observed = reader.observe(run_id)
            facts = render_run_details(observed, reader.summary(run_id), read_electricity(self._page.services.home))
            record = render_record(observed)
        except EngineError as error:
            return trouble(error), "", gone, gone, gone
        can_delete = observed.state.is_final and not observed.resume_requested
        can_continue = (
            observed.has_adapter and observed.config is not None and not observed.config.adapter.traits.trains_all
        )
        asked = gr.skip() if can_delete else gone
        return facts, record, gr.update(visible=can_continue), gr.update(visible=can_delete), asked

    def configuration(self, run_id: str) -> dict[str, Any]:
        """The run's saved settings for the form, without its name."""
        config = self._page.services.runs.get(run_id).folder.read_config()
        # Where the model cannot be read the Model tab says so; the settings are copied all the same.
        with contextlib.suppress(EngineError):
            self._page.services.shapes.learn(config.model)
        mapping = config.model_dump(mode="json")
        return {**mapping, "run": {**mapping["run"], "name": ""}}

    def continuation(self, run_id: str) -> dict[str, Any]:
        """The same settings, beginning with the weights that this run has learned."""
        mapping = self.configuration(run_id)
        return {**mapping, "adapter": {**mapping["adapter"], "warm_start": run_id}}

    def save_notes(self, run_id: str, name: str, tags: str, note: str) -> None:
        """Keep what a person wrote; a name that is the run's own is no name of a person's."""
        observed = self._page.reader.observe(run_id)
        name = (name or "").strip()
        if name == observed.title and not observed.notes.name:
            name = ""
        change_notes(observed.run.folder, name=name, note=note or "", tags=tuple((tags or "").split(",")))
        self._page.reader.look_again()
        gr.Info("Saved.", duration=3)

    def ask_delete(self, run_id: str) -> str:
        """The question before a run is deleted: what would be lost, with its size."""
        observed = self._page.reader.observe(run_id)
        freed = size(folder_size_bytes(observed.run.folder.path))
        words = (
            f"would be deleted: its adapter, checkpoints, curves and log, {freed} in all, are removed from the disk. "
            "Nothing brings them back."
        )
        return render_question(observed.title, words)

    def delete_run(self, run_id: str, chosen: str, compared: list[str]) -> tuple[Any, Any, Any, str]:
        """Remove it for good; refused while it waits or runs."""
        freed = self._page.services.runs.delete(run_id)
        self._page.reader.forget(run_id)
        gr.Info(f"Deleted; {size(freed)} are free again.", duration=5)
        others = [other for other in compared if other != run_id]
        return "" if chosen == run_id else gr.skip(), others, gr.update(visible=False), ""


def _with_its_run(configuration: Callable[[str], dict[str, Any]]) -> Callable[[str], tuple[dict[str, Any], str]]:
    """A run's settings together with its id: another one may be picked while its model is looked up."""

    def copy(run_id: str) -> tuple[dict[str, Any], str]:
        return configuration(run_id), run_id

    return shown_as_message(copy)
