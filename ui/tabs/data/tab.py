"""Data: choose a dataset, and see row by row what the model will learn from it."""

from pathlib import Path
from typing import Any

import gradio as gr

from engine.config.dataset import DatasetConfig
from engine.data.contract import DatasetColumns, DatasetPage
from engine.data.files import DATA_ENDINGS, DATA_LABELS
from engine.errors import EngineError
from ui.backend.dataset_checks import CheckQuestion, RunningCheck, question_of
from ui.errors import explained, shown_as_message, trouble
from ui.page import Page
from ui.pick import pick_list, pickable, picked
from ui.tabs.data.dataset_format import ReadingPart
from ui.tabs.data.row_viewer import RowsPart
from ui.tabs.tokenizer_status import FetchingPart
from ui.views.dataset import (
    render_facts,
    render_format,
    render_lengths,
    render_opening,
    render_progress,
    render_row,
    render_stopped,
    render_waiting,
)
from ui.views.row_lists import listing_choices

_SAMPLES = (
    ("sample:loratory-faq", "loratory-faq", "354 questions and answers on fine-tuning, Alpaca format"),
    ("sample:lab-chats", "lab-chats", "118 conversations in a lab, ShareGPT format"),
)
_UPLOAD_TYPES = [*DATA_ENDINGS, ".gz"]
_EMPTY = (
    '<div class="empty"><b>No dataset yet</b>Pick a sample, upload a file, or give a path or a Hub id. '
    f"Loratory reads {', '.join(DATA_LABELS)}, and detects the format.</div>"
)
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


