"""The drawer with the draft as YAML: read along, edit and apply it, save it as a preset, copy its command."""

import json
from html import escape
from typing import Any

import gradio as gr

from loratory.engine.config import load
from loratory.engine.config.derived_defaults import changed_settings
from loratory.engine.config.presets import save_preset
from loratory.engine.errors import ConfigError, EngineError
from loratory.engine.lab.rules import lab_problems
from loratory.ui.components import QUICK, script
from loratory.ui.draft import Draft, given_by_person
from loratory.ui.form import setting_in
from loratory.ui.page import Page
from loratory.ui.tabs.train import TrainTab
from loratory.ui.views.html import copyable, pick_button


class YamlDrawer:
    """Lays out the drawer; `wire` connects it."""

    def __init__(self, page: Page, train: TrainTab) -> None:
        self.page = page
        self.train = train

        def query(values: list[Any]) -> str:
            """Return as HTML what is wrong with a text, by line; save a correct one as a preset if that has a name."""
            text, preset = map(str, values)
            try:
                self.read(text)
                if preset:
                    save_preset(page.services.home, preset, text)
            except ConfigError as error:
                problems = load.locate_problems(text, error)
                buttons = (pick_button(str(line), f"line {line}: {problem}") for line, problem in problems)
                return "".join(f'<li class="wrong">{button}</li>' for button in buttons)
            except EngineError as error:
                return f'<li class="wrong">{escape(str(error))}</li>'
            return f'<li class="right">Saved as {escape(preset)}.</li>' if preset else ""

        self.drawer = gr.HTML(
            '{"yaml": "", "command": ""}', elem_id="draft-yaml", elem_classes="live",
            html_template=script("yaml", "html").replace("{command}", copyable("", "command")),
            js_on_load=script("yaml") + script("copy"), server_functions=[query],
        )  # fmt: skip
        page.on_draft(self.drawer, render_texts)

    def wire(self) -> None:
        """Connect the events."""
        self.train.fill_by(self.drawer.apply, self.apply, "YAML")
        self.drawer.submit(self.train.render_presets, None, self.train.presets, **QUICK)

    def apply(self, event: gr.EventData, *_form: Any) -> dict[str, Any]:
        """Return the settings of the text that the browser sends; raises if anything is wrong with it."""
        return self.read(str(event._data.get("text", "")))

    def read(self, text: str) -> dict[str, Any]:
        """Return the settings that a text names; raises a ConfigError that lists all that is wrong, also for this person."""
        values = load.mapping_from_yaml(text)
        problems = lab_problems(load.config_from_mapping(load.with_stand_ins(values)), self.page.services.home)
        if problems := [problem for problem in problems if setting_in(values, problem.field)]:
            raise ConfigError(problems)
        return values


def render_texts(draft: Draft) -> str:
    """Return as JSON the draft in YAML, without defaults, and its command."""
    settings = changed_settings(given_by_person(draft.mapping, draft.derived_defaults))
    return json.dumps({"yaml": load.config_to_yaml(settings), "command": load.command_of(settings)})
