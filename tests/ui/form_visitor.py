"""A form without a browser: its values follow what handlers answer, as the components of a page do."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from loratory.ui.draft import Draft
from loratory.ui.form_change import Reading
from loratory.ui.page import Page


class FormVisitor:
    """One open page, of which only the form and what was applied to it are looked at."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.values: dict[Any, Any] = dict(zip(page.form.components, page.form.updates({}), strict=True))
        self.take(page.restore_draft({}))

    def take(self, updates: Any) -> None:
        """Show what a handler answered."""
        if updates == gr.skip():
            return
        for component, update in updates.items():
            if not isinstance(update, dict) or update.get("__type__") != "update":
                self.values[component] = update
            elif "value" in update:
                self.values[component] = update["value"]

    @property
    def mapping(self) -> dict[str, dict[str, Any]]:
        """The form as the server reads it."""
        return self.page.settings(self.form_values())

    @property
    def reading(self) -> Reading:
        """The form, and which of it no one has set."""
        return self.page.read(self.form_values())

    @property
    def applied_notice(self) -> str:
        """What the page says of the last change that was applied."""
        self.refresh()
        return str(self.values.get(self.page.change_line, ""))

    @property
    def draft(self) -> Draft:
        """The draft as the server reads it."""
        return self.page.draft(self.form_values())

    def set_by_hand(self, **settings: Any) -> None:
        """Change settings as a person does: `training__max_length=144`."""
        self.values |= {self.page.form[name.replace("__", ".")]: value for name, value in settings.items()}

    def fill(self, mapping: Mapping[str, Any], title: str = "Preset") -> None:
        """Put a whole configuration into the form, as a preset does."""
        self.take(self.page.fill_form(title, mapping, *self.form_values()))

    def change(self, change: Mapping[str, Mapping[str, Any]]) -> None:
        """Put some settings into the form, as an advised change does."""
        self.take(self.page.change_with_undo(change, *self.form_values()))

    def undo(self) -> None:
        """Press the button next to what was applied."""
        self.take(self.page.undo(*self._inputs()))

    def refresh(self) -> None:
        """Redraw, as every change of the form does."""
        self.take(self.page.redraw(*self._inputs()))

    def form_values(self) -> list[Any]:
        return [self.values[component] for component in self.page.form.components]

    def _inputs(self) -> list[Any]:
        return [self.values.get(component) for component in self.page.redraw_inputs]
