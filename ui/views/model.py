"""Tables of models to pick: catalogue and Hub results; and the details of one."""

import math
from collections.abc import Callable, Sequence
from html import escape

from loratory.engine.models.catalog import CatalogEntry, list_catalog
from loratory.engine.models.hub import HubModel
from loratory.engine.models.shape import ModelDetails
from loratory.engine.private_hub import PrivateCopy
from loratory.ui.backend.models import Fits
from loratory.ui.views import html

_MARKS: dict[str | None, tuple[str, str]] = {
    "fits": ("yes", "fits"), "tight": ("tight", "tight"), "does_not_fit": ("no", "too big"),
}  # fmt: skip
_FEW = 8  # that phones show first, by phone.css
_BYTES_PER_PARAMETER = 2  # of what these models are published in: bfloat16

SMALLEST = "Smallest first"

NOT_CHOSEN = html.empty(
    "No model chosen",
    "Pick a row above. If you are new here, take SmolLM2-135M-Instruct: it trains on any computer in a few minutes.",
)


def render_catalog(entries: Sequence[CatalogEntry], chosen: str, fits: Fits, order: str = SMALLEST) -> str:
    """Return the catalogue in an order of `ORDERS`, with the method to begin with and the memory that it needs."""
    entries = ORDERS.get(order, ORDERS[SMALLEST])(entries, fits)
    if not entries:
        return html.empty(
            "No matching model in the catalogue",
            "Show all models, press Enter to search the Hugging Face Hub, or type an id or a folder in the other box.",
        )
    columns = [
        html.Column("Model"), *map(html.Column.of_numbers, ("Parameters", "Download", "Context")), html.Column("Licence", "soft tag"),
        html.Column("Begin with"), html.Column.of_numbers("Needs, GiB"),
    ]  # fmt: skip
    done_count, is_done = fits.progress
    # Tokens are counted with the chosen model's tokenizer; other tokenizers differ slightly.
    rows, until = ("rows of 1,024 tokens", ", until your rows are counted") if fits.rows is None else ("your rows", "")
    caption = f"Memory: {rows} at batch 2 on {fits.device_name}{until}."
    if not is_done:
        estimated = f"{done_count} of {len(list_catalog())} models estimated"
        caption += f" {estimated}; each architecture takes seconds the first time."
    lines = (_entry(entry, entry.id == chosen, fits) for entry in entries)
    summary = f"<summary>All {len(entries)} models</summary>"
    all_models = f'<details id="all-models" class="fold">{summary}</details>' if len(entries) > _FEW else ""
    return html.table(columns, lines, caption=caption, scrolls="") + all_models


def _entry(entry: CatalogEntry, is_chosen: bool, fits: Fits) -> html.Row:
    need, reason = fits.recommendation(entry.id)
    unknown = "…" if fits.is_pending(entry.id) and not entry.untrainable else "–"
    css, verdict = _MARKS.get(need.verdict if need is not None else None, ("soft", unknown))
    needed = html.gib(need.needed_bytes) if need is not None and need.needed_bytes else ""
    cells = [
        html.under(escape(entry.title), " ".join((entry.about, *entry.notes))),
        html.count(entry.parameters),
        f"≈ {html.size(_BYTES_PER_PARAMETER * entry.parameters)}",
        f"{entry.context_length:,}" if entry.context_length else "–",
        escape(entry.license or "–"),
        html.under(f'<span class="{css}">{escape(need.method) if need is not None else verdict}</span>', reason),
        f'{needed}<span class="unseen"> {verdict}</span>' if needed else "–",
    ]
    return html.Row(cells, 'class="soft"' if entry.untrainable else html.pickable(entry.id, chosen=is_chosen))


def _that_fit(entries: Sequence[CatalogEntry], fits: Fits) -> Sequence[CatalogEntry]:
    """Return the models that fit or are still estimated, the largest first."""
    verdicts = {entry.id: need.verdict for entry in entries if (need := fits.recommendation(entry.id)[0]) is not None}
    matches = (entry for entry in entries if verdicts.get(entry.id) == "fits" or fits.is_pending(entry.id))
    return sorted(matches, key=lambda entry: -entry.parameters)


