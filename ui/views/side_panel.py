"""The panel that never leaves: what is chosen, what is missing or wrong, and whether it fits."""

from html import escape
from typing import Any

from engine.config.adapter import AdapterConfig
from engine.config.methods.registry import METHODS
from ui.draft import Draft
from ui.errors import trouble
from ui.fields import field_of
from ui.views.memory_bar import render_memory_bar

# Until the browser's own draft is there nothing is said about it.
OPENING_PANEL = '<div class="section" role="status"><h3>Your draft</h3><p class="small">Bringing it back …</p></div>'


def render_side_panel(draft: Draft, begins_with: str = "") -> str:
    """HTML of the whole panel for one reading of the form.

    Args:
        draft: The reading.
        begins_with: The adapter that it starts from, in words.
    """
    return _chosen(draft, begins_with) + _to_do(draft) + _memory(draft)


def _chosen(draft: Draft, begins_with: str) -> str:
    model, adapter, data = (draft.mapping[name] for name in ("model", "adapter", "dataset"))
    traits = METHODS.get(str(adapter.get("method")))
    method = "not chosen"
    if traits is not None:
        words = traits.summary(AdapterConfig.model_construct(**adapter))
        method = ", ".join(filter(None, (traits.display_name(model.get("quantization", "none")), words)))
    length = (
        f"{_value(draft, 'training.max_length'):,} tokens, batch {_value(draft, 'training.per_device_train_batch_size')}"
        f" × {_value(draft, 'training.gradient_accumulation_steps')}"
    )
    rows = [
        ("Model", _short(model.get("id")), "not chosen yet"),
        ("Data", _short(data.get("source")), "not chosen yet"),
        ("Method", method, ""),
        *([("Begins with", begins_with, "")] if begins_with else []),
        ("Length", length, ""),
    ]
    entries = "".join(
        f"<dt>{name}</dt><dd>{escape(value)}</dd>" if value else f'<dt>{name}</dt><dd class="missing">{absent}</dd>'
        for name, value, absent in rows
    )
    return f'<div class="section"><h3>Your draft</h3><dl>{entries}</dl></div>'


def _value(draft: Draft, name: str) -> Any:
    """What a setting is; an emptied box leaves its default."""
    section, field = name.split(".")
    return draft.mapping[section].get(field, field_of(name).default)


def _short(value: object) -> str:
    """The telling end of an id or a path."""
    text = str(value or "")
    return text.rstrip("/").rsplit("/", 1)[-1]


def _to_do(draft: Draft) -> str:
    if not draft.missing and not draft.problems:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in draft.missing)
    items += "".join(
        f'<li class="wrong"><code>{escape(problem.field.rsplit(".", 1)[-1])}</code> {escape(problem.message)}</li>'
        for problem in draft.problems
    )
    title = "Before it can start" if draft.missing and not draft.problems else "To correct"
    return f'<div class="section" aria-live="polite"><h3>{title}</h3><ul class="todo">{items}</ul></div>'


def _memory(draft: Draft) -> str:
    if draft.estimate is not None:
        return render_memory_bar(draft.estimate)
    if draft.estimate_error is not None:
        return f'<div class="section"><h3>Memory</h3>{trouble(draft.estimate_error)}</div>'
    if draft.shape is not None:
        reason = "Correct the settings above first."
    elif draft.mapping["model"].get("id"):
        reason = "It appears here once the model has been looked up; the Model tab says how that stands."
    else:
        reason = "Choose a model, and its memory appears here."
    return f'<div class="section"><h3>Memory</h3><p class="small">{reason}</p></div>'
