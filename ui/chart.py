"""A Plotly chart that is updated in place: zoom survives, light and dark need no round trip."""

import importlib.util
import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

_SCRIPT = (Path(__file__).parent / "assets" / "chart.js").read_text(encoding="utf-8")
_TEMPLATE = '<div class="chart" role="img" data-waiting="{waiting}"><p class="small">Loading the chart …</p></div>'


def plotly_script() -> Path:
    """The drawing library that comes with the Python package, so that nothing is fetched from outside."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"


def chart(waiting: str = "", **presentation: Any) -> gr.HTML:
    """A place for a figure; its value is what `figure_json` returns.

    Args:
        waiting: One sentence that stands there while the value is "".
        presentation: As `gr.HTML` takes it.
    """
    library = plotly_script()
    gr.set_static_paths([library])
    template = _TEMPLATE.format(waiting=escape(waiting, quote=True))
    head = f'<script src="gradio_api/file={library.as_posix()}"></script>'
    return gr.HTML("", html_template=template, js_on_load=_SCRIPT, head=head, apply_default_css=False, **presentation)


def figure_json(traces: list[dict[str, Any]], layout: dict[str, Any], label: str) -> str:
    """A figure as the browser draws it.

    Args:
        traces: Plotly traces as plain values; colours may be CSS variables such as `var(--series-blue)`.
        layout: Plotly layout, with `height` in pixels.
        label: One sentence that says what the chart shows, for those who do not see it.
    """
    return json.dumps({"data": traces, "layout": layout, "label": label}, separators=(",", ":"), allow_nan=False)
