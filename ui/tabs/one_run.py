"""One run on the Runs tab: the view of the Train tab, its record, and its actions."""

import contextlib
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.components.base import Component
from gradio.events import Dependency

from loratory.engine.accounts.people import Action, may
from loratory.engine.data.workshop.sets import news_of_set
from loratory.engine.errors import EngineError, RunError
from loratory.engine.lab.rules import access_of, is_shared, set_shared
from loratory.engine.runs.control import RunNotes, change_notes
from loratory.engine.runs.projects import save_project_tests
from loratory.engine.runs.run import Run
from loratory.engine.runs.store import folder_size_bytes
from loratory.engine.runs.usage import read_electricity
from loratory.ui import components as ui
from loratory.ui.backend.run_reader import has_adapter
from loratory.ui.gradio_internals import Dropdown
from loratory.ui.page import Page, request_view
from loratory.ui.tabs.follow import FollowPart
from loratory.ui.views.html import error_box, size
from loratory.ui.views.run_details import render_record, render_run_details

_CLOSE = f"() => [({ui.NOT_SHOWN})(), '', '']"


class OneRunPart:
    """Lays out the picked run over part of the table; hidden if none is picked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        with gr.Column(visible=False, elem_id="run-details") as self.panel:
            self.close = gr.Button("Close", size="sm", scale=0, min_width=80, elem_id="run-close")
            self.follow = FollowPart(page, prefix="one-")
            self.details = gr.HTML(elem_id="run-facts", js_on_load=ui.script("escape"))
            with gr.Accordion("Note, tags and project", open=False, elem_id="run-notes"):
                with gr.Row():
                    self.project = Dropdown(
                        [], label="Project", allow_custom_value=True, elem_id="note-project", min_width=220
                    )
                    self.tags = gr.Textbox(
                        label="Tags", placeholder="separated by commas", max_lines=1, elem_id="note-tags", min_width=220
                    )
                self.note = gr.Textbox(label="Note", lines=2, max_lines=12, max_length=10_000, elem_id="note-text")
                self.save = gr.Button("Save", scale=0, min_width=110, elem_id="note-save")
                self.attach = gr.Button("Attach test sets", scale=0, min_width=160, elem_id="note-attach")
            self.record = gr.HTML(elem_id="run-record")
            # Last: sticks to the bottom of the panel.
            with gr.Column(elem_id="run-foot"):
                with gr.Row(elem_id="run-actions"):
                    self.to_train = gr.Button("Open in Train", scale=0, min_width=140, elem_id="run-to-train")
                    self.duplicate = gr.Button("Copy settings", scale=0, min_width=150, elem_id="run-duplicate")
                    label = "Continue from this adapter"
                    self.continuing = gr.Button(label, scale=0, min_width=230, elem_id="run-train-on")
                    if page.shared is not None:
                        self.share = gr.Button("Share with the lab", scale=0, min_width=180, elem_id="run-share")
                    self.delete = gr.Button("Delete …", scale=0, min_width=110, elem_id="run-delete")
                self.confirm = ui.Confirmation(
                    "Delete run", "Keep run", ("confirm-delete", "really-delete", "keep-run")
                )
        self._changing = [self.details, self.record, self.continuing, self.delete, self.confirm.panel]
        if page.shared is not None:
            self._changing.append(self.share)
        self._details = [self.panel, *self._changing, self.project, self.tags, self.note]

    def wire(self, ticked_runs: gr.State) -> tuple[Dependency, ...]:
        """Connect the events; return those that change the table: notes, a new name or star, and a deletion."""
        page, run_shown = self.page, self.follow.run_shown
        self._ticked_runs = ticked_runs
        for event in self.follow.wire():
            event.then(self.redraw, run_shown, self._changing, **ui.QUICK)
        # In the browser: a slow answer would hide a run that was picked meanwhile.
        self.close.click(None, None, [self.panel, run_shown, self.follow.live], js=_CLOSE, **ui.QUICK)
        train = [page.chosen_run, page.wants_run]
        train_event = self.to_train.click(lambda run_id: (run_id, request_view("follow")), run_shown, train, **ui.QUICK)
        page.open_tab(train_event, "train")
        self.copy_by(self.duplicate.click, self.follow.configuration, run_shown)
        self.copy_by(self.continuing.click, self.continuation, run_shown)
        self.confirm.wire(self.delete.click, self.deletion_question, run_shown)
        delete_event = self.confirm.really.click(
            ui.shown_as_message(self.delete_run), [run_shown, page.chosen_run, ticked_runs],
            [page.chosen_run, ticked_runs, self.panel, run_shown], **ui.ONCE,
        )  # fmt: skip
        if page.shared is not None:
            shared = self.share.click(ui.shown_as_message(self.change_sharing), run_shown, None, **ui.QUICK)
            shared.then(self.redraw, run_shown, self._changing, **ui.QUICK)
        notes = [run_shown, self.project, self.tags, self.note]
        self.attach.click(ui.shown_as_message(self.attach_tests), [run_shown, self.project], None, **ui.SLOW)
        save_event = self.save.click(ui.shown_as_message(self.save_notes), notes, None, **ui.SLOW)
        save_event.then(self.describe, run_shown, self._details, **ui.QUICK)
        return save_event, self.follow.edit_event, delete_event

    def copy_by(self, click: Any, read: Callable[[str], dict[str, Any]], run: Component | None = None) -> None:
        """Fill the form with what `read` returns of a run, by default the picked run, and open the Method tab."""

        def copy(event: gr.EventData, run_id: str = "") -> tuple[dict[str, Any], str]:
            run_id = run_id or ui.picked_value(event)
            return read(run_id), run_id  # with its id: another run may be picked during the look-up of the model

        copy_event = click(ui.shown_as_message(copy), run, [self.page.settings_copy, self.page.copied_from], **ui.SLOW)
        self.page.open_tab(self.page.fill_after(copy_event, self.page.settings_copy, "Settings copied"), "method")

    @property
    def outputs(self) -> list[Component]:
        """What `show` may change."""
        return [*self._details, *self.follow.outputs]

    def refresh_after(self, event: Dependency) -> Dependency:
        """Redraw the shown run after an event that may have changed it."""

        def refresh(smoothing: float, log_axis: bool, log_open: bool, run_shown: str) -> ui.Updates:
            if not run_shown:
                return ui.UNCHANGED
            updates = self.show(run_shown, smoothing, log_axis, log_open, run_shown)
            if self.page.reader.exists(run_shown):
                updates.pop(self.panel)  # it is open; an answer that comes late must not open what was closed meanwhile
            return updates

        return event.then(refresh, self.follow.view_inputs, self.outputs, **ui.QUICK)

    def show(self, run_id: str, smoothing: float, log_axis: bool, log_open: bool, run_shown: str) -> ui.Updates:
        """Return all updates for a picked run; if it is shown already, edits of its notes stay."""
        is_shown = run_id == run_shown and self.page.reader.exists(run_id)
        updates = {self.panel: gr.update(visible=True), **self.redraw(run_id)} if is_shown else self.describe(run_id)
        return {**updates, **self.follow.show(run_id, smoothing, log_axis, log_open, run_shown)}

    def describe(self, run_id: str) -> ui.Updates:
        """Return the picked run with its notes."""
        if not self.page.reader.exists(run_id):
            parts = (self.panel, self.continuing, self.delete, self.confirm.panel)
            texts = (self.details, self.record, self.project, self.tags, self.note)
            return {**dict.fromkeys(parts, ui.HIDDEN), **dict.fromkeys(texts, "")}
        notes, projects = RunNotes(), {row.project for row in self.page.reader.glance().rows}
        with contextlib.suppress(EngineError):
            notes = self.page.reader.observe(run_id).notes
        return {
            **self.redraw(run_id),
            self.panel: gr.update(visible=True),
            self.confirm.panel: ui.HIDDEN,  # it may be about another run
            self.project: gr.update(value=notes.project, choices=sorted(projects - {""})),
            self.tags: ", ".join(notes.tags),
            self.note: notes.note,
        }

    def redraw(self, run_id: str) -> ui.Updates:
        """Return facts, record and available actions of a run; closes the deletion question if it no longer applies."""
        reader, home = self.page.reader, self.page.services.home
        try:
            snapshot = reader.observe(run_id)
            news = news_of_set(snapshot.config.dataset.source, home) if snapshot.config is not None else ""
            facts = render_run_details(snapshot, reader.summary(run_id), read_electricity(home), news)
            record = render_record(snapshot)
        except EngineError as error:
            hidden_parts = dict.fromkeys((self.continuing, self.delete, self.confirm.panel), ui.HIDDEN)
            return {self.details: error_box(error), self.record: "", **hidden_parts}
        can_delete = snapshot.state.is_final and not snapshot.resume_requested
        config = snapshot.config
        can_continue = has_adapter(snapshot.run) and config is not None and not config.adapter.traits.trains_all
        return {
            self.details: facts,
            self.record: record,
            self.continuing: ui.visible_if(can_continue),
            self.delete: ui.visible_if(can_delete),
            self.confirm.panel: ui.UNCHANGED if can_delete else ui.HIDDEN,
            **self._sharing(snapshot.run),
        }

    def _sharing(self, run: Run) -> ui.Updates:
        person = self.page.services.person
        if person is None:
            return {}
        access = access_of(run)
        label = "Stop sharing" if access.is_shared else "Share with the lab"
        return {self.share: gr.update(value=label, visible=may(person, Action.SHARE, access))}

    def change_sharing(self, run_id: str) -> None:
        """Share a run with the lab, or stop sharing it."""
        person, shared = self.page.services.person, self.page.shared
        assert person is not None
        assert shared is not None
        run = self.page.services.runs.get(run_id)
        set_shared(run, person, not is_shared(run.folder), shared.audit)

    def continuation(self, run_id: str) -> dict[str, Any]:
        """Return the same settings, starting from the adapter of this run."""
        mapping = self.follow.configuration(run_id)
        return {**mapping, "adapter": {**mapping["adapter"], "warm_start": run_id}}

    def save_notes(self, run_id: str, project: str, tags: str, note: str) -> None:
        """Save a run's notes, and file it under a project."""
        folder = self.page.services.runs.get(run_id).folder
        change_notes(folder, project=str(project or ""), note=note or "", tags=tuple((tags or "").split(",")))
        self.page.reader.invalidate()
        gr.Info("Saved.", duration=3)

    def attach_tests(self, run_id: str, project: str) -> None:
        """Let every new run of a project answer the test sets of this run."""
        store, name = self.page.services.runs, str(project or "")
        tests = store.get(run_id).folder.read_config().evaluation.tests
        if not tests:
            raise RunError("This run has no test sets.", "Pick one that has evaluation.tests in its settings.")
        save_project_tests(store, name, tests)
        gr.Info(f"New runs of {name} answer {', '.join(test.title for test in tests)} once they are complete.")

    def deletion_question(self, run_id: str) -> tuple[str, str]:
        """Return the run's title and the question before it is deleted, with its size."""
        snapshot = self.page.reader.observe(run_id)
        size_words = size(folder_size_bytes(snapshot.run.folder.path))
        effect = f"will be deleted: adapter, checkpoints, curves and log, {size_words} in all. This cannot be undone."
        return snapshot.label, effect

    def delete_run(self, run_id: str, chosen: str, ticked_ids: list[str]) -> ui.Updates:
        """Delete a run; refused while it waits or runs."""
        run = self.page.services.runs.get(run_id)
        freed_bytes = self.page.services.runs.delete(run.id)
        self.page.services.log("run deleted", run.id)
        self.page.reader.forget(run_id)
        gr.Info(f"Deleted; {size(freed_bytes)} freed.", duration=5)
        return {
            self.page.chosen_run: "" if chosen == run_id else ui.UNCHANGED,
            self._ticked_runs: [other for other in ticked_ids if other != run_id],
            self.panel: ui.HIDDEN,
            self.follow.run_shown: "",
        }
