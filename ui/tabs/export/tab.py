"""Export: the result of a run taken away in the form that is wanted, verified, and listed with the run."""

from pathlib import Path
from typing import Any

import gradio as gr

from engine.chat.target import list_checkpoints
from engine.config.export import ExportConfig
from engine.config.load import section_from_mapping
from engine.config.push import PushConfig
from engine.errors import EngineError, RunError
from engine.export.kinds import loads_in_transformers
from engine.export.records import ExportRecord, read_records
from ui.backend.run_reader import ObservedRun, can_be_talked_to
from ui.components import Dropdown, Radio
from ui.errors import shown_as_message, shown_in_place, trouble
from ui.page import Page
from ui.pick import pick_list, picked
from ui.tabs.chat.choice import FINAL, FINAL_WORDS
from ui.tabs.export.archive import COPY_SCRIPT, ArchivePart
from ui.tabs.export.forms import ADAPTER, FORMS, GGUF, HUB, MERGED, TEXTS, ExportForms, why_not
from ui.tabs.export.text import TextPart
from ui.views.adapter_files import loading_script, render_command_line, render_script
from ui.views.export_result import NOTHING_MADE, render_record, render_records
from ui.views.run_choice import run_choices
from ui.views.work import render_work, stamp_of

_LEAD = (
    '<h2>Take it away</h2><p class="lead">What a run trained belongs to you and works without Loratory. Whatever is '
    "written is loaded again and compared with the run, logit by logit and answer by answer.</p>"
)
_EMPTY = (
    '<div class="empty"><b>Nothing to take away yet</b>The result of a run appears here as soon as the run has completed, '
    "or was stopped and saved.</div>"
)
_STOPPED = "Stopped; nothing of it is left."
_REFRESH_SECONDS = 1.0


