"""Data: choose a dataset, and see row by row what the model will learn from it."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.config.dataset import DatasetConfig
from engine.config.training import TrainingConfig
from engine.data.page import DatasetPage
from engine.errors import EngineError, StorageError
from ui.checks import CheckQuestion, RunningCheck
from ui.draft import model_of
from ui.errors import shown_as_message, trouble
from ui.page import Page
from ui.pick import pick_list, pickable, picked
from ui.views.dataset import (
    render_facts,
    render_format,
    render_lengths,
    render_problems,
    render_progress,
    render_row,
)

_SAMPLES = (
    ("sample:loratory-faq", "loratory-faq", "347 questions and answers on fine-tuning, Alpaca format"),
    ("sample:lab-chats", "lab-chats", "112 conversations in a lab, ShareGPT format"),
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
            with gr.Row(elem_id="row-controls"):
                self.previous = gr.Button("← Previous", size="sm", min_width=90, scale=0)
                self.row = gr.Number(
                    1, label="Row", precision=0, minimum=0, container=False, min_width=90, elem_id="row"
                )
                self.next = gr.Button("Next →", size="sm", min_width=90, scale=0)
                self.view = gr.Radio(
                    [("As tokens", "tokens"), ("As a conversation", "conversation")],
                    value="tokens",
                    show_label=False,
                    container=False,
                    elem_id="row-view",
                )
            self.shown = gr.HTML(elem_id="row-shown")
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
        self.poll = gr.Timer(0.5, active=False)
        self._change = gr.State({})
        self._question_key = gr.State("")

    def wire(self) -> None:
        """Connect the events."""
        page, form = self._page, self._page.form
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        values = form.components
        for chosen in (
            self.samples.click(shown_as_message(self._pick_sample), values, self._change, **quiet),
            self.own.submit(shown_as_message(self._take_path), [self.own, *values], self._change, **quiet),
            self.upload.upload(shown_as_message(self._take_upload), [self.upload, *values], self._change, **quiet),
        ):
            self.open_after(page.fill_after(chosen, self._change))
        for name in ("format", "train_on", "eval_fraction", "max_samples", "split", "subset", "revision"):
            component = form[f"dataset.{name}"]
            # A box is read when Enter is pressed, not at each letter: opening a dataset is more than a redraw.
            settled: Any = component.submit if hasattr(component, "submit") else component.input
            self.open_after(settled(lambda: None, None, None, **quiet))
        for role in self.roles:
            mapped = role.input(
                self._map_columns, [form["dataset.format"], *self.roles], form["dataset.column_map"], **quiet
            )
            self.open_after(page.refresh_after(mapped))
        viewing = [self.row, self.view, *form.components]
        for button, step in ((self.previous, -1), (self.next, 1)):
            button.click(
                lambda row, step=step: max(0, int(row or 0) + step), self.row, self.row, queue=False, **quiet
            ).then(self._show_row, viewing, self.shown, **quiet)
        gr.on([self.row.submit, self.view.input], self._show_row, viewing, self.shown, **quiet)
        jumped = self.problems.click(_picked_row, None, self.row, queue=False, **quiet)
        jumped.then(self._show_row, viewing, self.shown, **quiet)
        self.poll.tick(
            self._tick,
            [self._question_key, *form.components],
            [self.facts, self.lengths, self.problems, self.stop, self.poll, self._question_key],
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
            [self.row, self.view, *form.components],
            [self.samples, self.summary, self.opened, self.shown, self.mapping_row, *self.roles, self.poll],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def _dataset(self, values: Sequence[Any]) -> DatasetConfig | None:
        mapping = self._page.form.mapping(values)["dataset"]
        try:
            return DatasetConfig.model_validate(mapping)
        except ValueError:
            return None

    def _question(self, values: Sequence[Any]) -> CheckQuestion | None:
        mapping = self._page.form.mapping(values)
        dataset = self._dataset(values)
        if dataset is None:
            return None
        training = mapping["training"]
        defaults = TrainingConfig()
        return CheckQuestion(
            dataset=dataset,
            model=model_of(mapping),
            max_length=max(8, int(training.get("max_length") or defaults.max_length)),
            seed=int(training.get("seed") or 0),
        )

    def _open(self, row: float, view: str, *values: Any) -> list[Any]:
        question = self._question(values)
        if question is None:
            closed = gr.update(visible=False)
            return [render_samples(""), _EMPTY, closed, "", closed, *[gr.skip()] * _MOST_ROLES, gr.Timer(active=False)]
        source = question.dataset.source
        samples = render_samples(source)
        try:
            shown = self._preview(question, int(row or 0))
        except EngineError as error:
            closed = gr.update(visible=False)
            return [samples, trouble(error), closed, "", closed, *[gr.skip()] * _MOST_ROLES, gr.Timer(active=False)]
        self._page.services.checks.ask(question)
        return [
            samples,
            render_format(source, shown),
            gr.update(visible=True),
            render_row(shown, view == "tokens"),
            gr.update(visible=not shown.format_sure or bool(question.dataset.column_map)),
            *_role_updates(shown),
            gr.Timer(active=True),
        ]

    def _preview(self, question: CheckQuestion, row: int) -> DatasetPage:
        return self._page.services.inspector.preview(
            question.dataset, question.model, question.max_length, first_row=max(0, row), count=1
        )

    def _show_row(self, row: float, view: str, *values: Any) -> str:
        question = self._question(values)
        if question is None:
            return ""
        try:
            return render_row(self._preview(question, int(row or 0)), view == "tokens")
        except EngineError as error:
            return trouble(error)

    def _tick(self, shown_key: str, *values: Any) -> list[Any]:
        """Follow the check of what is chosen now; idle once its answer is on the page."""
        question = self._question(values)
        check = self._page.services.checks.find(question) if question is not None else None
        if check is None:
            return [*[gr.skip()] * 3, gr.update(visible=False), gr.Timer(active=False), gr.skip()]
        key = f"{check.question.key}|{check.is_done}"
        if check.is_done and shown_key == key:
            return [*[gr.skip()] * 3, gr.update(visible=False), gr.Timer(active=False), gr.skip()]
        return [*_render_check(check), gr.update(visible=not check.is_done), gr.Timer(active=not check.is_done), key]

    def _stop(self, *values: Any) -> None:
        question = self._question(values)
        check = self._page.services.checks.find(question) if question is not None else None
        if check is not None:
            check.stop.set()

    def _with_source(self, source: str, values: Sequence[Any]) -> dict[str, Any]:
        mapping = self._page.draft(values).mapping
        kept = {name: mapping["dataset"][name] for name in ("eval_fraction", "train_on") if name in mapping["dataset"]}
        return {**mapping, "dataset": {**kept, "source": source}}

    def _pick_sample(self, event: gr.EventData, *values: Any) -> dict[str, Any]:
        wanted = picked(event)
        if wanted not in {source for source, _, _ in _SAMPLES}:
            return {}
        return self._with_source(wanted, values)

    def _take_path(self, text: str, *values: Any) -> dict[str, Any]:
        return self._with_source(text.strip(), values) if text.strip() else {}

    def _take_upload(self, file: str | None, *values: Any) -> dict[str, Any]:
        if not file:
            return {}
        return self._with_source(str(keep_upload(Path(file), self._page.services.home.uploads)), values)

    def _map_columns(self, chosen_format: str, *columns: str | None) -> dict[str, str]:
        roles = _ROLES.get(chosen_format, _ROLES["alpaca"])
        pairs = zip(roles, columns, strict=False)
        return {role: column for role, column in pairs if column and column not in (_NOTHING, role)}


def keep_upload(uploaded: Path, folder: Path) -> Path:
    """Move a file that came in through the page into the uploads folder, under a safe version of its name.

    Raises:
        StorageError: If it cannot be kept.
    """
    name = re.sub(r"[^\w.-]+", "-", uploaded.name).lstrip("-.")[-120:] or "upload"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = folder / name
        number = 1
        while target.exists():
            number += 1
            target = folder / f"{number}-{name}"
        shutil.move(uploaded, target)
    except OSError as error:
        raise StorageError(
            f"The upload {name} cannot be kept ({error.strerror}).", "Free some space, then upload it again."
        ) from error
    return target


def render_samples(chosen: str) -> str:
    """The samples that come with Loratory, as rows that can be picked."""
    rows = "".join(
        f'<tr {pickable(source, chosen=source == chosen)}><td>{name}<span class="under">{about}</span></td></tr>'
        for source, name, about in _SAMPLES
    )
    return f'<table class="plain"><thead><tr><th>Samples that come with Loratory</th></tr></thead><tbody>{rows}</tbody></table>'


def _render_check(check: RunningCheck) -> tuple[str, str, str]:
    if check.error is not None:
        return trouble(check.error), "", ""
    if check.report is None:
        return render_progress(check.progress), "", ""
    return render_facts(check.report), render_lengths(check.report), render_problems(check.report)


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


def _picked_row(event: gr.EventData) -> int:
    text = picked(event)
    return int(text) if text.isdigit() and len(text) < 12 else 0
