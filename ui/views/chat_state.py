"""What the chat holds in memory, and how far loading has come."""

from html import escape

from engine.chat.contract import ChatState, LoadedModel, LoadProgress
from ui.views.quantities import size
from ui.views.run_view import short_name

_NOTHING = (
    '<div class="empty"><b>Nothing is loaded</b>Choose a run above and load it. The model takes memory until you unload '
    "it; a run that waits for the device takes precedence.</div>"
)


def render_chat_state(state: ChatState) -> str:
    """One line: what is loaded, where, in how much memory."""
    if state.phase == "loading":
        return render_loading(state.progress)
    if state.model is None:
        return _NOTHING
    notes = "".join(f'<p class="notice">{escape(note)}</p>' for note in state.model.notes)
    return f'<div class="sentence" role="status" aria-live="polite">{_loaded_words(state.model, state.process_bytes)}</div>{notes}'


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


def _loaded_words(model: LoadedModel, process_bytes: int | None) -> str:
    name = f"<b>{escape(short_name(model.name))}</b>"
    if model.method:
        name += (
            f" with its {escape(model.method)} result" if "tuned" in model.branches else f" ({escape(model.method)})"
        )
    else:
        name += " as it is"
    precision = model.quantization if model.quantization != "none" else model.dtype
    parts = [
        f"{name} is loaded",
        f"{escape(precision)} on {escape(model.device)}",
        f"{size(model.weights_bytes)} of weights",
    ]
    if model.adapter_bytes:
        parts[-1] += f", {size(model.adapter_bytes)} of them the adapter"
    # The process is rounded, else the line would change at every look.
    if process_bytes:
        parts.append(f"the process takes {process_bytes / 2**30:.1f} GiB")
    if model.context_length:
        parts.append(f"context of {model.context_length:,} tokens")
    return " · ".join(parts)
