"""One run on the Runs tab: all that the Train tab shows of it, its record, and what can be done with it."""

import contextlib
from typing import Any

import gradio as gr
from gradio.events import Dependency

from engine.errors import EngineError
from engine.runs.electricity import read_electricity
from engine.runs.notes import change_notes
from engine.runs.store import folder_size_bytes
from ui.errors import shown_as_message, trouble
from ui.page import Page
from ui.tabs.follow import FollowPart
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
            with gr.Column(visible=False, elem_id="confirm-delete") as self.confirm:
                self.warning = gr.HTML()
                with gr.Row():
                    self.really = gr.Button(
                        "Delete for good", variant="stop", scale=0, min_width=150, elem_id="really-delete"
                    )
                    self.keep = gr.Button("Keep it", scale=0, min_width=110)
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
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self.follow.wire()
        page.open_tab(self.to_train.click(lambda: None, None, None, **quick), "train")
        slow: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for button, configuration in ((self.duplicate, self.configuration), (self.train_on, self.continuation)):
            copied = button.click(shown_as_message(configuration), page.chosen_run, self._change, **slow)
            noted = copied.success(lambda run_id: run_id, page.chosen_run, page.copied_from, **quick)
            page.open_tab(page.fill_after(noted, self._change), "method")
        self.delete.click(self.ask_delete, page.chosen_run, [self.confirm, self.warning], **quick)
        self.keep.click(lambda: gr.update(visible=False), None, self.confirm, **quick)
        deleted = self.really.click(
            shown_as_message(self.delete_run),
            [page.chosen_run, compared],
            [page.chosen_run, compared, self.panel],
            trigger_mode="once", **slow,
        )  # fmt: skip
        saved = self.save.click(
            shown_as_message(self.save_notes), [page.chosen_run, self.name, self.tags, self.note], None, **quick
        )
        self.describe_after(saved)
        return saved, deleted

    def describe_after(self, event: Dependency) -> Dependency:
        """After an event that chose or changed a run: show it."""
        outputs = [
            self.panel, self.details, self.record, self.train_on, self.delete, self.confirm, self.name, self.tags,
            self.note,
        ]  # fmt: skip
        described = event.then(
            self.describe, self._page.chosen_run, outputs, show_progress="hidden", queue=False, api_visibility="private"
        )
        return self.follow.look_after(described)

    def describe(self, run_id: str) -> tuple[Any, ...]:
        """Facts and record of the picked run, and what can be done with it."""
        gone = gr.update(visible=False)
        reader = self._page.reader
        if not reader.exists(run_id):
            return gone, "", "", gone, gone, gone, "", "", ""
        try:
            observed = reader.observe(run_id)
            row = reader.summary(run_id)
            facts = render_run_details(observed, row, read_electricity(self._page.services.home))
            record = render_record(observed)
        except EngineError as error:
            return gr.update(visible=True), trouble(error), "", gone, gone, gone, "", "", ""
        can_delete = observed.state.is_final and not observed.resume_requested
        can_continue = observed.has_adapter and observed.config is not None and observed.config.adapter.method != "none"
        return (
            gr.update(visible=True),
            facts,
            record,
            gr.update(visible=can_continue),
            gr.update(visible=can_delete),
            gone,
            observed.title,
            ", ".join(observed.notes.tags),
            observed.notes.note,
        )

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

    def ask_delete(self, run_id: str) -> tuple[Any, Any]:
        """Say what would be lost, with its size."""
        try:
            observed = self._page.reader.observe(run_id)
        except EngineError as error:
            return gr.update(visible=True), trouble(error)
        freed = size(folder_size_bytes(observed.run.folder.path))
        words = f"Its adapter, checkpoints, curves and log, {freed} in all, are removed from the disk. Nothing brings them back."
        return gr.update(visible=True), f'<p class="notice">{words}</p>'

    def delete_run(self, run_id: str, compared: list[str]) -> tuple[Any, Any, Any]:
        """Remove it for good; refused while it waits or runs."""
        freed = self._page.services.runs.delete(run_id)
        self._page.reader.forget(run_id)
        gr.Info(f"Deleted; {size(freed)} are free again.", duration=5)
        return "", [other for other in compared if other != run_id], gr.update(visible=False)
