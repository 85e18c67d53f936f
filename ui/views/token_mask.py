"""A row as the model sees it: what it learns to say apart from what it only reads, by colour and by underline."""

from html import escape

from engine.data.page import PageRow, SequenceView

# A page shows about this much of a row; nobody reads more, and a browser should not have to lay it out.
_SHOWN_CHARACTERS = 40_000


def render_tokens(row: PageRow) -> str:
    """HTML of a row's training sequences; control tokens stand in a frame, trained text is underlined and tinted."""
    count = len(row.sequences)
    parts = []
    for number, sequence in enumerate(row.sequences, start=1):
        if count > 1:
            parts.append(f'<p class="small">Sequence {number} of {count}: the template needs one for each answer.</p>')
        parts.append(_sequence(sequence))
    return "".join(parts)


def _sequence(sequence: SequenceView) -> str:
    spans, shown = [], 0
    for span in sequence.spans:
        css = f"{'trained' if span.trained else 'masked'}{' special' if span.special else ''}"
        text = span.text[: max(0, _SHOWN_CHARACTERS - shown)]
        shown += len(span.text)
        label = "learns to say" if span.trained else "only reads"
        spans.append(f'<span class="{css}" title="{label}: {span.tokens:,} tokens">{escape(text)}</span>')
        if shown >= _SHOWN_CHARACTERS:
            break
    words = f"{sequence.tokens:,} tokens, {sequence.trained_tokens:,} of them learned"
    if sequence.uncut_tokens > sequence.tokens:
        words += f"; {sequence.uncut_tokens - sequence.tokens:,} more are cut away"
    if shown >= _SHOWN_CHARACTERS:
        words += "; only its beginning is shown"
    return (
        '<div class="tokens" tabindex="0" role="region" aria-label="The row, token by token">'
        f'{"".join(spans)}</div><p class="small num">{words}.</p>'
    )


def render_conversation(row: PageRow) -> str:
    """HTML of a row as people would read it: turn by turn, tools and their answers included."""
    if row.conversation is None:
        return f'<div class="turn">{escape((row.text or row.raw)[:_SHOWN_CHARACTERS])}</div>'
    turns = []
    for message in row.conversation.messages:
        learned = " learned" if message.role == "assistant" else ""
        body = escape(message.content[:_SHOWN_CHARACTERS])
        if message.reasoning:
            body = f'<span class="small">thinks: {escape(message.reasoning[:_SHOWN_CHARACTERS])}</span>\n{body}'
        for call in message.tool_calls:
            body += f"\n<code>calls {escape(call.name)}({escape(str(call.arguments)[:2000])})</code>"
        turns.append(f'<div class="turn{learned}"><span class="role">{escape(message.role)}</span>{body}</div>')
    tools = row.conversation.tools
    offered = f'<p class="small">{len(tools)} tools are offered to the assistant.</p>' if tools else ""
    return offered + "".join(turns)
