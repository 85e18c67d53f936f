"""Export: the result of a run in the chosen format, verified, and listed with the run."""

from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import SecretStr

from loratory.engine.accounts.people import Action, require
from loratory.engine.config.results import ExportConfig, PushConfig
from loratory.engine.errors import RunError
from loratory.engine.evaluation.server_check import ServerCheckConfig, read_check
from loratory.engine.export.contract import ExportRecord, read_records
from loratory.engine.export.kinds import loads_in_transformers
from loratory.engine.lab.rules import access_of
from loratory.ui import components as ui
from loratory.ui.backend.run_reader import FINAL, FINAL_WORDS, RunSnapshot
from loratory.ui.form import section_by_titles
from loratory.ui.gradio_internals import Dropdown, Radio, enclosing_tab
from loratory.ui.page import Page
from loratory.ui.polls import JobPanel
from loratory.ui.tabs.chat_choice import checkpoint_choices, checkpoint_of, offered_runs
from loratory.ui.tabs.export_formats import (
    ADAPTER,
    EXACT,
    FOLDERS,
    FORMS,
    HUB,
    SERVER,
    TEXTS,
    ArchivePart,
    ExportForms,
    TextPart,
    config_of,
    precision_outlook,
    why_not,
)
from loratory.ui.tabs.run_place import chosen_place, work_place
from loratory.ui.views import run_details as view
from loratory.ui.views.html import empty


