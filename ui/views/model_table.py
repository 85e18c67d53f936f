"""Models as rows that can be picked: the catalogue, and what the Hub found."""

from collections.abc import Sequence
from html import escape

from engine.models.catalog import CatalogEntry
from engine.models.hub import HubModel
from ui.backend.fit_table import FitTable
from ui.pick import pickable
from ui.views.quantities import count

_MARKS = {"fits": ("yes", "fits"), "tight": ("tight", "tight"), "does_not_fit": ("no", "too big")}


def render_catalog(entries: Sequence[CatalogEntry], chosen: str, fits: FitTable) -> str:
    """The catalogue as a table; per method, whether it fits the device."""
    if not entries:
        return (
            '<div class="empty"><b>No model of the catalogue matches</b>Press Enter to search the Hugging Face Hub, '
            "or give its id or folder in the other box.</div>"
        )
    columns = fits.methods
    head = "".join(f"<th>{escape(name.removesuffix(' fine-tuning'))}</th>" for name in columns)
    rows = "".join(_row(entry, entry.id == chosen, fits) for entry in entries)
    return (
        f'<table class="plain"><caption>Fits: at 1,024 tokens and batch 2 on {escape(fits.device_name)}.</caption>'
        f'<thead><tr><th>Model</th><th class="r">Parameters</th><th class="r">Context</th><th>Licence</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _row(entry: CatalogEntry, is_chosen: bool, fits: FitTable) -> str:
    marks = []
    verdicts, unknown = fits.verdicts(entry.id), "…" if fits.is_pending(entry.id) else "–"
    for verdict in verdicts:
        css, words = _MARKS.get(verdict or "", ("soft", unknown))
        marks.append(f'<td><span class="{css}">{words}</span></td>')
    about = f"{entry.about} The Hub asks for your consent first." if entry.gated else entry.about
    context = f"{entry.context_length:,}" if entry.context_length else "–"
    return (
        f"<tr {pickable(entry.id, chosen=is_chosen)}><td>{escape(entry.title)}"
        f'<span class="under">{escape(about)}</span></td>'
        f'<td class="r">{count(entry.parameters)}</td><td class="r">{context}</td>'
        f'<td class="soft tag">{escape(entry.license or "–")}</td>{"".join(marks)}</tr>'
    )


def render_hub_results(query: str, results: Sequence[HubModel]) -> str:
    """What the Hub found for a query."""
    if not results:
        return f'<p class="notice">The Hub knows no text-generation model for “{escape(query)}”.</p>'
    rows = "".join(
        f"<tr {pickable(model.id)}><td>{escape(model.id)}</td>"
        f'<td class="r">{count(model.parameters) if model.parameters else "–"}</td>'
        f'<td class="soft">{escape(model.license or "–")}</td><td class="r soft">{model.downloads:,}</td></tr>'
        for model in results
    )
    return (
        f'<h3>On the Hub, for “{escape(query)}”</h3><div class="scroll"><table class="plain"><thead><tr><th>Model</th>'
        '<th class="r">Parameters</th><th>Licence</th><th class="r">Downloads</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
