"""Dataset settings: format, columns, split and mix; also shown if reading failed."""

from collections.abc import Mapping
from html import escape
from typing import Any, get_args

import gradio as gr

from loratory.engine.config.run import DatasetConfig
from loratory.engine.data.contract import DatasetColumns, DatasetPage
from loratory.engine.data.formats import FORMATS
from loratory.engine.errors import ConfigError, Problem
from loratory.engine.models.families.base import PixelSetting
from loratory.engine.models.source import is_hub_id
from loratory.ui.components import HIDDEN, SLOW, Updates, nothing, pick_list, picked_value, shown_as_message, visible_if
from loratory.ui.form import field_of
from loratory.ui.gradio_internals import Dropdown
from loratory.ui.page import Page
from loratory.ui.views.html import Column, lead, pick_button, table

_TRAIN_ON = [
    ("every answer", "assistant"), ("last answer", "last_assistant"),
    ("completion", "completion"), ("everything", "all"),
]  # fmt: skip
_ROLES = {name: tuple(column.role for column in format_.columns) for name, format_ in FORMATS.items()}
_MOST_ROLES = max(map(len, _ROLES.values()))
_ALL_ROLES = {role for roles in _ROLES.values() for role in roles}
_PIXELS = tuple(f"vision.{name}" for name in get_args(PixelSetting))
_NOTHING = "(none)"
_UNSEEN = {"format": "auto", "columns": []}


class DatasetFormat:
    """Lays out the settings for reading rows; `wire` returns the events that need a new read."""

    def __init__(self, page: Page) -> None:
        self.page = page
        form = page.form
        form.register("dataset.column_map", gr.State({}))
        with gr.Column(visible=False, elem_id="reading") as self.column:
            with gr.Row():
                form.setting("dataset.format", scale=1, min_width=170, elem_id="dataset-format")
                train_on = form.setting("dataset.train_on", scale=3, min_width=320, choices=_TRAIN_ON, visible=True)
                # Preference rows train on the answers only.
                page.on_draft(train_on, lambda draft: visible_if(draft.kind in (None, "answers")))
                for name in _PIXELS:
                    page.image_setting(name, min_width=200, elem_id=name.replace(".", "-"))
            with gr.Row(visible=False, elem_id="mapping") as self.mapping:
                labels = (f"Column {number + 1}" for number in range(_MOST_ROLES))
                self.roles = [Dropdown([], label=label, visible=False, min_width=150) for label in labels]
            self.role_map = pick_list(elem_id="role-map", more=("role_map",))
            with gr.Accordion("Split and sample", open=False, elem_id="split") as self.fold:
                with gr.Row():
                    form.setting("dataset.eval_fraction", maximum=0.5)
                    form.setting("dataset.max_samples")
                with gr.Row():
                    form.setting("dataset.split", elem_id="dataset-split")
                    form.setting("dataset.subset", elem_id="dataset-subset")
                    form.setting("dataset.revision")
                form.setting("dataset.images", elem_id="dataset-images")
            self.mix = DatasetMix(page)
        self.box_format = gr.State(_UNSEEN)  # the format and the columns of the boxes
        # What `of_page` and `of_columns` change.
        self.outputs = [self.column, self.mapping, *self.roles, self.fold, self.box_format]

    def wire(self) -> list[Any]:
        """Connect the events."""
        page, form = self.page, self.page.form
        column_map, format_ = form["dataset.column_map"], form["dataset.format"]
        # Roles of another format would be errors.
        events = [page.refresh_after(format_.input(_keep_mapping, [format_, column_map], column_map, **SLOW))]
        names = ("train_on", "eval_fraction", "max_samples", "split", "subset", "revision", "images")
        for component in map(form.__getitem__, (*(f"dataset.{name}" for name in names), *_PIXELS)):
            # On Enter, not on each keystroke: opening a dataset is expensive.
            listener = component.submit if hasattr(component, "submit") else component.input
            events.append(listener(nothing, None, None, **SLOW))
        boxes = [self.box_format, column_map, *self.roles]
        for role in self.roles:
            map_event = role.input(_map_columns, boxes, [column_map, format_], **SLOW)
            events.append(page.refresh_after(map_event))
        return [*events, *self.mix.wire()]

    def of_page(self, dataset: DatasetConfig, page: DatasetPage) -> Updates:
        """Return the settings of readable rows, with the column mapping if it may need correction."""
        wants_mapping = not page.format_sure or bool(dataset.column_map) or dataset.format != "auto"
        return self._boxes(page, page.column_map, mapping=wants_mapping)

    def of_columns(self, dataset: DatasetConfig, columns: DatasetColumns | None) -> Updates:
        """Return the settings after a failed read; for a Hub dataset without columns, open split and subset."""
        if columns is None:
            fold = {self.fold: gr.update(open=True)} if is_hub_id(dataset.source) else {}
            return {**self._boxes(None, {}, mapping=False), **fold}
        return self._boxes(columns, dataset.column_map, mapping=True)

    def _boxes(
        self, page: DatasetPage | DatasetColumns | None, column_map: Mapping[str, str], *, mapping: bool
    ) -> Updates:
        format_, names, samples = (page.format, list(page.columns), page.samples) if page else ("auto", [], {})
        labels = (f"{name}: {samples[name]}" if name in samples else name for name in names)
        choices = [_NOTHING, *zip(labels, names, strict=True)]
        plain = {name.strip().lower(): name for name in reversed(names)}
        boxes: list[Any] = []
        for column in FORMATS[format_].columns if format_ in FORMATS else ():
            name = column_map.get(column.role, "" if column_map else plain.get(column.role, ""))
            about = column.about + ("" if column.required else "; optional")
            texts = {"label": f"Column for {column.role}", "info": about, "visible": True}
            boxes.append(gr.update(choices=choices, value=name if name in names else _NOTHING, **texts))
        boxes += [HIDDEN] * (_MOST_ROLES - len(boxes))
        return {
            self.column: gr.update(visible=True),
            self.mapping: visible_if(mapping),
            **dict(zip(self.roles, boxes, strict=True)),
            self.box_format: {"format": format_, "columns": names},
        }


