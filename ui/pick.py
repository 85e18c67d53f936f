"""Lists whose rows can be picked, by mouse and keyboard: HTML that sends back the id of the row."""

from html import escape
from typing import Any

import gradio as gr

# Rows carry data-pick; Enter and Space work like a click. Event data arrives as `event.pick`.
_PICK_SCRIPT = """
const send = (target) => {
  const row = target.closest('[data-pick]');
  if (row && element.contains(row)) trigger('click', {pick: row.dataset.pick});
};
element.addEventListener('click', (event) => { if (!event.target.closest('a')) send(event.target); });
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); send(event.target); }
});
"""


def pick_list(value: str = "", **presentation: Any) -> gr.HTML:
    """HTML whose elements with `data-pick` send their id on a `.click` event; see `picked`."""
    return gr.HTML(value, js_on_load=_PICK_SCRIPT, **presentation)


def picked(event: gr.EventData) -> str:
    """Id of the row that was picked; a client's value, so look it up before you trust it."""
    return str(event._data.get("pick", "")) if isinstance(event._data, dict) else ""


def pickable(identifier: str, *, chosen: bool = False) -> str:
    """Attributes of a table row that can be picked."""
    state = 'class="chosen" aria-selected="true"' if chosen else 'aria-selected="false"'
    return f'data-pick="{escape(identifier, quote=True)}" tabindex="0" role="row" {state}'