def _by_memory(entries: Sequence[CatalogEntry], fits: Fits) -> Sequence[CatalogEntry]:
    """Return the models by the memory that they need; those that it is unknown of last."""

    def needed_bytes(entry: CatalogEntry) -> float:
        need, _ = fits.recommendation(entry.id)
        return math.inf if need is None or need.needed_bytes is None else need.needed_bytes

    return sorted(entries, key=needed_bytes)


ORDERS: dict[str, Callable[[Sequence[CatalogEntry], Fits], Sequence[CatalogEntry]]] = {
    SMALLEST: lambda entries, _: entries,
    "Fits, largest first": _that_fit,
    "Least memory first": _by_memory,
    "Longest context first": lambda entries, _: sorted(entries, key=lambda entry: -(entry.context_length or 0)),
}


def render_hub_results(query: str, results: Sequence[HubModel]) -> str:
    """Return the Hub's results for a query."""
    if not results:
        return html.notices([f"The Hub has no text-generation model for “{query}”."])
    rows = []
    for model in results:
        parameters = html.count(model.parameters) if model.parameters else "–"
        cells = (escape(model.id), parameters, escape(model.license or "–"), f"{model.downloads:,}")
        rows.append(html.Row(cells, html.pickable(model.id)))
    columns = [html.Column("Model"), html.Column.of_numbers("Parameters")]
    columns += [html.Column("Licence", "soft"), html.Column("Downloads", "r soft")]
    return f"<h3>On the Hub, for “{escape(query)}”</h3>{html.table(columns, rows)}"


def render_own(what: str, models: Sequence[PrivateCopy], asked_id: str) -> str:
    """Return the user's own "models" or "datasets"; the one with `asked_id` asks whether to remove it."""
    if not models:
        return ""
    rows = [
        (escape(model.hub_id), html.size(model.bytes), _removal(model, model.hub_id == asked_id)) for model in models
    ]
    title = what.removesuffix("s").capitalize()
    return f"<h3>Your own {what}</h3>{html.table([html.Column(title), html.Column.of_numbers('On disk'), html.Column('')], rows)}"


def _removal(model: PrivateCopy, is_asked: bool) -> str:
    label = f"Remove {html.size(model.bytes)}" if is_asked else "Remove"
    return html.pick_button(
        f"really:{model.hub_id}" if is_asked else model.hub_id, label, label=f"{label} {model.hub_id}"
    )


def render_lookup(model_id: str) -> str:
    """Return the message during the look-up of a model."""
    return html.empty(f"Looking up {model_id} …", "Reading its configuration and its tokenizer.", role="status")


def render_details(details: ModelDetails, *, has_tokenizer: bool = True) -> str:
    """Return the size of a model, and its special tokens and chat template where it `has_tokenizer`."""
    figures = [
        (html.count(details.parameters), "parameters"),
        (f"{details.num_hidden_layers}", "layers"),
        (f"{details.hidden_size:,}", "hidden size"),
        (f"{details.vocab_size:,}", "vocabulary size"),
    ]
    if details.max_position_embeddings:
        figures.append((f"{details.max_position_embeddings:,}", "tokens of context"))
    if details.size_bytes:
        figures.append((html.size(details.size_bytes), "on disk"))
    lead = ", ".join(filter(None, (details.architecture, details.dtype, details.license)))
    return f'<h3>{escape(details.name)}</h3><p class="lead">{escape(lead)}</p>{html.facts(figures)}{_tokenizer(details) if has_tokenizer else ""}'


def _tokenizer(details: ModelDetails) -> str:
    if details.tokenizer_missing:
        return html.notices([details.tokenizer_missing])
    tokens = " ".join(f"<code>{escape(name)} {escape(token)}</code>" for name, token in details.special_tokens.items())
    special = f'<p class="small">Special tokens: {tokens}</p>'
    if not details.chat_template:
        plain = "Loratory uses a plain documented one, and saves it with the adapter."
        return special + html.notices([f"No chat template: this is a base model. {plain}"])
    return (
        f'{special}<details><summary class="small">Chat template, {len(details.chat_template):,} characters</summary>'
        f"{html.log(details.chat_template, 'Chat template')}</details>"
    )
