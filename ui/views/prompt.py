"""Exactly what the model reads."""

from html import escape

from engine.chat.contract import PromptView


def render_prompt(view: PromptView) -> str:
    """The prompt as text with its control tokens, and as ids."""
    ids = " ".join(str(number) for number in view.ids)
    return (
        f'<p class="small">{len(view.ids):,} tokens, exactly as the model reads them.</p>'
        f'<pre class="log" tabindex="0" aria-label="Prompt text">{escape(view.text)}</pre>'
        f'<p class="small">As ids:</p><pre class="log" tabindex="0" aria-label="Prompt ids">{ids}</pre>'
    )
