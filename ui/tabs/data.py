"""Data: choose a dataset, and see row by row which tokens are trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from loratory.engine.config.run import DatasetConfig, id_of_page
from loratory.engine.data.contract import DatasetColumns, DatasetPage
from loratory.engine.data.files import DATA_ENDINGS
from loratory.engine.data.source import SAMPLE_PREFIX
from loratory.engine.errors import DatasetError
from loratory.engine.paths import LoratoryHome
from loratory.ui.addresses import parse_address
from loratory.ui.backend.background import as_engine_error, stamp
from loratory.ui.backend.dataset_checks import RunningCheck, lengths_stamp, question_of
from loratory.ui.components import (
    HIDDEN,
    QUICK,
    SLOW,
    UNCHANGED,
    Updates,
    nothing,
    pick_list,
    picked_change,
    picked_value,
)
from loratory.ui.page import Page
from loratory.ui.tabs.data_sets import SetsPart
from loratory.ui.tabs.dataset_format import DatasetFormat
from loratory.ui.tabs.model import TokenizerStatus
from loratory.ui.tabs.own_models import OwnPart
from loratory.ui.tabs.row_viewer import RowViewer, row_of
from loratory.ui.views import dataset as view
from loratory.ui.views.html import Column, Row, error_box, pickable, table
from loratory.ui.views.rows import listing_choices, render_row

_SAMPLES = (
    ("sample:loratory-faq", "loratory-faq", "354 instructions, Alpaca"),
    ("sample:lab-chats", "lab-chats", "118 conversations, ShareGPT"),
    ("sample:loratory-preferences", "loratory-preferences", "152 preference pairs"),
    ("sample:loratory-sums", "loratory-sums", "300 prompts with answers, for GRPO"),
)
_LONGEST_SOURCE = 1000  # as in DatasetConfig


class DataTab:
    """Lays out the Data tab; `wire` connects it once the whole page is laid out."""

    def __init__(self, page: Page) -> None:
        self.page = page
        lead = "A few hundred good rows beat many careless ones. Read some before you train."
        gr.HTML(f'<h2>Data</h2><p class="lead">{lead}</p>')
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=260):
                self.samples = pick_list(render_samples(""), elem_id="samples")
            with gr.Column(scale=4, min_width=260):
                self.own = gr.Textbox(
                    label="File or Hub dataset", placeholder="/path/to/rows.jsonl or owner/name",
                    info="A path on this computer, a Hub id or the address of its page. Press Enter.", max_lines=3, elem_id="dataset-own",
                )  # fmt: skip
                self.upload = gr.UploadButton(
                    "Upload a file", file_types=[*DATA_ENDINGS, ".gz"], size="sm", elem_id="upload",
                    visible=not page.services.home.is_guest,
                )  # fmt: skip
        self.sets = SetsPart(page)
        own = page.services.own_datasets
        self.own_datasets = OwnPart(page, own) if own is not None else None
        page.form.register("dataset.source", gr.Textbox("", visible=False))
        page.form.show_problems_of("dataset.source", self.own)
        self.summary = gr.HTML(view.NO_DATASET, elem_id="dataset-summary")
        self.tokenizer = TokenizerStatus(page, "data")
        self.format = DatasetFormat(page)
        with gr.Column(visible=False) as self.rows_column:
            self.facts = gr.HTML(elem_id="facts")
            with gr.Row(elem_id="reading-all"):
                self.stop = gr.Button("Stop reading", size="sm", visible=False, scale=0, elem_id="stop-reading")
                self.read = gr.Button("Read all rows", size="sm", visible=False, scale=0, elem_id="read-all")
            self.rows = RowViewer(page)
            self.lengths = pick_list(elem_id="lengths", more=("cut_line",))
        self.timer = gr.Timer(0.5, active=False)
        page.on_fill(self.own, _typed_in)
        self.shown_source = gr.State("")
        self.last_stamp = gr.State("")  # stamp of the check that the page shows
        self.open_request = gr.Textbox("", visible=False)  # changes to open the dataset again
        self._check_outputs = [
            self.facts, self.lengths, self.rows.list, self.rows.listing, self.stop, self.read, self.timer, self.last_stamp,
            self.page.data_trouble, self.page.data_lengths, self.format.role_map,
        ]  # fmt: skip

    def wire(self) -> None:
        """Connect the events."""
        page, values = self.page, self.page.form.components
        for chosen in (
            page.change_on(self.samples.click, _pick_sample),
            page.change_on(self.own.submit, _take_path, self.own),
            page.change_on(self.upload.upload, self._take_upload, self.upload),
            page.change_on(self.sets.html.click, self._pick_own),
        ):
            self.open_after(chosen)
        if self.own_datasets is not None:
            arrival_event = self.own_datasets.wire()
            self.open_after(page.change_on(arrival_event.then, _take_path, self.own_datasets.arrival))
        for trigger in (self.samples.click, self.upload.upload):
            trigger(None, None, self.own, js="() => ''", **QUICK)  # another dataset than the typed path
        self.open_after(self.sets.html.submit(nothing, None, None, **SLOW))  # the open set was changed
        for event in self.format.wire():
            self.open_after(event)
        for component in (self.format.role_map, self.lengths):
            self.open_after(page.change_on(component.click, picked_change, undo=True))
        self.rows.wire()
        self._wire_opening()
        self.timer.tick(
            self.tick, [self.last_stamp, *self.rows.inputs, *values], self._check_outputs, trigger_mode="once",
            concurrency_limit=None, **SLOW,
        )  # fmt: skip
        self.stop.click(self.stop_reading, values, None, **SLOW)
        self.open_after(self.read.click(self.read_all, values, None, **SLOW))
        self.open_after(self.tokenizer.again.click(self.fetch_again, values, self.tokenizer.outputs, **SLOW))
        self.open_after(page.refresh_after(self.tokenizer.changed(nothing, None, None, **SLOW)))
        # Train counts the rows itself, after an edit of max_length.
        others = [tab.select for tab in page.tabs.children if isinstance(tab, gr.Tab) and tab.id != "train"]
        gr.on(others, None, **self._open_if_chosen)
        # A slow model lookup may end while rows are already shown here.
        for event in (page.form["model.id"], page.wants_data):
            self.open_after(event.change(nothing, None, None, **SLOW))

    def open_named_by(self, click: Any) -> None:
        """Open the dataset of an address that a click sends, unless it is open already."""
        page = self.page
        self.open_after(page.change_on(click, self.take_address, page.form["dataset.source"], undo=True))

    def take_address(self, event: gr.EventData, source: str) -> dict[str, Any]:
        """Return the change to the sample or the uploaded file of an address."""
        (tab, name), home = parse_address(picked_value(event)), self.page.services.home
        if tab != "data" or name in ("", dataset_name(home, source)):
            return {}
        for candidate in (f"{SAMPLE_PREFIX}{name}", str(home.uploads / name)):
            if dataset_name(home, candidate) == name:
                return with_source(candidate)
        raise DatasetError(f"There is no sample or upload {name[:60]!r} here.", "Choose one below.")

    def open_after(self, event: Any) -> None:
        """Open the chosen dataset after an event: first row, format, and a check in the background."""
        event.then(None, None, self.open_request, js="() => String(Math.random())", **SLOW)

    def open_restored(self, event: Any) -> None:
        """Open the dataset of the restored draft; do nothing if it has none."""
        event.then(None, **self._open_if_chosen)

    @property
    def _open_if_chosen(self) -> dict[str, Any]:
        js = "(source, request) => source ? String(Math.random()) : request"
        inputs = [self.page.form["dataset.source"], self.open_request]
        return {"inputs": inputs, "outputs": self.open_request, "js": js, **SLOW}

    def _wire_opening(self) -> None:
        # One event for all triggers: Gradio then sends the next request after the last answer. Answers of
        # several events arrive in any order, and an old one could replace the rows of a newer dataset.
        page, source, rows = self.page, self.page.form["dataset.source"], self.rows
        opening = self.open_request.change(
            # Not for a change of its settings.
            lambda source, shown_source: view.render_opening(source) if source and source != shown_source else UNCHANGED,
            [source, self.shown_source], self.summary, trigger_mode="always_last", **QUICK,
        )  # fmt: skip
        opening.then(
            self.open,
            [rows.number, rows.view, self.shown_source, *rows.inputs, *page.form.components],
            [
                self.samples, self.summary, *self.tokenizer.outputs, *self.format.outputs, self.rows_column, rows.number,
                rows.row_html, rows.found, self.shown_source, page.data_kind, *self._check_outputs,
            ],
            trigger_mode="always_last",
            concurrency_limit=None,
            **SLOW,
        )  # fmt: skip

    def open(
        self, row: float, row_view: str, shown_source: str, listing: str, list_page: int, request: gr.Request,
        *values: Any,
    ) -> Updates:  # fmt: skip
        form_question = question_of(self.page.settings(values))
        if form_question is None:
            around = {self.samples: render_samples(""), **self.tokenizer.updates(None), self.format.column: HIDDEN}
            return {**around, self.summary: view.NO_DATASET, **self._without_rows("", "")}
        source, services = form_question.dataset.source, self.page.services
        around = {self.samples: render_samples(source), **self.tokenizer.updates(form_question.model)}
        if source != shown_source:  # what was opened for the last one is not about this one
            around[self.format.fold] = gr.update(open=False)
        question = services.tokenizers.answerable(form_question)
        number = row if source == shown_source else 1
        try:
            page = self.rows.preview(question, row_of(number))
        except Exception as raised:
            error = as_engine_error(raised)
            services.checks.note_refused(question, error)
            return {
                **around,
                self.summary: view.HEADING + error_box(error),
                **self.format.of_columns(form_question.dataset, self._columns(form_question.dataset)),
                **self._without_rows(source, error.what),
            }
        services.checks.note_opened(question, page.format)
        check = services.checks.request(question, request.session_hash or "")
        return {
            **around,
            self.summary: view.render_format(source, page),
            **self.format.of_page(form_question.dataset, page),
            self.rows_column: gr.update(visible=True),
            self.rows.number: number if source != shown_source else UNCHANGED,
            self.rows.found: "" if source != shown_source else UNCHANGED,
            self.rows.row_html: render_row(page, row_view == "tokens"),
            self.shown_source: source,
            self.page.data_kind: page.format,
            self.lengths: "" if source != shown_source else UNCHANGED,
            **self._render_check(check, listing, list_page, page),
        }

    def _without_rows(self, source: str, trouble: str) -> Updates:
        rows = self.rows
        texts = (rows.row_html, rows.found, self.facts, self.lengths, rows.list, self.last_stamp, self.format.role_map)
        return {
            **dict.fromkeys((self.rows_column, self.stop, self.read), HIDDEN),
            **dict.fromkeys(texts, ""),
            self.shown_source: source,
            self.timer: gr.Timer(active=False),
            # With the source: the next dataset may have the same problem.
            self.page.data_trouble: f"{trouble} {source}".strip(),
            self.page.data_kind: "",
            self.page.data_lengths: "",
        }

    def _columns(self, dataset: DatasetConfig) -> DatasetColumns | None:
        """Return the columns of a dataset with unreadable rows; None if it cannot be opened."""
        try:
            return self.page.services.inspector.columns(dataset)
        except Exception as error:
            as_engine_error(error)
            return None

    def tick(self, last_stamp: str, listing: str, list_page: int, *values: Any) -> Updates:
        """Show the progress of the dataset's check; stop the timer once its result is shown."""
        question = self.rows.question(values)
        check = self.page.services.checks.find(question) if question is not None else None
        if check is None:
            return {self.timer: gr.Timer(active=False)}
        if _stamp_of(check) != last_stamp:
            return self._render_check(check, listing, list_page)
        progress = {self.facts: _progress_of(check)} if check.is_under_way else {}
        return {**progress, self.timer: gr.Timer(active=check.is_under_way)}

    def _render_check(
        self, check: RunningCheck, listing: str, list_page: int, page: DatasetPage | None = None
    ) -> Updates:
        report, lengths, row_list = check.report, "", ""
        if report is not None:
            row_list = self.rows.render_list(check.question, report, listing, list_page)
            facts = view.render_facts(report)
            lengths = view.render_preferences(report) + view.render_lengths(report)
        elif check.waits:
            facts = view.render_waiting(page)
        elif check.was_stopped:
            facts = view.render_stopped(check.progress)
        else:
            facts = error_box(check.error) if check.error is not None else _progress_of(check)
        counts = report or (check.progress if check.is_done else None)
        choices = listing_choices(report)
        chosen = listing if any(listing == value for _, value in choices) else "all"
        again = "Read all rows" if check.waits else "Read again"
        trouble = self.page.services.checks.trouble(check.question)
        return {
            self.facts: facts,
            **({} if check.is_under_way else {self.lengths: lengths}),  # the line that was moved stays
            self.rows.list: row_list,
            self.rows.listing: gr.update(choices=choices, value=chosen),
            self.stop: gr.update(visible=check.is_under_way),
            self.read: gr.update(value=again, visible=check.waits or check.error is not None),
            self.timer: gr.Timer(active=check.is_under_way),
            self.last_stamp: _stamp_of(check),
            self.page.data_trouble: trouble.what if trouble is not None else "",
            self.page.data_lengths: lengths_stamp(check),
            self.format.role_map: view.render_roles(counts, check.question.dataset.role_map),
        }

    def stop_reading(self, *values: Any) -> None:
        question = self.rows.question(values)
        if question is not None:
            self.page.services.checks.stop(question)

    def read_all(self, *values: Any) -> None:
        question = self.rows.question(values)
        if question is not None:
            self.page.services.checks.read(question)

    def fetch_again(self, *values: Any) -> Updates:
        question = question_of(self.page.settings(values))
        return self.tokenizer.updates(question.model if question is not None else None, again=True)

    def _pick_own(self, event: gr.EventData) -> dict[str, Any]:
        pick = picked_value(event)
        settings = self.sets.settings_of(pick.removeprefix("now:"))
        others = with_source("")["dataset"] if not pick.startswith("now:") else {}  # which a renamed set keeps
        return {"dataset": others | settings}

    def _take_upload(self, file: str | None) -> dict[str, Any]:
        return with_source(str(self.page.services.transfers.keep_upload(Path(file)))) if file else {}


