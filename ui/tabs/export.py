"""Export: the result of a run in the chosen format, verified, and listed with the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency
from pydantic import SecretStr

from engine.accounts.people import Action, require
from engine.config.results import ExportConfig, PushConfig
from engine.errors import EngineError, RunError
from engine.export.contract import ExportRecord, read_records
from engine.export.kinds import loads_in_transformers
from engine.runs.sharing import access_of
from ui.backend.background import stamp
from ui.backend.run_reader import FINAL, FINAL_WORDS, RunSnapshot
from ui.components import (
    HIDDEN,
    QUICK,
    SLOW,
    UNCHANGED,
    Updates,
    clear_error_after,
    look_after_start,
    nothing,
    pick_list,
    picked_value,
    script,
    shown_as_message,
    shown_in_place,
    visible_if,
)
from ui.form import section_by_titles
from ui.gradio_internals import Dropdown, Radio, enclosing_tab
from ui.page import Page
from ui.tabs.chat_choice import checkpoint_choices, checkpoint_of, chosen_place, offered_runs, work_place
from ui.tabs.export_formats import (
    ADAPTER,
    EXACT,
    FOLDERS,
    FORMS,
    GGUF,
    HUB,
    TEXTS,
    ArchivePart,
    ExportForms,
    TextPart,
    gguf_outlook,
    why_not,
)
from ui.views import export as view
from ui.views.html import empty, error_box, work_status

_STOPPED = "Stopped; nothing was written."
_GONE = "gone"


class ExportTab:
    """Lays out the Export tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self._page = page
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
            with gr.Row(elem_id="export-buttons") as self.buttons:
                self.start = gr.Button("Export", variant="primary", scale=0, min_width=150, elem_id="export-start")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="export-stop")
            self.status = gr.HTML(elem_id="export-status")
            self.result = gr.HTML(view.NO_EXPORTS, js_on_load=script("copy"), elem_id="export-result")
            self.archive = ArchivePart(page)
            self.use = gr.HTML(js_on_load=script("copy"), elem_id="export-use")
            self.before = pick_list(elem_id="export-before")
        self.number = gr.State(0)  # of the export that is shown, from the newest
        self.exports = gr.State(0)  # how many the page has seen
        self.last_stamp = gr.State("")
        self.turn = gr.Textbox("", visible=False)  # changes with run, checkpoint or format
        self.timer = gr.Timer(1.0, active=False)
        self._looking = [
            self.run, self.form, self.number, self.last_stamp, self.checkpoint, self.forms.folder, self.exports,
        ]  # fmt: skip
        self._state_outputs = [
            self.last_stamp, self.number, self.exports, self.status, self.start, self.stop, self.result, self.archive.panel,
            self.archive.download, self.use, self.before, self.forms.folder,
        ]  # fmt: skip
        self._format_outputs = [
            *self.forms.panels, self.text.panel, self.text.text, self.text.download, self.buttons, self.start,
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the events."""
        page, target = self._page, [self.run, self.checkpoint]
        page.rest_elsewhere(self._tab, self.timer)
        offer_outputs = [*target, self.empty, self.whole]
        offer_event = self._tab.select(self._offer, [page.chosen_run, self.run], offer_outputs, **QUICK)
        chosen = self.run.input(self._choose, self.run, [page.chosen_run, self.checkpoint], **QUICK)
        begin_outputs = [self.timer, self.last_stamp, self.number, self.status]
        for event in (offer_event, chosen, self.checkpoint.input(nothing, None, None, **QUICK)):
            self._take_turn(event.then(lambda: (gr.update(active=True), "", 0, ""), None, begin_outputs, **QUICK))
        self._take_turn(self.form.input(lambda: ("", ""), None, [self.last_stamp, self.status], **QUICK))
        # One chain of events, so the answer for the last choice also arrives last.
        propose_event = self.turn.change(
            self._propose, [*target, self.form], self.forms.folder, trigger_mode="always_last", **QUICK
        )
        self._look_after(propose_event.then(self._switch, [self.run, self.form], self._format_outputs, **QUICK))
        self.timer.tick(self.look, self._looking, self._state_outputs, trigger_mode="once", **QUICK)
        starting = [
            *target, self.form, self.where, self.forms.folder, self.forms.repository, *self.forms.settings.values(),
        ]  # fmt: skip
        start: Callable[..., str] = self._start
        if page.shared is not None:
            start, starting = self._start_with_token, [self.forms.token, *starting]
        start_event = self.start.click(shown_in_place(start), starting, self.status, trigger_mode="once", **SLOW)
        self._look_after(look_after_start(start_event, self.status, self.last_stamp))
        clear_error_after(self.status, starting)
        if page.shared is not None:
            start_event.then(lambda: "", None, self.forms.token, **QUICK)
        self.stop.click(shown_as_message(self._stop), self.run, None, **QUICK)
        self._look_after(self.before.click(self._pick, None, [self.number, self.last_stamp], **QUICK))
        self.archive.wire([self.run, self.number], self._shown_folder)

    def _take_turn(self, event: Dependency) -> None:
        """Propose a folder and redraw after an event that changed run, checkpoint or format."""
        event.then(None, None, self.turn, js="() => String(Math.random())", **QUICK)

    def _look_after(self, event: Dependency) -> None:
        event.then(self.look, self._looking, self._state_outputs, **QUICK)

    def _offer(self, chosen_run: str, current: str | None) -> Updates:
        choices, proposal = offered_runs(self._page.reader, chosen_run, current)
        checkpoint = {self.checkpoint: self._checkpoints(proposal)} if proposal is not None else {}
        return {
            self.run: gr.update(choices=choices, value=proposal),
            self.empty: visible_if(not choices),
            self.whole: visible_if(bool(choices)),
            **checkpoint,
        }

    def _choose(self, run_id: str) -> Updates:
        if not self._page.reader.exists(run_id):
            return UNCHANGED
        return {self._page.chosen_run: run_id, self.checkpoint: self._checkpoints(run_id)}

    def _checkpoints(self, run_id: str) -> Any:
        choices = checkpoint_choices(self._page.reader.observe(run_id))
        return gr.update(choices=choices, value=choices[0][1])

    def _observe(self, run_id: str | None) -> RunSnapshot:
        if not run_id:
            raise RunError("No run is chosen.", "Choose one above.")
        return self._page.reader.observe(run_id)

    def _propose(self, run_id: str | None, checkpoint: str | None, form: str) -> Any:
        if form not in (*FOLDERS, EXACT) or not self._page.reader.exists(run_id or ""):
            return UNCHANGED
        return self._new_folder(self._observe(run_id), checkpoint, form)

    def _new_folder(self, snapshot: RunSnapshot, checkpoint: str | None, form: str) -> str:
        name = checkpoint_of(checkpoint)
        title = snapshot.title if name is None else f"{snapshot.title}-{name}"
        return str(self._page.services.results.proposed_folder(title, form.split(" ")[0].lower()))

    def _switch(self, run_id: str | None, form: str) -> Updates:

        try:
            snapshot = self._observe(run_id)
        except EngineError:
            return UNCHANGED
        reason, is_text = why_not(form, snapshot.config), form in TEXTS
        outlook = ""
        if form == GGUF and snapshot.config is not None:
            outlook = gguf_outlook(snapshot.config, self._page.services.home)
        text = self.text.updates(form, snapshot) if is_text else {self.text.text: "", self.text.download: HIDDEN}
        return {
            **self.forms.updates(form, reason, outlook),
            **text,
            self.text.panel: visible_if(is_text),
            self.buttons: visible_if(not is_text and not reason),
            self.start: gr.update(value="Push" if form == HUB else "Export"),
        }

    def look(
        self, run_id: str | None, form: str, number: int, last_stamp: str, checkpoint: str | None = None,
        folder_name: str = "", exports: int = 0,
    ) -> Updates:  # fmt: skip
        """Return the export's progress and the selected export of this run; no updates if nothing changed.

        After an export, another folder is proposed.
        """
        try:
            snapshot = self._observe(run_id)
        except EngineError as error:
            return {self.last_stamp: _GONE, self.status: error_box(error)} if last_stamp != _GONE else UNCHANGED
        work = self._page.services.results.exporting.find(snapshot.run.id)
        records = read_records(snapshot.run.folder.path)
        # Show a new export, even if another one was picked.
        is_new = bool(last_stamp) and len(records) > exports
        number = 0 if is_new else min(number, max(0, len(records) - 1))
        now = stamp(snapshot.run.id, form, number, len(records), work.stamp if work else "")
        if now == last_stamp:
            return UNCHANGED
        working = work is not None and work.is_under_way
        record = records[number] if records else None
        folder = _folder_of(record)
        visible = form not in TEXTS
        shows_result = visible and not working
        updates: Updates = {
            self.last_stamp: now,
            self.number: number,
            self.exports: len(records),
            self.start: gr.update(interactive=not working),
            self.stop: gr.update(visible=working, interactive=not (work is not None and work.stopping)),
            self.result: "",
            self.archive.panel: visible_if(shows_result and folder is not None),
            self.archive.download: HIDDEN,
            self.use: self._use(snapshot, record, folder) if shows_result else "",
            self.before: view.render_records(records, number) if visible else "",
        }
        if shows_result:
            updates[self.result] = view.render_record(record) if record is not None else view.NO_EXPORTS
        # Without an active export, keep the error of the start.
        if visible and work is not None:
            updates[self.status] = work_status(work, _STOPPED)
        if is_new and folder is not None and Path(folder_name or "").name == folder.name:
            updates[self.forms.folder] = self._propose(run_id, checkpoint, form)
        return updates

    def _use(self, snapshot: RunSnapshot, record: ExportRecord | None, folder: Path | None) -> str:
        merges = snapshot.config is not None and snapshot.config.adapter.traits.mergeable
        terminal = view.render_command_line(snapshot.run.id, "merged" if merges else "adapter")
        if record is None or folder is None or not loads_in_transformers(record.kind):
            return terminal
        base = snapshot.config.model.id if snapshot.config is not None else ""
        return view.render_script(view.loading_script(folder, base)) + terminal

    def _shown_folder(self, run_id: str | None, number: int) -> Path:
        """Return the folder of the shown export, looked up in the run's own list."""
        records = read_records(self._observe(run_id).run.folder.path)
        folder = _folder_of(records[number] if 0 <= number < len(records) else None)
        if folder is None:
            raise RunError("The folder of this export no longer exists.", "Export it again.")
        return folder

    def _start_with_token(self, token: str | None, *chosen: Any) -> str:
        """Like `_start`, with the user's own token for a push, as labs require."""
        token_text = (token or "").strip()
        return self._start(*chosen, token=SecretStr(token_text) if token_text else None)

    def _start(
        self, run_id: str | None, checkpoint: str | None, form: str, where: str, folder_name: str, repository: str,
        *values: Any, token: SecretStr | None = None,
    ) -> str:  # fmt: skip
        snapshot = self._observe(run_id)
        reason = why_not(form, snapshot.config)
        if reason:
            raise RunError(reason, "Choose another format.")
        name = checkpoint_of(checkpoint)
        person = self._page.services.person
        require(person, Action.PUSH if form == HUB else Action.EXPORT, access_of(snapshot.run))
        settings, results = self.forms.settings_of(form, values), self._page.services.results
        if form == HUB:
            push = section_by_titles(PushConfig, settings)
            self._unload_idle_chat(needs_device=push.verify)
            work = results.publish(snapshot.run, name, (repository or "").strip(), push, token)
        else:
            proposal = self._new_folder(snapshot, checkpoint, form)
            folder = results.allowed_folder((folder_name or "").strip() or proposal)
            if form == EXACT:
                if snapshot.config is None:
                    raise RunError("This run's config.yaml cannot be read.", "Restore it from a copy.")
                work = results.write_script(snapshot.run, snapshot.config, folder)
            else:
                export = section_by_titles(ExportConfig, settings)
                self._unload_idle_chat(needs_device=export.verify)
                work = results.write(snapshot.run, name, folder, export, chosen_place(where))
        self._page.services.log("pushed" if form == HUB else "exported", snapshot.run.id)
        return work_status(work, _STOPPED)

    def _unload_idle_chat(self, *, needs_device: bool) -> None:
        # An idle chat would occupy the device.
        chat = self._page.services.chat
        if needs_device and chat.state.phase == "ready":
            chat.unload()

    def _stop(self, run_id: str | None) -> None:
        self._page.services.results.exporting.stop(self._observe(run_id).run.id)

    def _pick(self, event: gr.EventData) -> Updates:
        number = picked_value(event)
        return {self.number: int(number), self.last_stamp: ""} if number.isdigit() and len(number) < 6 else UNCHANGED


def _folder_of(record: ExportRecord | None) -> Path | None:
    if record is None or record.kind == "hub" or not Path(record.place).is_dir():
        return None
    return Path(record.place)
