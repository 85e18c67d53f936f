"""More datasets beside the first, each with a weight."""

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from engine.config.dataset import DatasetConfig
from engine.errors import ConfigError, Problem
from ui.errors import shown_as_message
from ui.fields import field_of
from ui.page import Page
from ui.pick import pick_list, picked


class MixPart:
    """Lays out the folded part of the Data tab; `wire` returns the events after which the dataset has changed."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._mix = page.form.register("dataset.mix", gr.State({}))
        with gr.Accordion("Mix with other datasets", open=False, elem_id="mix"):
            gr.HTML(f'<p class="lead">{escape(field_of("dataset.mix").description or "")}</p>')
            self.shown = pick_list(elem_id="mixed")
            with gr.Row(equal_height=True):
                self.source = gr.Textbox(
                    label="Another dataset",
                    placeholder="sample:lab-chats, /path/to/rows.jsonl or owner/name",
                    scale=5,
                    min_width=240,
                    elem_id="mix-source",
                )
                self.weight = gr.Number(1, label="Weight", minimum=0, scale=1, min_width=110, elem_id="mix-weight")
                self.add = gr.Button("Add", size="sm", scale=0, min_width=90, elem_id="mix-add")
        page.on_draft(self.shown, lambda draft: render_mix(draft.mapping["dataset"].get("mix") or {}))

    def wire(self) -> tuple[Any, ...]:
        """Connect the events."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        added = gr.on(
            [self.add.click, self.source.submit],
            shown_as_message(_with_one_more),
            [self.source, self.weight, self._mix],
            [self.source, self._mix],
            **quiet,
        )
        removed = self.shown.click(_without, self._mix, self._mix, **quiet)
        return self._page.refresh_after(added), self._page.refresh_after(removed)


def _with_one_more(source: str, weight: float | None, mix: Mapping[str, float]) -> tuple[str, dict[str, float]]:
    source = (source or "").strip()
    if not source:
        raise ConfigError([Problem("dataset.mix", "name a dataset first.")])
    more = {**mix, source: 1.0 if weight is None else weight}
    try:
        DatasetConfig.model_validate({"source": "-", "mix": more})
    except ValueError as error:
        message = (
            f"a weight lies above 0 and up to 100, and 20 datasets are the most; {weight} for one more is not that."
        )
        raise ConfigError([Problem("dataset.mix", message)]) from error
    return "", more


def _without(event: gr.EventData, mix: Mapping[str, float]) -> dict[str, float]:
    wanted = picked(event)
    return {source: weight for source, weight in mix.items() if source != wanted}


def render_mix(mix: Mapping[str, float]) -> str:
    """What is mixed in, each with a way to take it out."""
    if not mix:
        return ""
    rows = "".join(
        f"<tr><td>{escape(source)}</td><td class='r'>× {weight:g}</td>"
        f'<td class="r"><button type="button" class="link" data-pick="{escape(source, quote=True)}" '
        f'aria-label="Take {escape(source, quote=True)} out">take out</button></td></tr>'
        for source, weight in mix.items()
    )
    return (
        '<table class="plain"><thead><tr><th>Mixed in</th><th class="r">Weight</th><th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
