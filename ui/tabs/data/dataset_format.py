"""How a dataset is read: its format, which column is which, its split; in reach whatever went wrong with it."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from engine.config.dataset import DatasetConfig
from engine.data.contract import DatasetColumns, DatasetPage
from engine.data.formats import FORMATS
from ui.components import Dropdown
from ui.page import Page
from ui.tabs.data.dataset_mix import MixPart

_TRAIN_ON = [
    ("every answer", "assistant"),
    ("last answer", "last_assistant"),
    ("completion", "completion"),
    ("everything", "all"),
]
_MOST_ROLES = max(len(format_.columns) for format_ in FORMATS.values())
_NOTHING = "(none)"
_UNSEEN = {"format": "auto", "columns": []}


class ReadingPart:
    """Lays out the settings that say how rows are read; `wire` returns the events after which they are read anew."""

    def __init__(self, page: Page) -> None:
        self._page = page
        form = page.form
        form.register("dataset.column_map", gr.State({}))
        with gr.Column(visible=False, elem_id="reading") as self._column:
            with gr.Row():
                form.setting("dataset.format", scale=1, min_width=170, elem_id="dataset-format")
                form.setting("dataset.train_on", scale=3, min_width=320, choices=_TRAIN_ON)
            with gr.Row(visible=False, elem_id="mapping") as self._mapping:
                self.roles = [
                    Dropdown([], label=f"Column {number + 1}", visible=False, min_width=150)
                    for number in range(_MOST_ROLES)
                ]
            with gr.Accordion("Split and sample", open=False, elem_id="split") as self._fold:
                with gr.Row():
                    form.setting("dataset.eval_fraction", maximum=0.5)
                    form.setting("dataset.max_samples")
                with gr.Row():
                    form.setting("dataset.split", elem_id="dataset-split")
                    form.setting("dataset.subset", elem_id="dataset-subset")
                    form.setting("dataset.revision")
            self._mix = MixPart(page)
        self._seen = gr.State(_UNSEEN)  # the format and the columns that the boxes stand for

    @property
    def outputs(self) -> list[Any]:
        """What `hidden`, `of_page` and `of_columns` are for."""
        return [self._column, self._mapping, *self.roles, self._fold, self._seen]

    def wire(self) -> list[Any]:
        """Connect the events."""
        page, form = self._page, self._page.form
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        column_map, format_ = form["dataset.column_map"], form["dataset.format"]
        # Roles of another format would make the one that was chosen fail.
        chosen: Any = format_.input
        changed = [page.refresh_after(chosen(_keep_mapping, [format_, column_map], column_map, **quiet))]
        for name in ("train_on", "eval_fraction", "max_samples", "split", "subset", "revision"):
            component = form[f"dataset.{name}"]
            # A box is read when Enter is pressed, not at each letter: opening a dataset is more than a redraw.
            settled: Any = component.submit if hasattr(component, "submit") else component.input
            changed.append(settled(lambda: None, None, None, **quiet))
        for role in self.roles:
            mapped = role.input(_map_columns, [self._seen, column_map, *self.roles], [column_map, format_], **quiet)
            changed.append(page.refresh_after(mapped))
        return [*changed, *self._mix.wire()]

    def hidden(self) -> list[Any]:
        """Nothing is chosen that could be read."""
        return [gr.update(visible=False), gr.skip(), *[gr.skip()] * _MOST_ROLES, gr.skip(), gr.skip()]

    def of_page(self, dataset: DatasetConfig, shown: DatasetPage) -> list[Any]:
        """The settings beside rows that could be read; the mapping is there where it may have to be corrected."""
        wants_mapping = not shown.format_sure or bool(dataset.column_map) or dataset.format != "auto"
        seen = {"format": shown.format, "columns": list(shown.columns)}
        return self._boxes(seen, shown.column_map, mapping=wants_mapping, fold=gr.skip())

    def of_columns(self, dataset: DatasetConfig, known: DatasetColumns | None) -> list[Any]:
        """The settings beside what went wrong.

        Args:
            dataset: Which cannot be read so.
            known: Its columns; None where it cannot be opened at all, so that it may be the split that is wrong.
        """
        if known is None:
            return self._boxes(_UNSEEN, {}, mapping=False, fold=gr.update(open=True))
        seen = {"format": known.format, "columns": list(known.columns)}
        return self._boxes(seen, dataset.column_map, mapping=True, fold=gr.skip())

    def _boxes(self, seen: Mapping[str, Any], column_map: Mapping[str, str], *, mapping: bool, fold: Any) -> list[Any]:
        roles = FORMATS[seen["format"]].columns if seen["format"] in FORMATS else ()
        names = seen["columns"]
        boxes: list[Any] = []
        for column in roles:
            plain = {name.strip().lower(): name for name in reversed(names)}
            name = column_map.get(column.role, "" if column_map else plain.get(column.role, ""))
            boxes.append(
                gr.update(
                    choices=[_NOTHING, *names],
                    value=name if name in names else _NOTHING,
                    label=f"{column.role} is column",
                    info=column.about + ("" if column.required else "; optional"),
                    visible=True,
                )
            )
        boxes += [gr.update(visible=False)] * (_MOST_ROLES - len(boxes))
        return [gr.update(visible=True), gr.update(visible=mapping), *boxes, fold, seen]


def _roles_of(format_: str) -> tuple[str, ...]:
    return tuple(column.role for column in FORMATS[format_].columns) if format_ in FORMATS else ()


def _keep_mapping(format_: str, column_map: Mapping[str, str] | None) -> dict[str, str]:
    """What of a mapping belongs to a format; detection begins with none."""
    roles = _roles_of(format_)
    return {role: column for role, column in (column_map or {}).items() if role in roles}


def _map_columns(
    seen: Mapping[str, Any], column_map: Mapping[str, str] | None, *columns: str | None
) -> tuple[dict[str, str], str]:
    """Which column stands for which role of the format that the boxes are for, and that format, which it settles."""
    roles, names = _roles_of(seen["format"]), {name.strip().lower() for name in seen["columns"]}
    mapped = {role: column for role, column in (column_map or {}).items() if role not in _all_roles()}
    for role, column in zip(roles, columns, strict=False):
        if column and column != _NOTHING:
            if column != role:
                mapped[role] = column
        elif role in names:
            mapped[role] = ""  # the column of that name is there, and not meant
    return mapped, seen["format"]


def _all_roles() -> Sequence[str]:
    return [role for format_ in FORMATS for role in _roles_of(format_)]
