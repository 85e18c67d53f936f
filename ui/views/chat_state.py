"""What the chat holds in memory, and how far loading has come."""

from collections.abc import Sequence
from html import escape

from engine.chat.contract import ChatState, LoadedModel, LoadProgress
from ui.views.notices import render_notices
from ui.views.quantities import size
from ui.views.run_view import short_name

_NOTHING = (
    '<div class="empty"><b>Nothing is loaded</b>Choose a run above and load it. The model takes memory until you unload '
    "it; a run that waits for the device takes precedence.</div>"
)


def render_chat_state(state: ChatState, results: Sequence[str] = ()) -> str:
    """One line: what is loaded, where, in how much memory.

    Args:
        state: Of the session.
        results: The runs whose results are loaded, in words.
    """
    if state.phase == "loading":
        return render_loading(state.progress)
    if state.model is None:
        return _NOTHING
    notes = render_notices(state.model.notes)
    return f'<div class="sentence" role="status" aria-live="polite">{_loaded_words(state, state.model, results)}</div>{notes}'


def render_loading(progress: LoadProgress | None) -> str:
    """How far loading has come; a bar where that is known."""
    message = progress.message if progress is not None else "Starting a process for the model."
    fraction = progress.fraction if progress is not None else None
    bar = ""
    if fraction is not None:
        bar = (
            f'<div class="progress" role="progressbar" aria-label="Loading" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{100 * fraction:.0f}"><span style="width:{100 * fraction:.1f}%"></span></div>'
        )
    return f'<div class="sentence" role="status" aria-live="polite">{escape(message)}{bar}</div>'


def loaded_words(model: LoadedModel) -> str:
    """What is loaded, in plain text."""
    trained = f" with its {model.method} result" if "tuned" in model.branches and model.method else ""
    return f"{short_name(model.name)}{trained}, {model.dtype} on {model.device}"


def _loaded_words(state: ChatState, model: LoadedModel, results: Sequence[str]) -> str:
    name = f"<b>{escape(short_name(model.name))}</b>{_with_what(model, results)}"
    precision = model.quantization if model.quantization != "none" else model.dtype
    parts = [
        f"{name} is loaded",
        f"{escape(precision)} on {escape(model.device)}",
        f"{size(model.weights_bytes)} of weights",
    ]
    if model.adapter_bytes:
        parts[-1] += f", {size(model.adapter_bytes)} of them the adapter"
    # The process is rounded, else the line would change at every look.
    if state.process_bytes:
        parts.append(f"the process takes {state.process_bytes / 2**30:.1f} GiB")
    if model.context_length:
        parts.append(f"context of {model.context_length:,} tokens")
    return " · ".join(parts)


def _with_what(model: LoadedModel, results: Sequence[str]) -> str:
    if not model.method:
        return " as it is"
    method = escape(model.method)
    if "tuned" not in model.branches:
        return f" ({method})"
    names = " and ".join(f"<b>{escape(name)}</b>" for name in results)
    return (
        f" with the {method} {'results' if len(results) > 1 else 'result'} of {names}"
        if names
        else f" with its {method} result"
    )
