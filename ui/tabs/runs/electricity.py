"""What electricity costs: asked once, used by every run that says what it cost."""

from typing import Any

import gradio as gr

from engine.runs.electricity import Electricity, read_electricity, save_electricity
from ui.errors import shown_as_message
from ui.fields import component_of_field, number_of, text_of
from ui.page import Page

_FIELDS = ("price_per_kwh", "currency", "watts")
_LEAD = (
    '<p class="small">With a price, every run says what it cost. GPUs measure their energy themselves; for the others '
    "the stated power counts. Kept in this home, for all of its runs.</p>"
)


class ElectricityPart:
    """Lays out price, currency and power, folded."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._tab = page.tab_here()
        with gr.Accordion("Cost of electricity", open=False, elem_id="electricity"):
            gr.HTML(_LEAD)
            with gr.Row():
                self.inputs = [
                    component_of_field(Electricity.model_fields[name], min_width=180, elem_id=f"electricity-{name}")
                    for name in _FIELDS
                ]
            self.save = gr.Button("Keep", scale=0, min_width=110, elem_id="electricity-save")

    def wire(self) -> None:
        """Connect the events."""
        quick: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        self._tab.select(self._read, None, self.inputs, **quick)
        self.save.click(shown_as_message(self._save), self.inputs, None, **quick)

    def _read(self) -> list[Any]:
        known = read_electricity(self._page.services.home)
        return [text_of(known.price_per_kwh), known.currency, text_of(known.watts)]

    def _save(self, price_per_kwh: Any, currency: Any, watts: Any) -> None:
        save_electricity(self._page.services.home, number_of(price_per_kwh), currency, number_of(watts))
        gr.Info("Kept. Runs say what they cost.", duration=4)
