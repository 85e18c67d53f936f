"""A change of several settings at once, such as a preset or advice: its description and its undo."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from engine.errors import shorten
from ui.views.html import pick_button, setting_title, short_name

Settings = dict[str, Any]  # values by section.field; None for an empty one
Sections = Mapping[str, Mapping[str, Any]]

_MOST_NAMES = 2  # settings; the rest is counted
_LONGEST = 40  # characters of a value
_TERMS = {"model.id": "model", "dataset.source": "dataset"}  # what is named first


@dataclass(frozen=True)
class Reading:
    """The values of the form, and which of them are defaults that depend on the rest."""

    sections: Sections
    open_ones: Collection[str] = ()


@dataclass(frozen=True)
class FormChange:
    """Settings before and after a change; a setting that is edited later drops out."""

    title: str  # such as "Preset"; may be empty
    before: Settings
    after: Settings
    undoes: bool = False  # it undid an earlier change
    others: Settings | None = None  # all other set values, if the change lasts only until one of them changes
    open_before: frozenset[str] = frozenset()  # settings that had their dependent default
    open_after: frozenset[str] = frozenset()
    note: str = ""  # a sentence on what it left as it was

    @classmethod
    def between(cls, title: str, before: "Reading", after: "Reading", *, undoes: bool = False) -> "FormChange":
        """Return the settings that differ between two readings, in value or in whether they are set."""
        old, new = _flat(before.sections), _flat(after.sections)
        names = [
            name
            for name in {**dict.fromkeys(_TERMS), **old, **new}
            if old.get(name) != new.get(name) or (name in before.open_ones) != (name in after.open_ones)
        ]
        was, now = ({name: flat.get(name) for name in names} for flat in (old, new))
        return cls(title, was, now, undoes, None, frozenset(before.open_ones), frozenset(after.open_ones))

    def until_changed(self, after: "Reading") -> "FormChange":
        """Return a copy that expires with the next edit of the form."""
        remaining = {*self.after, *after.open_ones}
        return replace(
            self, others={name: value for name, value in _flat(after.sections).items() if name not in remaining}
        )

    def active_names(self, now: "Reading") -> list[str]:
        """Return the names of its settings that were not edited since."""
        values = _flat(now.sections)
        names = [name for name, value in self.after.items() if values.get(name) == value or name in now.open_ones]
        if self.others is None:
            return names
        is_untouched = len(names) == len(self.after) and self.others.items() <= values.items()
        is_untouched = is_untouched and self.open_after <= set(now.open_ones)
        return names if is_untouched else []

    def undo(self, now: "Reading") -> "Reading":
        """Return the form without this change, with None for empty settings; later edits stay."""
        mapping = {section: dict(settings) for section, settings in now.sections.items()}
        names = self.active_names(now)
        for name in names:
            section, _, field = name.partition(".")
            mapping.setdefault(section, {})[field] = self.before[name]
        return Reading(mapping, {*self.open_before.intersection(names), *set(now.open_ones).difference(names)})

    def render(self, now: "Reading") -> str:
        """Return old and new values with an undo button; empty if no setting still has its new value."""
        values = _flat(now.sections)
        names = [name for name in self.active_names(now) if self.before[name] != values.get(name)]
        if not names:
            return ""
        words = [
            f"{_term(name)} {_display(self.before[name])} → {_display(values.get(name))}"
            for name in names[:_MOST_NAMES]
        ]
        if len(names) > _MOST_NAMES:
            words.append(f"{len(names) - _MOST_NAMES} more")
        title = f"Undone: {self.title}" if self.undoes and self.title else "Undone" if self.undoes else self.title
        text = f"{title}: {', '.join(words)}" if title else ", ".join(words)
        button = "redo" if self.undoes else "undo"
        label = f"{button.capitalize()}: {text}"
        note = f"{escape(self.note)} " if self.note else ""
        return f'<p class="notice" role="status">{note}{escape(text)} · {pick_button(button, button, label=label)}</p>'


def _flat(sections: Sections) -> Settings:
    """Return plain values by section.field, tuples as lists, as browsers send them."""
    return {
        f"{section}.{field}": list(value) if isinstance(value, tuple) else value
        for section, settings in sections.items()
        for field, value in settings.items()
        if value is not None
    }


def _term(name: str) -> str:
    return _TERMS.get(name) or setting_title(name) or name.rpartition(".")[2]


def _display(value: Any) -> str:
    """Return a value as it is typed into the form."""
    if value is None or value in ("", [], {}):
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return shorten(", ".join(map(str, value)), _LONGEST)
    text = short_name(value) if isinstance(value, str) else str(value)
    return shorten(text, _LONGEST)
