"""The fine-tunes that ship with Loratory, as a row of choices."""

from collections.abc import Sequence
from html import escape

from engine.config.presets import Preset


def render_presets(presets: Sequence[Preset]) -> str:
    """One choice a preset: its title, the device it is made for, and what it is about."""
    if not presets:
        return ""
    items = "".join(
        f'<button type="button" data-pick="{escape(preset.name, quote=True)}" title="{escape(preset.about, quote=True)}">'
        f"<b>{escape(preset.title)}</b><span>{escape(preset.device)}</span></button>"
        for preset in presets
    )
    return f'<div class="presets" role="group" aria-label="Presets">{items}</div>'
