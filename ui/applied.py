"""What was put into the form at once, such as a preset or an advised change: in words, and what takes it back."""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from ui.views.html import pick_button, short_name

Settings = dict[str, Any]  # values by section.field; None for an empty one
Sections = Mapping[str, Mapping[str, Any]]

_NAMED = 2  # settings; the rest is counted
_LONGEST = 40  # characters of a value
_TERMS = {"model.id": "model", "dataset.source": "dataset"}  # what is named first


@dataclass(frozen=True)
class Applied:
    """Settings before and after; what was changed again since is no longer part of it."""

    title: str  # what they are, such as "Preset"; empty where the change is all there is to say
    before: Settings
    after: Settings
    undoes: bool = False  # it took back an earlier one
    others: Settings | None = None  # all other settings, where it lasts only until one of them changes

    @classmethod
    def between(cls, title: str, before: Sections, after: Sections, *, undoes: bool = False) -> "Applied":
        """Return the settings that differ between two readings of the form."""
        old, new = _flat(before), _flat(after)
        changed = [name for name in {**dict.fromkeys(_TERMS), **old, **new} if old.get(name) != new.get(name)]
        return cls(title, {name: old.get(name) for name in changed}, {name: new.get(name) for name in changed}, undoes)

    def until_changed(self, after: Sections) -> "Applied":
        """Return the same, to be dropped as soon as anything in the form changes."""
        others = {name: value for name, value in _flat(after).items() if name not in self.after}
        return Applied(self.title, self.before, self.after, self.undoes, others)

    def standing(self, now: Sections) -> list[str]:
        """Return the names of its settings that still have the value that it gave them."""
        values = _flat(now)
        names = [name for name, value in self.after.items() if values.get(name) == value]
        if self.others is None:
            return names
        untouched = len(names) == len(self.after) and self.others.items() <= values.items()
        return names if untouched else []

    def taken_back(self, now: Sections) -> dict[str, dict[str, Any]]:
        """Return the form's values without it, None for empty ones; what a person changed since stays."""
        mapping = {section: dict(settings) for section, settings in now.items()}
        for name in self.standing(now):
            section, _, field = name.partition(".")
            mapping.setdefault(section, {})[field] = self.before[name]
        return mapping

    def render(self, now: Sections) -> str:
        """Return what changed, from which value to which, with a button that takes it back; nothing where none still stands."""
        names = self.standing(now)
        if not names:
            return ""
        words = [f"{_term(name)} {_shown(self.before[name])} → {_shown(self.after[name])}" for name in names[:_NAMED]]
        if len(names) > _NAMED:
            words.append(f"{len(names) - _NAMED} more")
        title = f"Undone: {self.title}" if self.undoes and self.title else "Undone" if self.undoes else self.title
        said = f"{title}: {', '.join(words)}" if title else ", ".join(words)
        button = "redo" if self.undoes else "undo"
        label = f"{button.capitalize()}: {said}"
        return f'<p class="notice" role="status">{escape(said)} · {pick_button(button, button, label=label)}</p>'


def _flat(sections: Sections) -> Settings:
    """Return plain values by section.field; what a tuple holds comes back from a browser as a list."""
    return {
        f"{section}.{field}": list(value) if isinstance(value, tuple) else value
        for section, settings in sections.items()
        for field, value in settings.items()
        if value is not None
    }


def _term(name: str) -> str:
    return _TERMS.get(name, name.rpartition(".")[2])


def _shown(value: Any) -> str:
    """Return a value as a person would type it."""
    if value is None or value in ("", [], {}):
        return "empty"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))[:_LONGEST]
    text = short_name(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