class ExportTab:
    """Lays out the Export tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._tab = enclosing_tab()
        gr.HTML(
            '<h2>Export</h2><p class="lead">The result of a run works without Loratory. Every export is loaded again and '
            "compared with the run, logit by logit.</p>"
        )
        nothing_yet = empty("Nothing to export yet", "Runs appear here once they complete, or are stopped and saved.")
        self.empty = gr.HTML(nothing_yet, elem_id="export-empty")
        with gr.Column(visible=False, elem_id="export") as self.whole:
            with gr.Row(elem_id="export-what"):
                self.run = Dropdown([], label="Run", scale=3, min_width=260, elem_id="export-run")
                self.checkpoint = Dropdown(
                    [(FINAL_WORDS, FINAL)], value=FINAL, label="Checkpoint", scale=2, min_width=180,
                    elem_id="export-checkpoint",
                )  # fmt: skip
            self.form = Radio(
                list(FORMS), value=ADAPTER, label="Format", show_label=False, container=False, elem_id="export-form"
            )
            self.forms = ExportForms(asks_token=page.shared is not None)
            self.text = TextPart(page)
            self.where = work_place(page.services, elem_id="export-where")
            self.job = JobPanel(
                page.services.results.exporting, "Export", "Stopped; nothing was written.", name="export", seconds=1.0,
                watch=self._count_exports,
            )  # fmt: skip
            self.result = gr.HTML(view.NO_EXPORTS, js_on_load=ui.script("copy"), elem_id="export-result")
            self.archive = ArchivePart(page)
            self.use = gr.HTML(js_on_load=ui.script("copy"), elem_id="export-use")
            self.before = ui.pick_list(elem_id="export-before")
        self.number = gr.State(0)  # of the export that is shown, from the newest
        self.exports = gr.State(0)  # how many the page has seen
        self.turn = gr.Textbox("", visible=False)  # changes with run, checkpoint or format
        self._outputs = [
            self.number, self.exports, self.result, self.archive.panel, self.archive.download, self.use, self.before,
            self.forms.folder, *self.job.outputs,
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the events."""
        page, target, forms, job = self.page, [self.run, self.checkpoint], self.forms, self.job
        selection = [*target, self.form, self.number]
        offer_event = gr.on(
            [self._tab.select, page.wants_result.change], self.offer, [page.chosen_run, self.run],
            [*target, self.number, self.empty, self.whole], **ui.LATEST,
        )  # fmt: skip
        chosen = self.run.input(self.choose, self.run, [page.chosen_run, self.checkpoint, self.number], **ui.QUICK)
        for event in (
            offer_event, chosen, self.checkpoint.input(lambda: 0, None, self.number, **ui.QUICK),
            self.form.input(ui.nothing, None, None, **ui.QUICK),
        ):  # fmt: skip
            event.then(None, None, self.turn, js="() => String(Math.random())", **ui.QUICK)
        # One event for all choices, so the answer for the last one also arrives last.
        formats = [*forms.panels, self.text.panel, self.text.text, self.text.download, job.buttons]
        self.turn.change(job.shown_in_status(self.show), selection, [*formats, *self._outputs], **ui.LATEST)
        refreshing = [*selection, forms.folder, self.exports]
        job.changed(job.shown_in_status(self.refresh), refreshing, self._outputs, **ui.QUICK)
        starting = [*selection, self.where, forms.folder, forms.repository, forms.token, *forms.settings.values()]
        job.start_by(self.start, starting, self._outputs, secret=forms.token)
        job.stop.click(job.end, self.run, job.outputs, **ui.QUICK)
        self.before.click(job.shown_in_status(self.pick), [self.run, self.form], self._outputs, **ui.QUICK)
        self.archive.wire([self.run, self.number], self.shown_folder)

    def offer(self, chosen_run: str, current: str | None) -> ui.Updates:
        """Return the runs with a result; the chosen one is preselected."""
        choices, proposal = offered_runs(self.page.reader, chosen_run, current)
        checkpoint = {self.checkpoint: self._checkpoints(proposal)} if proposal is not None else {}
        return {
            self.run: gr.update(choices=choices, value=proposal),
            self.number: 0,
            self.empty: ui.visible_if(not choices),
            self.whole: ui.visible_if(bool(choices)),
            **checkpoint,
        }

    def choose(self, run_id: str) -> ui.Updates:
        """Return the checkpoints of a run."""
        if not self.page.reader.exists(run_id):
            return ui.UNCHANGED
        return {self.page.chosen_run: run_id, self.checkpoint: self._checkpoints(run_id), self.number: 0}

    def _checkpoints(self, run_id: str) -> Any:
        choices = checkpoint_choices(self.page.reader.observe(run_id))
        return gr.update(choices=choices, value=choices[0][1])

    def _observe(self, run_id: str | None) -> RunSnapshot:
        if not run_id:
            raise RunError("No run is chosen.", "Choose one above.")
        return self.page.reader.observe(run_id)

    def _count_exports(self, run_id: str) -> int:
        return len(read_records(self._observe(run_id).run.folder.path)) if self.page.reader.exists(run_id) else 0

    def _propose(self, snapshot: RunSnapshot, checkpoint: str | None, form: str) -> str:
        """Return a new folder."""
        name = checkpoint_of(checkpoint)
        title = snapshot.title if name is None else f"{snapshot.title}-{name}"
        return str(self.page.services.results.proposed_folder(title, form.split(" ")[0].lower()))

    def show(self, run_id: str | None, checkpoint: str | None, form: str, number: int) -> ui.Updates:
        """Return the settings of a format for a run, or its text, and the selected export of this run."""
        snapshot = self._observe(run_id)
        reason, is_text = why_not(form, snapshot.config), form in TEXTS
        outlook, records = "", read_records(snapshot.run.folder.path)
        if snapshot.config is not None:
            outlook = precision_outlook(form, snapshot.config, records, self.page.services.home)
        text = self.text.updates(form, snapshot) if is_text else {self.text.text: "", self.text.download: ui.HIDDEN}
        folder = self._propose(snapshot, checkpoint, form) if form in (*FOLDERS, EXACT) else ui.UNCHANGED
        return {
            **self._state(snapshot, form, number, checkpoint),
            **self.forms.updates(form, reason, outlook),
            **text,
            self.text.panel: ui.visible_if(is_text),
            self.job.buttons: ui.visible_if(not is_text and not reason),
            self.forms.folder: folder,
        }

    def refresh(
        self, run_id: str | None, checkpoint: str | None, form: str, number: int, folder_name: str, exports: int
    ) -> ui.Updates:
        """Return the progress of an export; a new one is shown, even if another was picked, and gets another folder."""
        snapshot = self._observe(run_id)
        records = read_records(snapshot.run.folder.path)
        if len(records) <= exports:
            return self._state(snapshot, form, number, checkpoint)
        updates, folder = self._state(snapshot, form, 0, checkpoint), _folder_of(records[0])
        if folder is not None and Path(folder_name or "").name == folder.name and form in (*FOLDERS, EXACT):
            updates[self.forms.folder] = self._propose(snapshot, checkpoint, form)
        return updates

    def _state(self, snapshot: RunSnapshot, form: str, number: int, checkpoint: str | None = None) -> ui.Updates:
        visible = form not in TEXTS
        updates = self.job.follow(snapshot.run.id if visible else None)
        records = read_records(snapshot.run.folder.path) if form != SERVER else []
        work = self.page.services.results.exporting.find(snapshot.run.id)
        shows_result = visible and not (work is not None and work.is_under_way)
        number = max(0, min(number, len(records) - 1))
        record = records[number] if records else None
        folder, result = _folder_of(record), ""
        if shows_result:
            result = view.render_export(record) if record is not None else view.NO_EXPORTS
            if form == SERVER:
                result = view.render_server_check(read_check(snapshot.run.folder.path, checkpoint_of(checkpoint)))
        updates[self.job.start]["value"] = _BUTTONS.get(form, "Export")
        return {
            **updates,
            self.number: number,
            self.exports: len(records),
            self.result: result,
            self.archive.panel: ui.visible_if(shows_result and folder is not None),
            self.archive.download: ui.HIDDEN,
            self.use: self._use(snapshot, record, folder, form) if shows_result and form != SERVER else "",
            self.before: view.render_exports(records, number) if visible else "",
        }

    def _use(self, snapshot: RunSnapshot, record: ExportRecord | None, folder: Path | None, form: str) -> str:
        merges = snapshot.config is not None and snapshot.config.adapter.traits.mergeable
        kind = FOLDERS[form].name if form in FOLDERS and not why_not(form, snapshot.config) else ""
        terminal = view.render_command_line(snapshot.run.id, kind or ("merged" if merges else "adapter"))
        if record is None or folder is None or not loads_in_transformers(record.kind):
            return terminal
        base = snapshot.config.model.id if snapshot.config is not None else ""
        return view.render_script(view.loading_script(folder, base)) + terminal

    def shown_folder(self, run_id: str | None, number: int) -> Path:
        """Return the folder of the shown export, looked up in the run's own list."""
        records = read_records(self._observe(run_id).run.folder.path)
        folder = _folder_of(records[number] if 0 <= number < len(records) else None)
        if folder is None:
            raise RunError("The folder of this export no longer exists.", "Export it again.")
        return folder

    def start(
        self, run_id: str | None, checkpoint: str | None, form: str, number: int, where: str, folder_name: str,
        repository: str, token: str | None, *values: Any,
    ) -> ui.Updates:  # fmt: skip
        """Start an export."""
        snapshot, services = self._observe(run_id), self.page.services
        results = services.results
        reason = why_not(form, snapshot.config)
        if reason:
            raise RunError(reason, "Choose another format.")
        name, run, is_push = checkpoint_of(checkpoint), snapshot.run, form == HUB
        require(services.person, Action.PUSH if is_push else Action.EXPORT, access_of(run))
        settings = self.forms.settings_of(form, values)
        results.exporting.require_none(run.id)
        if form == SERVER:
            check = section_by_titles(ServerCheckConfig, settings)
            services.free_device()
            results.check_server(run, name, check)
            return self._state(snapshot, form, number, checkpoint)
        if is_push:
            push, secret = section_by_titles(PushConfig, settings), (token or "").strip()
            if push.verify:
                services.free_device()
            results.publish(run, name, (repository or "").strip(), push, SecretStr(secret) if secret else None)
        else:
            folder = results.allowed_folder((folder_name or "").strip() or self._propose(snapshot, checkpoint, form))
            if form == EXACT:
                results.write_script(run, config_of(snapshot), folder)
            else:
                export, place = section_by_titles(ExportConfig, settings), chosen_place(where)
                if export.verify:
                    services.free_device(place)
                results.write(run, name, folder, export, place)
        services.log("pushed" if is_push else "exported", run.id)
        return self._state(snapshot, form, number)

    def pick(self, event: gr.EventData, run_id: str | None, form: str) -> ui.Updates:
        """Show another export of the run."""
        number = ui.picked_value(event)
        if not number.isdigit() or len(number) >= 6:
            return ui.UNCHANGED
        return self._state(self._observe(run_id), form, int(number))


_BUTTONS = {HUB: "Push", SERVER: "Check"}


def _folder_of(record: ExportRecord | None) -> Path | None:
    if record is None or record.kind == "hub" or not Path(record.location).is_dir():
        return None
    return Path(record.location)