class ExportTab:
    """Lays out the Export tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        gr.HTML(_LEAD)
        self.empty = gr.HTML(_EMPTY, elem_id="export-empty")
        with gr.Column(visible=False, elem_id="export") as self.whole:
            with gr.Row(elem_id="export-what"):
                self.run = Dropdown([], label="Run", scale=3, min_width=260, elem_id="export-run")
                self.checkpoint = Dropdown(
                    [(FINAL_WORDS, FINAL)], value=FINAL, label="Which state of it", scale=2, min_width=180,
                    elem_id="export-checkpoint",
                )  # fmt: skip
            self.form = Radio(list(FORMS), value=ADAPTER, show_label=False, container=False, elem_id="export-form")
            self.forms = ExportForms(page)
            self.text = TextPart(page)
            with gr.Row(elem_id="export-buttons") as self.buttons:
                self.start = gr.Button("Write it", variant="primary", scale=0, min_width=150, elem_id="export-start")
                self.stop = gr.Button("Stop", scale=0, min_width=100, visible=False, elem_id="export-stop")
            self.standing = gr.HTML(elem_id="export-standing")
            self.result = gr.HTML(NOTHING_MADE, js_on_load=COPY_SCRIPT, elem_id="export-result")
            self.archive = ArchivePart(page)
            self.use = gr.HTML(js_on_load=COPY_SCRIPT, elem_id="export-use")
            self.before = pick_list(elem_id="export-before")
        self._shown_record = gr.State(0)
        self._stamp = gr.State("")
        self.timer = gr.Timer(_REFRESH_SECONDS, active=False)

    @property
    def _looked(self) -> list[Any]:
        return [
            self._stamp, self._shown_record, self.standing, self.start, self.stop, self.result, self.archive.panel,
            self.archive.download, self.use, self.before, self.forms.folder,
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the events."""
        page = self._page
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        target = [self.run, self.checkpoint]
        looking = [self.run, self.form, self._shown_record, self._stamp, self.checkpoint, self.forms.folder]
        gr.on(page.elsewhere(self._tab), lambda: gr.update(active=False), None, self.timer, **quick)
        listed = self._tab.select(
            self._offer, [page.chosen_run, self.run], [self.run, self.checkpoint, self.empty, self.whole], **quick
        )
        chosen = self.run.input(self._choose, self.run, [page.chosen_run, self.checkpoint], **quick)
        for event in (listed, chosen, self.checkpoint.input(lambda: None, None, None, **quick)):
            proposed = event.then(self._propose, [*target, self.form], self.forms.proposed, **quick)
            anew = proposed.then(
                lambda: (gr.update(active=True), "", 0, ""),
                None,
                [self.timer, self._stamp, self._shown_record, self.standing],
                **quick,
            )
            drawn = anew.then(self._switch, [self.run, self.form], self._switched, **quick)
            drawn.then(self.look, looking, self._looked, **quick)
        switched = self.form.input(self._propose, [*target, self.form], self.forms.proposed, **quick)
        switched = switched.then(self._switch, [self.run, self.form], self._switched, **quick)
        cleared = switched.then(lambda: ("", ""), None, [self._stamp, self.standing], **quick)
        cleared.then(self.look, looking, self._looked, **quick)
        self.timer.tick(self.look, looking, self._looked, trigger_mode="once", **quick)
        started = self.start.click(
            shown_in_place(self._start), [*target, self.form, *self.forms.inputs], self.standing, trigger_mode="once",
            show_progress="hidden", api_visibility="private",
        )  # fmt: skip
        started.then(self.look, looking, self._looked, **quick)
        self.stop.click(shown_as_message(self._stop), self.run, None, **quick)
        picked_record = self.before.click(self._pick, None, [self._shown_record, self._stamp], **quick)
        picked_record.then(self.look, looking, self._looked, **quick)
        self.archive.wire([self.run, self._shown_record], self._folder_shown)

    @property
    def _switched(self) -> list[Any]:
        return [*self.forms.panels, self.text.panel, self.text.shown, self.text.download, self.buttons, self.start]

    def _offer(self, chosen_run: str, current: str | None) -> tuple[Any, ...]:
        choices = run_choices(self._page.reader.offered(can_be_talked_to, chosen_run, current))
        ids = [value for _, value in choices]
        proposed = next((run for run in (chosen_run, current) if run in ids), ids[0] if ids else None)
        states = self._states(proposed) if proposed is not None else gr.skip()
        shown = gr.update(visible=bool(ids))
        return gr.update(choices=choices, value=proposed), states, gr.update(visible=not ids), shown

    def _choose(self, run_id: str) -> tuple[Any, Any]:
        return (run_id, self._states(run_id)) if self._page.reader.exists(run_id) else (gr.skip(), gr.skip())

    def _states(self, run_id: str) -> Any:
        observed = self._page.reader.observe(run_id)
        names = [(f"checkpoint {name}", name) for name in list_checkpoints(observed.run.folder.path)]
        choices = ([(FINAL_WORDS, FINAL)] if observed.has_adapter else []) + names
        return gr.update(choices=choices or [(FINAL_WORDS, FINAL)], value=choices[0][1] if choices else FINAL)

    def _observe(self, run_id: str | None) -> ObservedRun:
        if not run_id:
            raise RunError("No run is chosen.", "Choose one above.")
        return self._page.reader.observe(run_id)

    def _propose(self, run_id: str | None, checkpoint: str | None, form: str) -> Any:
        """A folder that is new, named for the run."""
        if form not in (ADAPTER, MERGED, GGUF) or not self._page.reader.exists(run_id or ""):
            return gr.skip()
        return self._proposed(self._page.reader.observe(run_id or ""), checkpoint, form)

    def _proposed(self, observed: ObservedRun, checkpoint: str | None, form: str) -> str:
        title = observed.title if checkpoint in (None, FINAL) else f"{observed.title}-{checkpoint}"
        return str(self._page.services.results.proposed_folder(title, form.split(" ")[0].lower()))

    def _switch(self, run_id: str | None, form: str) -> tuple[Any, ...]:
        """What belongs to the form that is wanted; where it cannot be had, why."""
        try:
            observed = self._observe(run_id)
        except EngineError:
            return (gr.skip(),) * len(self._switched)
        reason = why_not(form, observed.config)
        text, download = self.text.of(form, observed) if form in TEXTS else ("", gr.update(visible=False))
        writes = form not in TEXTS
        words = "Push it" if form == HUB else "Write it"
        return (
            *self.forms.shown(form, reason),
            gr.update(visible=not writes),
            text,
            download,
            gr.update(visible=writes and not reason),
            gr.update(value=words),
        )

    def look(
        self,
        run_id: str | None,
        form: str,
        number: int,
        last: str,
        checkpoint: str | None = None,
        folder_name: str = "",
    ) -> tuple[Any, ...]:
        """How the export stands, and what the chosen one among those of this run holds; nothing where all is the same.

        The name of a folder that has just been written is taken, so that another one is proposed in its place.
        """
        try:
            observed = self._observe(run_id)
        except EngineError as error:
            if last == "gone":
                return (gr.skip(),) * len(self._looked)
            return "gone", number, trouble(error), *(gr.skip(),) * (len(self._looked) - 3)
        work = self._page.services.results.exporting.look(observed.run.id)
        records = read_records(observed.run.folder.path)
        stamp = f"{observed.run.id}:{form}:{number}:{len(records)}:{stamp_of(work)}"
        if stamp == last:
            return (gr.skip(),) * len(self._looked)
        working = work is not None and work.is_under_way
        # What has just been made is looked at, whatever was picked before.
        known = int(last.split(":")[3]) if last.count(":") >= 3 else len(records)
        made = len(records) > known
        number = 0 if made else min(number, max(0, len(records) - 1))
        stamp = f"{observed.run.id}:{form}:{number}:{len(records)}:{stamp_of(work)}"
        record = records[number] if records else None
        show = form not in TEXTS
        folder = self._folder(record)
        return (
            stamp,
            number,
            # Where nothing was begun, what was wrong with the start stays in sight.
            render_work(work, _STOPPED) if show and work is not None else gr.skip(),
            gr.update(interactive=not working),
            gr.update(visible=working, interactive=not (work is not None and work.stopping)),
            (render_record(record) if record is not None else NOTHING_MADE) if show and not working else "",
            gr.update(visible=show and not working and folder is not None),
            gr.update(visible=False),
            self._use(observed, record, folder) if show and not working else "",
            render_records(records, number) if show else "",
            self._propose(run_id, checkpoint, form) if made and _names(folder_name, folder) else gr.skip(),
        )

    def _use(self, observed: ObservedRun, record: ExportRecord | None, folder: Path | None) -> str:
        terminal = render_command_line(observed.run.id)
        if record is None or folder is None or not loads_in_transformers(record.kind):
            return terminal
        base = observed.config.model.id if observed.config is not None else ""
        return render_script(loading_script(folder, base)) + terminal

    @staticmethod
    def _folder(record: ExportRecord | None) -> Path | None:
        """Where an export lies, if it still does."""
        if record is None or record.kind == "hub" or not Path(record.place).is_dir():
            return None
        return Path(record.place)

    def _folder_shown(self, run_id: str | None, number: int) -> tuple[Path, str]:
        """Folder and name of the export that is shown; what a browser names is looked up in the run's own list."""
        observed = self._observe(run_id)
        records = read_records(observed.run.folder.path)
        record = records[number] if 0 <= number < len(records) else None
        folder = self._folder(record)
        if folder is None:
            raise RunError("What was written is no longer there.", "Write it again.")
        return folder, folder.name

    def _start(self, run_id: str | None, checkpoint: str | None, form: str, *values: Any) -> str:
        observed = self._observe(run_id)
        reason = why_not(form, observed.config)
        if reason:
            raise RunError(reason, "Choose another form.")
        state = None if checkpoint in (None, FINAL) else checkpoint
        wanted = self.forms.read(form, values)
        results = self._page.services.results
        if form == HUB:
            push = section_from_mapping(PushConfig, wanted.settings)
            self._make_room(push.verify)
            work = results.publish(observed.run, state, wanted.repository, push)
        else:
            folder = results.allowed_folder(wanted.folder.strip() or self._proposed(observed, checkpoint, form))
            export = section_from_mapping(ExportConfig, wanted.settings)
            self._make_room(export.verify)
            work = results.write(observed.run, state, folder, export)
        return render_work(work, _STOPPED)

    def _make_room(self, needs_device: bool) -> None:
        """A model that is loaded for talking and idle holds the device."""
        chat = self._page.services.chat
        if needs_device and chat.state.phase == "ready":
            chat.unload()

    def _stop(self, run_id: str | None) -> None:
        self._page.services.results.exporting.stop(self._observe(run_id).run.id)

    def _pick(self, event: gr.EventData) -> tuple[Any, Any]:
        number = picked(event)
        return (int(number), "") if number.isdigit() and len(number) < 6 else (gr.skip(), gr.skip())


def _names(typed: str, folder: Path | None) -> bool:
    """Whether what stands in the field is the folder, or its name alone."""
    return folder is not None and Path(typed or "").name == folder.name
