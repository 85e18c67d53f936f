"""A row as the model reads it: trained tokens apart from masked tokens, by colour and by underline."""

from html import escape

from engine.data.contract import PageRow, SequenceView, TokenSpan
from ui.views.html import plural

# A page shows about this much of a row: more takes a browser too long to lay out.
_SHOWN_CHARACTERS = 40_000
_TRAINED = " · trained"

# Shows which token the pointer is on. A character that several tokens spell belongs to the first; the others are empty.
TELL_WHICH = """
element.addEventListener('mouseover', (event) => {
  const token = event.target;
  if (token.tagName !== 'I' || token.title || !token.parentElement.dataset.ids) return;
  const tokens = Array.from(token.parentElement.children);
  const ids = token.parentElement.dataset.ids.split(' ');
  const first = tokens.indexOf(token);
  let end = first + 1;
  while (end < tokens.length && !tokens[end].textContent) end += 1;
  const words = end - first > 1 ? 'tokens' : 'token';
  token.title = `${token.parentElement.dataset.label}, ${words} ${ids.slice(first, end).join(' + ')}`;
});
"""


def render_tokens(row: PageRow) -> str:
    """Return the training sequences of a row; control tokens have a frame, trained text is underlined and tinted."""
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
        spans.append(_span(span, _SHOWN_CHARACTERS - shown))
        shown += len(span.text)
        if shown >= _SHOWN_CHARACTERS:
            break
    words = f"{sequence.tokens:,} tokens, {sequence.trained_tokens:,} of them trained"
    if sequence.uncut_tokens > sequence.tokens:
        words += f"; {sequence.uncut_tokens - sequence.tokens:,} truncated"
    is_cut = shown >= _SHOWN_CHARACTERS or sum(span.tokens for span in sequence.spans) < sequence.tokens
    if is_cut:
        words += "; only the beginning is shown"
    return (
        '<div class="tokens edges" tabindex="0" role="region" aria-label="The row, token by token">'
        f'{"".join(spans)}</div><p class="small num">{words}.</p>'
    )


def _span(span: TokenSpan, room: int) -> str:
    """Return text of one kind, split into its tokens, with their ids once for all: a long row has many of them."""
    css = f"{'trained' if span.trained else 'masked'}{' special' if span.special else ''}"
    label = "trained" if span.trained else "masked"
    text = span.text[:room]
    if span.special or not span.lengths:
        which = f", token {span.ids[0]}" if span.ids else f": {plural(span.tokens, 'token')}"
        return f'<span class="{css}" title="{label}{which}">{escape(text)}</span>'
    pieces, start = [], 0
    for length in span.lengths:
        if start >= len(text):
            break
        pieces.append(f"<i>{escape(text[start : start + length])}</i>")
        start += length
    ids = " ".join(str(token) for token in span.ids[: len(pieces)])
    return f'<span class="{css}" data-label="{label}" data-ids="{ids}">{"".join(pieces)}</span>'


def render_conversation(row: PageRow) -> str:
    """Return a row as people would read it: turn by turn, with tools and their answers."""
    if row.conversation is None:
        text = escape((row.text or row.raw)[:_SHOWN_CHARACTERS])
        return f'<div class="turn learned"><span class="role">plain text{_TRAINED}</span>{text}</div>'
    turns = []
    for number, message in enumerate(row.conversation.messages):
        is_learned = number in row.trained_turns
        body = escape(message.content[:_SHOWN_CHARACTERS])
        if message.reasoning:
            body = f'<span class="small">thinks: {escape(message.reasoning[:_SHOWN_CHARACTERS])}</span>\n{body}'
        for call in message.tool_calls:
            body += f"\n<code>calls {escape(call.name)}({escape(str(call.arguments)[:2000])})</code>"
        css, word = (" learned", _TRAINED) if is_learned else ("", "")
        turns.append(f'<div class="turn{css}"><span class="role">{escape(message.role)}{word}</span>{body}</div>')
    tools = row.conversation.tools
    offered = (
        f'<p class="small">{plural(len(tools), "tool is", "tools are")} offered to the assistant.</p>' if tools else ""
    )
    return offered + "".join(turns)
