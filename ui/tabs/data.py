"""Data: choose a dataset, and see row by row what the model will learn from it."""

from pathlib import Path
from typing import Any

import gradio as gr

from engine.config.dataset import DatasetConfig
from engine.data.page import DatasetPage
from engine.errors import EngineError
from ui.checks import RunningCheck, question_of
from ui.errors import shown_as_message, trouble
from ui.page import Page
from ui.pick import pick_list, pickable, picked
from ui.tabs.mix import MixPart
from ui.tabs.rows import RowsPart
from ui.uploads import keep_upload
from ui.views.dataset import (
    render_facts,
    render_format,
    render_jumps,
    render_lengths,
    render_problems,
    render_progress,
    render_row,
)

_SAMPLES = (
    ("sample:loratory-faq", "loratory-faq", "354 questions and answers on fine-tuning, Alpaca format"),
    ("sample:lab-chats", "lab-chats", "118 conversations in a lab, ShareGPT format"),
)
_UPLOAD_TYPES = [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz"]
_ROLES: dict[str, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system", "tools"),
    "messages": ("messages", "tools"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
_TRAIN_ON = [
    ("every answer", "assistant"),
    ("the last answer", "last_assistant"),
    ("the completion", "completion"),
    ("everything", "all"),
]
_MOST_ROLES = 5
_NOTHING = "(none)"
_EMPTY = (
    '<div class="empty"><b>No dataset yet</b>Pick a sample, upload a file, or give a path or a Hub id. JSON, JSONL, CSV, '
    "Parquet and plain text are read; the format is found out.</div>"
)


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
        form.register("dataset.column_map", gr.State({}))
        self.summary = gr.HTML(_EMPTY, elem_id="dataset-summary")
        with gr.Column(visible=False) as self.opened:
            with gr.Row():
                form.setting("dataset.format", scale=2)
                form.setting("dataset.train_on", scale=5, choices=_TRAIN_ON)
            with gr.Row(visible=False) as self.mapping_row:
                self.roles = [
                    gr.Dropdown([], label=f"Column {number + 1}", visible=False) for number in range(_MOST_ROLES)
                ]
            self.facts = gr.HTML(elem_id="facts")
            self.stop = gr.Button("Stop reading", size="sm", visible=False)
            self.rows = RowsPart(page)
            self.lengths = gr.HTML(elem_id="lengths")
            self.problems = pick_list(elem_id="problems")
            with gr.Accordion("Split and sample", open=False):
                with gr.Row():
                    form.setting("dataset.eval_fraction", maximum=0.5)
                    form.setting("dataset.max_samples")
                with gr.Row():
                    form.setting("dataset.split")
                    form.setting("dataset.subset")
                    form.setting("dataset.revision")
            self.mix = MixPart(page)
        self.poll = gr.Timer(0.5, active=False)
        self.shown_format = gr.State("alpaca")
        self._change = gr.State({})
        self._question_key = gr.State("")

    def wire(self) -> None:
        """Connect the events."""
        page, form = self._page, self._page.form
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        for chosen in (
            self.samples.click(shown_as_message(_pick_sample), None, self._change, **quiet),
            self.own.submit(shown_as_message(_take_path), self.own, self._change, **quiet),
            self.upload.upload(shown_as_message(self._take_upload), self.upload, self._change, **quiet),
        ):
            self.open_after(page.change_after(chosen, self._change))
        for name in ("format", "train_on", "eval_fraction", "max_samples", "split", "subset", "revision"):
            component = form[f"dataset.{name}"]
            # A box is read when Enter is pressed, not at each letter: opening a dataset is more than a redraw.
            settled: Any = component.submit if hasattr(component, "submit") else component.input
            self.open_after(settled(lambda: None, None, None, **quiet))
        for role in self.roles:
            mapped = role.input(_map_columns, [self.shown_format, *self.roles], form["dataset.column_map"], **quiet)
            self.open_after(page.refresh_after(mapped))
        for changed in self.mix.wire():
            self.open_after(changed)
        self.rows.wire(self.problems)
        self.poll.tick(
            self._tick,
            [self._question_key, *form.components],
            [self.facts, self.rows.jumps, self.lengths, self.problems, self.stop, self.poll, self._question_key],
            **quiet,
        )
        self.stop.click(self._stop, form.components, None, **quiet)
        opened = page.tabs.select(lambda: None, None, None, **quiet)
        self.open_after(opened)

    def open_after(self, event: Any) -> None:
        """Open the chosen dataset anew after an event: its first row, its format, and a check in the background."""
        form = self._page.form
        event.then(
            self._open,
            [self.rows.number, self.rows.view, *form.components],
            [
                self.samples,
                self.summary,
                self.opened,
                self.rows.shown,
                self.mapping_row,
                *self.roles,
                self.shown_format,
                self.poll,
            ],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def _open(self, row: float, view: str, *values: Any) -> list[Any]:
        question = question_of(self._page.form.mapping(values))
        if question is None:
            return self._closed(render_samples(""), _EMPTY)
        source = question.dataset.source
        samples = render_samples(source)
        try:
            shown = self.rows.preview(question, int(row or 0))
        except EngineError as error:
            return self._closed(samples, trouble(error))
        self._page.services.checks.ask(question)
        return [
            samples,
            render_format(source, shown),
            gr.update(visible=True),
            render_row(shown, view == "tokens"),
            gr.update(visible=not shown.format_sure or bool(question.dataset.column_map)),
            *_role_updates(shown),
            shown.format,
            gr.Timer(active=True),
        ]

    def _closed(self, samples: str, words: str) -> list[Any]:
        """No dataset is open; `words` say why."""
        hidden = gr.update(visible=False)
        return [samples, words, hidden, "", hidden, *[gr.skip()] * _MOST_ROLES, gr.skip(), gr.Timer(active=False)]

    def _tick(self, shown_key: str, *values: Any) -> list[Any]:
        """Follow the check of what is chosen now; idle once its answer is on the page."""
        question = question_of(self._page.form.mapping(values))
        check = self._page.services.checks.find(question) if question is not None else None
        if check is None:
            return [*[gr.skip()] * 4, gr.update(visible=False), gr.Timer(active=False), gr.skip()]
        key = f"{check.question.key}|{check.is_done}"
        if check.is_done and shown_key == key:
            return [*[gr.skip()] * 4, gr.update(visible=False), gr.Timer(active=False), gr.skip()]
        return [*_render_check(check), gr.update(visible=not check.is_done), gr.Timer(active=not check.is_done), key]

    def _stop(self, *values: Any) -> None:
        question = question_of(self._page.form.mapping(values))
        check = self._page.services.checks.find(question) if question is not None else None
        if check is not None:
            check.stop.set()

    def _take_upload(self, file: str | None) -> dict[str, Any]:
        return _with_source(str(keep_upload(Path(file), self._page.services.home.uploads))) if file else {}


def _with_source(source: str) -> dict[str, Any]:
    """A new source begins with settings of its own, but for how much is held out and learned."""
    settings = DatasetConfig.model_construct(source=source).model_dump(mode="json")
    return {"dataset": {name: value for name, value in settings.items() if name not in ("eval_fraction", "train_on")}}


def _pick_sample(event: gr.EventData) -> dict[str, Any]:
    wanted = picked(event)
    return _with_source(wanted) if wanted in {source for source, _, _ in _SAMPLES} else {}


def _take_path(text: str) -> dict[str, Any]:
    return _with_source(text.strip()) if text.strip() else {}


def _map_columns(shown_format: str, *columns: str | None) -> dict[str, str]:
    """Which column stands for which role of the format that is shown."""
    pairs = zip(_ROLES.get(shown_format, ()), columns, strict=False)
    return {role: column for role, column in pairs if column and column not in (_NOTHING, role)}


def render_samples(chosen: str) -> str:
    """The samples that come with Loratory, as rows that can be picked."""
    rows = "".join(
        f'<tr {pickable(source, chosen=source == chosen)}><td>{name}<span class="under">{about}</span></td></tr>'
        for source, name, about in _SAMPLES
    )
    return f'<table class="plain"><thead><tr><th>Samples that come with Loratory</th></tr></thead><tbody>{rows}</tbody></table>'


def _render_check(check: RunningCheck) -> tuple[str, str, str, str]:
    if check.error is not None:
        return trouble(check.error), "", "", ""
    if check.report is None:
        return render_progress(check.progress), "", "", ""
    report = check.report
    return render_facts(report), render_jumps(report), render_lengths(report), render_problems(report)


def _role_updates(page: DatasetPage) -> list[Any]:
    roles = _ROLES.get(page.format, ())
    choices = [_NOTHING, *page.columns]
    updates = []
    for number in range(_MOST_ROLES):
        if number < len(roles):
            column = page.column_map.get(roles[number], roles[number])
            value = column if column in page.columns else _NOTHING
            updates.append(gr.update(choices=choices, value=value, label=f"{roles[number]} is column", visible=True))
        else:
            updates.append(gr.update(visible=False))
    return updates
