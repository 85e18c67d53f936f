"""Tables of models to pick: catalogue and Hub results; and the details of one."""

from collections.abc import Sequence
from html import escape

from loratory.engine.models.catalog import CatalogEntry, list_catalog
from loratory.engine.models.hub import HubModel
from loratory.engine.models.shape import ModelDetails
from loratory.engine.private_hub import PrivateCopy
from loratory.ui.backend.models import METHODS_JUDGED, Fits
from loratory.ui.views.html import (
    Column,
    Row,
    count,
    empty,
    facts,
    log,
    notices,
    pick_button,
    pickable,
    size,
    table,
    under,
)

_MARKS = {"fits": ("yes", "fits"), "tight": ("tight", "tight"), "does_not_fit": ("no", "too big")}

NOT_CHOSEN = empty(
    "No model chosen",
    "Pick a row above. If you are new here, take SmolLM2-135M-Instruct: it trains on any computer in a few minutes.",
)


def render_catalog(entries: Sequence[CatalogEntry], chosen: str, fits: Fits) -> str:
    """Return the catalogue with the fit by method."""
    if not entries:
        return empty(
            "No matching model in the catalogue",
            "Press Enter to search the Hugging Face Hub, or type an id or a folder in the other box.",
        )
    columns = [
        Column("Model"), *map(Column.of_numbers, ("Parameters", "Context")), Column("Licence", "soft tag"),
        *(Column(escape(name.removesuffix(" fine-tuning"))) for name in METHODS_JUDGED),
    ]  # fmt: skip
    done_count, is_done = fits.progress
    # Tokens are counted with the chosen model's tokenizer; other tokenizers differ slightly.
    rows, until = (
        ("your rows", "") if fits.rows is not None else ("rows of 1,024 tokens", ", until your rows are counted")
    )
    caption = f"Fits: {rows} at batch 2 on {fits.device_name}{until}."
    if not is_done:
        caption += (
            f" {done_count} of {len(list_catalog())} models estimated; each architecture takes seconds the first time."
        )
    return table(columns, (_entry(entry, entry.id == chosen, fits) for entry in entries), caption=caption, scrolls="")


def _entry(entry: CatalogEntry, is_chosen: bool, fits: Fits) -> Row:
    unknown = ("soft", "…" if fits.is_pending(entry.id) and not entry.untrainable else "–")
    verdicts = (_MARKS.get(verdict or "", unknown) for verdict in fits.verdicts_on(entry.id))
    about = " ".join((entry.about, *entry.notes))
    cells = [
        under(escape(entry.title), about),
        count(entry.parameters),
        f"{entry.context_length:,}" if entry.context_length else "–",
        escape(entry.license or "–"),
        *(f'<span class="{css}">{label}</span>' for css, label in verdicts),
    ]
    return Row(cells, 'class="soft"' if entry.untrainable else pickable(entry.id, chosen=is_chosen))


def render_hub_results(query: str, results: Sequence[HubModel]) -> str:
    """Return the Hub's results for a query."""
    if not results:
        return notices([f"The Hub has no text-generation model for “{query}”."])
    rows = []
    for model in results:
        parameters = count(model.parameters) if model.parameters else "–"
        cells = (escape(model.id), parameters, escape(model.license or "–"), f"{model.downloads:,}")
        rows.append(Row(cells, pickable(model.id)))
    columns: list[Column | str] = [
        "Model",
        Column.of_numbers("Parameters"),
        Column("Licence", "soft"),
        Column("Downloads", "r soft"),
    ]
    return f"<h3>On the Hub, for “{escape(query)}”</h3>{table(columns, rows)}"


def render_own(what: str, models: Sequence[PrivateCopy], asked_id: str) -> str:
    """Return the user's own downloads; the one with `asked_id` asks whether to remove it.

    Args:
        what: "models" or "datasets".
        models: They.
        asked_id: Id on the Hub of one of them, or empty.
    """
    if not models:
        return ""
    rows = [
        (escape(model.hub_id), size(model.bytes), _removal(model, is_asked=model.hub_id == asked_id))
        for model in models
    ]
    title = what.removesuffix("s").capitalize()
    return f"<h3>Your own {what}</h3>{table([Column(title), Column.of_numbers('On disk'), Column('')], rows)}"


def _removal(model: PrivateCopy, *, is_asked: bool) -> str:
    label = f"Remove {size(model.bytes)}" if is_asked else "Remove"
    return pick_button(f"really:{model.hub_id}" if is_asked else model.hub_id, label, label=f"{label} {model.hub_id}")


def render_lookup(model_id: str) -> str:
    """Return the message during the look-up of a model."""
    return empty(f"Looking up {model_id} …", "Reading its configuration and its tokenizer.", role="status")


def render_details(details: ModelDetails, *, has_tokenizer: bool = True) -> str:
    """Return the size of a model, and its special tokens and chat template where it `has_tokenizer`."""
    figures = [
        (count(details.parameters), "parameters"),
        (f"{details.num_hidden_layers}", "layers"),
        (f"{details.hidden_size:,}", "hidden size"),
        (f"{details.vocab_size:,}", "vocabulary size"),
    ]
    if details.max_position_embeddings:
        figures.append((f"{details.max_position_embeddings:,}", "tokens of context"))
    if details.size_bytes:
        figures.append((size(details.size_bytes), "on disk"))
    lead = ", ".join(filter(None, (details.architecture, details.dtype, details.license)))
    return f'<h3>{escape(details.name)}</h3><p class="lead">{escape(lead)}</p>{facts(figures)}{_tokenizer(details) if has_tokenizer else ""}'


def _tokenizer(details: ModelDetails) -> str:
    if details.tokenizer_missing:
        return notices([details.tokenizer_missing])
    tokens = " ".join(f"<code>{escape(name)} {escape(token)}</code>" for name, token in details.special_tokens.items())
    special = f'<p class="small">Special tokens: {tokens}</p>'
    if not details.chat_template:
        plain = "Loratory uses a plain documented one, and saves it with the adapter."
        return special + notices([f"No chat template: this is a base model. {plain}"])
    return (
        f'{special}<details><summary class="small">Chat template, {len(details.chat_template):,} characters</summary>'
        f"{log(details.chat_template, 'Chat template')}</details>"
    )
