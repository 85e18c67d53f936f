"""Colours and sizes by name: each name that the page uses is defined."""

import re
from pathlib import Path

from loratory.ui.theme import build_theme

UI = Path(__file__).parents[2] / "ui"


def test_every_variable_of_style_that_is_used_is_defined():
    sources = {path: path.read_text() for path in UI.rglob("*") if path.suffix in (".py", ".css", ".js")}
    definitions = set(re.findall(r"(--[a-z0-9-]+)\s*:", "\n".join(sources.values()) + build_theme()._get_theme_css()))

    used = {(path.name, name) for path, text in sources.items() for name in re.findall(r"var\((--[a-z0-9-]+)", text)}

    assert len(used) > 30
    assert {(file, name) for file, name in used if name not in definitions} == set()
