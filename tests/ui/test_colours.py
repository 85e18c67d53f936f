"""Colours and sizes by name: each name that the page uses is defined."""

import itertools
import math
import re
from pathlib import Path

import pytest

from loratory.ui.theme import build_theme
from loratory.ui.views.loss_chart import SERIES

UI = Path(__file__).parents[2] / "ui"


def test_every_variable_of_style_that_is_used_is_defined():
    sources = {path: path.read_text() for path in UI.rglob("*") if path.suffix in (".py", ".css", ".js")}
    definitions = set(re.findall(r"(--[a-z0-9-]+)\s*:", "\n".join(sources.values()) + build_theme()._get_theme_css()))

    used = {(path.name, name) for path, text in sources.items() for name in re.findall(r"var\((--[a-z0-9-]+)", text)}

    assert len(used) > 30
    assert {(file, name) for file, name in used if name not in definitions} == set()


def lab_of(colour: str) -> tuple[float, float, float]:
    """Return CIE L*a*b* of a colour such as `#0072B2`, for a ground of standard daylight."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    x = (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047
    y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    z = (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("theme", [":root", ".dark"])
def test_the_colours_of_curves_are_far_apart(theme):
    css = (UI / "assets/runs.css").read_text()
    block = css[css.index(f"{theme} {{") :].partition("}")[0]
    colours = dict(re.findall(r"(--series-[a-z]+): (#[0-9A-Fa-f]{6})", block))

    distances = {
        pair: math.dist(*(lab_of(colours[re.sub(r"var|[()]", "", name)]) for name, _ in pair))
        for pair in itertools.combinations(SERIES, 2)
    }

    assert min(distances.values()) > 20, min(distances, key=lambda pair: distances[pair])
