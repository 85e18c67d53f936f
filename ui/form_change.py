"""A change of several settings at once, such as a preset or advice: its description and its undo."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from loratory.engine.config.methods.registry import METHODS
from loratory.engine.errors import shorten
from loratory.ui.views.html import pick_button, setting_title, short_name

Sections = Mapping[str, Mapping[str, Any]]

_MOST_NAMES = 2  # settings; the rest is counted
_LONGEST = 40  # characters of a value
_TERMS = {"model.id": "model", "dataset.source": "dataset"}  # what is named first


@dataclass(frozen=True)
class Reading:
    """The values of the form, and which of them are defaults that depend on the rest."""

    sections: Sections
    open_ones: frozenset[str] = frozenset()

    @property
    def values(self) -> dict[str, Any]:
        """Plain values by section.field, tuples as lists, as browsers send them; without empty ones."""
        return {
            f"{section}.{field}": list(value) if isinstance(value, tuple) else value
            for section, settings in self.sections.items()
            for field, value in settings.items()
            if value is not None
        }


@dataclass(frozen=True)
class FormChange:
    """The form before and after a change; a setting that is edited later drops out."""

    title: str  # such as "Preset"; may be empty
    before: Reading
    after: Reading
    undoes: bool = False  # it undid an earlier change
    until_edited: bool = False  # it expires with the next edit of the form
    note: str = ""  # a sentence on what it left as it was

    @property
    def names(self) -> list[str]:
        """Names of the settings that differ, in value or in whether they are set."""
        old, new = self.before.values, self.after.values
        reset = self.before.open_ones ^ self.after.open_ones
        names = {**dict.fromkeys(_TERMS), **old, **new}
        return [name for name in names if old.get(name) != new.get(name) or name in reset]

    def active_names(self, now: Reading) -> list[str]:
        """Return the names of its settings that were not edited since."""
        values, after, open_ones = now.values, self.after.values, self.after.open_ones
        set_by_user = {name: value for name, value in after.items() if name not in open_ones}
        if self.until_edited and not (set_by_user.items() <= values.items() and open_ones <= now.open_ones):
            return []
        return [name for name in self.names if values.get(name) == after.get(name) or name in now.open_ones]

    def undo(self, now: Reading) -> Reading:
        """Return the form without this change, with None for empty settings; later edits stay."""
        mapping = {section: dict(settings) for section, settings in now.sections.items()}
        names, before = frozenset(self.active_names(now)), self.before.values
        for name in names:
            section, _, field = name.partition(".")
            mapping.setdefault(section, {})[field] = before.get(name)
        return Reading(mapping, (self.before.open_ones & names) | (now.open_ones - names))

    def render(self, now: Reading) -> str:
        """Return old and new values with an undo button; empty if no setting still has its new value."""
        values, before = now.values, self.before.values
        names = [name for name in self.active_names(now) if before.get(name) != values.get(name)]
        if not names:
            return ""
        terms = {name: _TERMS.get(name) or setting_title(name) or name.rpartition(".")[2] for name in names}
        changes = [f"{term} {_display(name, before)} → {_display(name, values)}" for name, term in terms.items()]
        more = changes[_MOST_NAMES:]
        count_text = f"changed {len(changes)} settings" if more else ""
        titles = ("Undone" if self.undoes else "", self.title, count_text, ", ".join(changes[:_MOST_NAMES]))
        text = ": ".join(filter(None, titles))
        button = "redo" if self.undoes else "undo"
        link = pick_button(button, button, label=f"{button.capitalize()}: {text}")
        rest = f" <details><summary>{len(more)} more</summary>{escape(', '.join(more))}</details>" if more else ""
        note = f"{escape(self.note)} " if self.note else ""
        return f'<div class="notice" role="status">{note}{escape(text)}{rest} · {link}</div>'


def _display(name: str, values: Mapping[str, Any]) -> str:
    """Return a value as it is typed into the form, a method by its label."""
    value = values.get(name)
    if name == "adapter.method" and value in METHODS:
        return METHODS[value].label
    if value is None or value in ("", [], {}):
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        value = [f"{name}: {entry}" for name, entry in value.items()]
    if isinstance(value, list):
        value = [entry.get("scorer", entry) if isinstance(entry, dict) else entry for entry in value]
        return shorten(", ".join(map(str, value)), _LONGEST)
    text = short_name(value) if isinstance(value, str) else str(value)
    return shorten(text, _LONGEST)