def _progress_of(check: RunningCheck) -> str:
    return view.render_progress(check.progress, fetches=check.fetches)


def _stamp_of(check: RunningCheck) -> str:
    """Return a stamp that changes with the check's state, not with its progress."""
    return stamp(check.question.key, check.waits, check.is_done, id(check))


def dataset_name(home: LoratoryHome, source: str) -> str:
    """Return the name in addresses of a sample or an uploaded file; empty for any other dataset."""
    path = Path(source)
    is_upload = path.parent == home.uploads and path.is_file()
    return path.name if is_upload else dict(sample[:2] for sample in _SAMPLES).get(source, "")


def with_source(source: str) -> dict[str, Any]:
    """Return the change to a new source: default settings, except eval_fraction and train_on."""
    settings = DatasetConfig.model_construct(source=source).model_dump(mode="json")
    return {"dataset": {name: value for name, value in settings.items() if name not in ("eval_fraction", "train_on")}}


def _pick_sample(event: gr.EventData) -> dict[str, Any]:
    return with_source(picked_value(event)) if picked_value(event) in {source for source, _, _ in _SAMPLES} else {}


def _typed_in(mapping: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of the file box for a filled form."""
    source = str(mapping.get("dataset", {}).get("source") or "")
    return "" if source.startswith(SAMPLE_PREFIX) else source


def _take_path(text: str) -> dict[str, Any]:
    source = id_of_page(text.strip(), of_dataset=True)
    if len(source) > _LONGEST_SOURCE:
        raise DatasetError(
            f"A dataset's name has at most {_LONGEST_SOURCE:,} characters; this one has {len(source):,}.",
            "Type a path or a Hub id, or upload the rows as a file.",
        )
    return with_source(source) if source else {}


def render_samples(chosen: str) -> str:
    """Return the samples that come with Loratory, as rows that can be picked."""
    rows = (Row([name, about], pickable(source, chosen=source == chosen)) for source, name, about in _SAMPLES)
    return table(["Samples", Column("", "soft")], rows, css="samples", scrolls="")