class DataTab:
    """Lays out the Data tab; `wire` connects it once the whole page stands."""

    def __init__(self, page: Page) -> None:
        self._page = page
        form = page.form
        gr.HTML(
            '<h2>Choose what it learns from</h2><p class="lead">A few hundred good rows teach more than many careless '
            "ones. Read some before you train: most failed fine-tunes failed here.</p>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=260):
                self.samples = pick_list(render_samples(""), elem_id="samples")
            with gr.Column(scale=4, min_width=260):
                self.own = gr.Textbox(
                    label="A file or a Hub dataset",
                    placeholder="/path/to/rows.jsonl or owner/name",
                    info="A path on this computer or a Hugging Face Hub id. Press Enter.",
                    elem_id="dataset-own",
                )
                self.upload = gr.UploadButton("Upload a file", file_types=_UPLOAD_TYPES, size="sm", elem_id="upload")
        form.register("dataset.source", gr.Textbox(visible=False))
        self.summary = gr.HTML(elem_id="dataset-summary")
        self.fetching = FetchingPart(page, "data")
        self.reading = ReadingPart(page)
        with gr.Column(visible=False) as self.opened:
            self.facts = gr.HTML(elem_id="facts")
            with gr.Row(elem_id="reading-all"):
                self.stop = gr.Button("Stop reading", size="sm", visible=False, scale=0, elem_id="stop-reading")
                self.read = gr.Button("Read all rows", size="sm", visible=False, scale=0, elem_id="read-all")
            self.rows = RowsPart(page)
            self.lengths = gr.HTML(elem_id="lengths")
        self.poll = gr.Timer(0.5, active=False)
        self._change = gr.State({})
        self._shown_source = gr.State("")
        self._seen = gr.State("")  # which answer of a check the page shows
        self._asked = gr.Textbox("", visible=False)  # changes with each wish to open the dataset once more

    def wire(self) -> None:
        """Connect the events."""
        page, values = self._page, self._page.form.components
        for chosen in (
            self.samples.click(shown_as_message(_pick_sample), None, self._change, **_QUIET),
            self.own.submit(shown_as_message(_take_path), self.own, self._change, **_QUIET),
            self.upload.upload(shown_as_message(self._take_upload), self.upload, self._change, **_QUIET),
        ):
            self.open_after(page.change_after(chosen, self._change))
        self.samples.click(lambda: "", None, self.own, **_QUIET)
        for changed in self.reading.wire():
            self.open_after(changed)
        self.rows.wire()
        self._wire_opening()
        self.poll.tick(
            self._tick,
            [self._seen, *self.rows.inputs, *values],
            [*self._check_outputs, self.poll, self._seen, page.data_trouble],
            trigger_mode="once",
            concurrency_limit=None,
            **_QUIET,
        )
        self.stop.click(self._stop, values, None, **_QUIET)
        self.open_after(self.read.click(self._read, values, None, **_QUIET))
        again = self.fetching.again.click(self._fetch_again, values, self.fetching.outputs, **_QUIET)
        self.open_after(again)
        self.open_after(self.fetching.ended(lambda: None, None, None, **_QUIET))
        self.open_after(page.tabs.select(lambda: None, None, None, **_QUIET))
        # A model that is looked up slowly may arrive while somebody reads rows here already.
        self.open_after(page.form["model.id"].change(lambda: None, None, None, **_QUIET))

    def open_after(self, event: Any) -> None:
        """Open the chosen dataset after an event: its first row, its format, and a check in the background."""
        event.then(None, None, self._asked, js="() => String(Math.random())", **_QUIET)

    def _wire_opening(self) -> None:
        # One event, whatever asks: Gradio then sends the next question after the answer to the last one. Answers of
        # several events arrive in any order, and an old one could be drawn over the rows of a dataset chosen since.
        source, asked = self._page.form["dataset.source"], self._asked
        opening = asked.change(
            _opening, [source, self._shown_source], self.summary, trigger_mode="always_last", queue=False, **_QUIET
        )
        opening.then(
            self._open,
            [self.rows.number, self.rows.view, self._shown_source, *self.rows.inputs, *self._page.form.components],
            [
                self.samples,
                self.summary,
                *self.fetching.outputs,
                *self.reading.outputs,
                self.opened,
                self.rows.number,
                self.rows.shown,
                self._shown_source,
                *self._check_outputs,
                self.poll,
                self._seen,
                self._page.data_trouble,
            ],
            trigger_mode="always_last",
            concurrency_limit=None,
            **_QUIET,
        )

    @property
    def _check_outputs(self) -> list[Any]:
        return [self.facts, self.lengths, self.rows.list, self.rows.listing, self.stop, self.read]

    def _open(
        self, row: float, view: str, shown_source: str, listing: str, list_page: int, request: gr.Request, *values: Any
    ) -> list[Any]:
        wanted = question_of(self._page.form.mapping(values))
        if wanted is None:
            nothing = [*self.fetching.updates(None), *self.reading.hidden()]
            return [render_samples(""), _EMPTY, *nothing, *self._no_rows("", "")]
        source = wanted.dataset.source
        samples = render_samples(source)
        fetching = self.fetching.updates(wanted.model)
        question = self._page.services.tokenizers.answerable(wanted)
        number, checks = int(row or 0) if source == shown_source else 0, self._page.services.checks
        try:
            shown = self.rows.preview(question, number)
        except Exception as error:
            trouble = explained(error)
            checks.note_opening(question, trouble)
            settings = self.reading.of_columns(wanted.dataset, self._columns(wanted.dataset))
            return [samples, _went_wrong(trouble), *fetching, *settings, *self._no_rows(source, trouble.what)]
        checks.note_opening(question, None)
        check = checks.ask(question, request.session_hash or "")
        return [
            samples,
            render_format(source, shown),
            *fetching,
            *self.reading.of_page(wanted.dataset, shown),
            gr.update(visible=True),
            number if source != shown_source else gr.skip(),
            render_row(shown, view == "tokens"),
            source,
            *self._render_check(check, listing, list_page, shown),
            gr.Timer(active=check.is_under_way),
            _state_of(check),
            self._trouble(question),
        ]

    def _no_rows(self, source: str, trouble: str) -> list[Any]:
        """There is nothing to look at."""
        hidden = gr.update(visible=False)
        idle = gr.Timer(active=False)
        return [hidden, gr.skip(), "", source, "", "", "", gr.skip(), hidden, hidden, idle, "", trouble]

    def _trouble(self, question: CheckQuestion) -> str:
        error = self._page.services.checks.trouble(question)
        return error.what if error is not None else ""

    def _columns(self, dataset: DatasetConfig) -> DatasetColumns | None:
        """The columns of a dataset that cannot be read so; None where it cannot be opened at all."""
        try:
            return self._page.services.inspector.columns(dataset)
        except Exception as error:
            explained(error)
            return None

    def _tick(self, seen: str, listing: str, list_page: int, *values: Any) -> list[Any]:
        """Follow the check of what is chosen now; idle once its answer is on the page."""
        question = self._question(values)
        check = self._page.services.checks.find(question) if question is not None else None
        if check is None or _state_of(check) == seen:
            is_under_way = check is not None and check.is_under_way
            if check is not None and is_under_way:
                seen_now = [_progress_of(check), *[gr.skip()] * 5]
                return [*seen_now, gr.Timer(active=True), gr.skip(), gr.skip()]
            return [*[gr.skip()] * 6, gr.Timer(active=False), gr.skip(), gr.skip()]
        shown = self._render_check(check, listing, list_page)
        return [*shown, gr.Timer(active=check.is_under_way), _state_of(check), self._trouble(check.question)]

    def _render_check(
        self, check: RunningCheck, listing: str, list_page: int, page: DatasetPage | None = None
    ) -> list[Any]:
        """What is known of all rows, in the order of `_check_outputs`."""
        report = check.report
        choices = listing_choices(report)
        chosen = listing if any(listing == value for _, value in choices) else "all"
        offered = gr.update(choices=choices, value=chosen)
        stop = gr.update(visible=check.is_under_way)
        again = "Read all rows" if check.waits else "Read again"
        read = gr.update(value=again, visible=check.waits or check.error is not None)
        if report is not None:
            listed = self.rows.render_list(check.question, report, listing, list_page)
            return [render_facts(report), render_lengths(report), listed, offered, stop, read]
        if check.waits:
            facts = render_waiting(page)
        elif check.was_stopped:
            facts = render_stopped(check.progress)
        else:
            facts = trouble(check.error) if check.error is not None else _progress_of(check)
        return [facts, "", "", offered, stop, read]

    def _question(self, values: tuple[Any, ...]) -> CheckQuestion | None:
        question = question_of(self._page.form.mapping(values))
        return self._page.services.tokenizers.answerable(question) if question is not None else None

    def _stop(self, *values: Any) -> None:
        question = self._question(values)
        if question is not None:
            self._page.services.checks.stop(question)

    def _read(self, *values: Any) -> None:
        question = self._question(values)
        if question is not None:
            self._page.services.checks.read(question)

    def _fetch_again(self, *values: Any) -> list[Any]:
        question = question_of(self._page.form.mapping(values))
        return self.fetching.updates(question.model if question is not None else None, again=True)

    def _take_upload(self, file: str | None) -> dict[str, Any]:
        return _with_source(str(self._page.services.transfers.keep_upload(Path(file)))) if file else {}


def _opening(source: str | None, shown_source: str) -> Any:
    """What stands there until a new dataset has been opened; a change of its settings redraws nothing."""
    return render_opening(source) if source and source != shown_source else gr.skip()


def _progress_of(check: RunningCheck) -> str:
    return render_progress(check.progress, fetches=check.fetches)


def _went_wrong(error: EngineError) -> str:
    return f"<h2>What the model will learn from</h2>{trouble(error)}"


def _state_of(check: RunningCheck) -> str:
    """Changes when there is something else to show than how far it has come."""
    return f"{check.question.key}|{check.waits}|{check.is_done}|{id(check)}"


def _with_source(source: str) -> dict[str, Any]:
    """A new source begins with settings of its own, but for how much is held out and learned."""
    settings = DatasetConfig.model_construct(source=source).model_dump(mode="json")
    return {"dataset": {name: value for name, value in settings.items() if name not in ("eval_fraction", "train_on")}}


def _pick_sample(event: gr.EventData) -> dict[str, Any]:
    wanted = picked(event)
    return _with_source(wanted) if wanted in {source for source, _, _ in _SAMPLES} else {}


def _take_path(text: str) -> dict[str, Any]:
    return _with_source(text.strip()) if text.strip() else {}


def render_samples(chosen: str) -> str:
    """The samples that come with Loratory, as rows that can be picked."""
    rows = "".join(
        f'<tr {pickable(source, chosen=source == chosen)}><td>{name}<span class="under">{about}</span></td></tr>'
        for source, name, about in _SAMPLES
    )
    return f'<table class="plain"><thead><tr><th>Samples that come with Loratory</th></tr></thead><tbody>{rows}</tbody></table>'