def _keep_mapping(format_: str, column_map: Mapping[str, str] | None) -> dict[str, str]:
    """Return the part of a mapping that belongs to a format; empty for auto."""
    roles = _ROLES.get(format_, ())
    return {role: column for role, column in (column_map or {}).items() if role in roles}


def _map_columns(
    box_format: Mapping[str, Any], column_map: Mapping[str, str] | None, *columns: str | None
) -> tuple[dict[str, str], str]:
    """Return the mapping from the boxes, and the format that they belong to."""
    roles, names = _ROLES.get(box_format["format"], ()), {name.strip().lower() for name in box_format["columns"]}
    mapping = {role: column for role, column in (column_map or {}).items() if role not in _ALL_ROLES}
    for role, column in zip(roles, columns, strict=False):
        if column and column != _NOTHING:
            if column != role:
                mapping[role] = column
        elif role in names or (role == "images" and "image" in names):
            mapping[role] = ""  # ignore the column with the role's own name
    return mapping, box_format["format"]


class DatasetMix:
    """Lays out additional datasets with weights; `wire` returns the events that change the dataset."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._mix = page.form.register("dataset.mix", gr.State({}))
        with gr.Accordion("Mix with other datasets", open=False, elem_id="mix"):
            self.list = pick_list(elem_id="mixed")
            with gr.Row(equal_height=True):
                self.source = gr.Textbox(
                    label="Another dataset", placeholder="sample:lab-chats, /path/to/rows.jsonl or owner/name", scale=5,
                    min_width=240, elem_id="mix-source",
                )  # fmt: skip
                self.weight = gr.Number(1, label="Weight", minimum=0, scale=1, min_width=110, elem_id="mix-weight")
                self.add = gr.Button("Add", size="sm", scale=0, min_width=90, elem_id="mix-add")
        page.form.show_problems_of("dataset.mix", self.source)
        page.on_draft(self.list, lambda draft: render_mix(draft.mapping["dataset"].get("mix") or {}))

    def wire(self) -> tuple[Any, ...]:
        """Connect the events."""
        add_event = gr.on(
            [self.add.click, self.source.submit], shown_as_message(_with_one_more),
            [self.source, self.weight, self._mix], [self.source, self._mix], **SLOW,
        )  # fmt: skip
        remove_event = self.list.click(_without, self._mix, self._mix, **SLOW)
        return self.page.refresh_after(add_event), self.page.refresh_after(remove_event)


def _with_one_more(source: str, weight: float | None, mix: Mapping[str, float]) -> tuple[str, dict[str, float]]:
    source = (source or "").strip()
    if not source:
        raise ConfigError([Problem("dataset.mix", "type a dataset first.")])
    more = {**mix, source: 1.0 if weight is None else weight}
    try:
        mixed = DatasetConfig.model_validate({"source": "-", "mix": more}).mix
    except ValueError as error:
        message = f"a weight must be above 0 and at most 100, got {weight}; 20 datasets are the limit."
        raise ConfigError([Problem("dataset.mix", message)]) from error
    return "", mixed


def _without(event: gr.EventData, mix: Mapping[str, float]) -> dict[str, float]:
    removed_source = picked_value(event)
    return {source: weight for source, weight in mix.items() if source != removed_source}


def render_mix(mix: Mapping[str, float]) -> str:
    """Return the table of additional datasets, with remove buttons."""
    about = lead(field_of("dataset.mix").description or "")
    if not mix:
        return about
    rows = (
        (escape(source), f"× {weight:g}", pick_button(source, "Remove", label=f"Remove {source}"))
        for source, weight in mix.items()
    )
    return about + table(["Mixed in", Column.of_numbers("Weight"), Column("", "r")], rows, scrolls="")
