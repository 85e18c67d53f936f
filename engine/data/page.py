"""A page of rows as a person reads them: as conversation, and as the tokens that training will see."""

from dataclasses import replace
from itertools import islice

from pydantic import BaseModel, ConfigDict, Field

from engine.data.conversation import Conversation, Example, PlainText
from engine.data.detect import Format
from engine.data.tokenize import IGNORED_LABEL, RenderedRow


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PageRequest(_Part):
    """Which rows to show."""

    first_row: int = Field(0, ge=0)
    count: int = Field(10, ge=1, le=200)
    search: str = Field("", max_length=1000)  # only rows that hold this text, in any case
    rows: tuple[int, ...] | None = Field(None, max_length=200)  # exactly these instead, in this order


# What a page shows of one row; more than anybody reads, and a bound on what is sent.
MAX_SHOWN_CHARACTERS = 50_000
MAX_SHOWN_TOKENS = 20_000


class TokenSpan(_Part):
    """Neighbouring tokens of one kind, joined to one piece of text."""

    text: str
    tokens: int
    trained: bool
    special: bool  # a control token, which stands alone


class SequenceView(_Part):
    """One training sequence of a row, up to the cut at max_length.

    Spans end after MAX_SHOWN_TOKENS; the counts are those of the whole sequence.
    """

    spans: tuple[TokenSpan, ...]
    tokens: int
    trained_tokens: int
    uncut_tokens: int  # length before the cut


class PageRow(_Part):
    """A row, or why it is left out."""

    row: int
    line: int | None
    conversation: Conversation | None = None
    text: str | None = None  # of plain text
    raw: str = ""  # how the row begins in its file
    problem: str | None = None  # why the row is left out
    notices: tuple[str, ...] = ()
    sequences: tuple[SequenceView, ...] = ()  # empty without a model


class DatasetPage(_Part):
    """Rows of a dataset, in order."""

    rows: tuple[PageRow, ...]
    first_row: int
    next_row: int | None = None  # where the next page begins; None after the last row
    total_rows: int | None  # None until the whole dataset has been seen
    format: Format
    format_reason: str
    format_sure: bool
    columns: tuple[str, ...]
    column_map: dict[str, str]
    notes: tuple[str, ...] = ()
    kind: str = ""  # of file, in words, such as "JSON Lines, gzip"


def page_row(row: int, line: int | None, example: Example, raw: str) -> PageRow:
    """A good row without its tokens."""
    if isinstance(example, PlainText):
        return PageRow(row=row, line=line, text=_shown(example.content), raw=raw)
    assert isinstance(example, Conversation)
    if any(len(message.content) > MAX_SHOWN_CHARACTERS for message in example.messages):
        messages = tuple(replace(message, content=_shown(message.content)) for message in example.messages)
        example = replace(example, messages=messages)
    return PageRow(row=row, line=line, conversation=example, raw=raw)


def _shown(text: str) -> str:
    more = len(text) - MAX_SHOWN_CHARACTERS
    return text if more <= 0 else f"{text[:MAX_SHOWN_CHARACTERS]}… and {more:,} more characters"


def sequence_view(rendered: RenderedRow) -> SequenceView:
    """Join the tokens of a sequence into spans."""
    spans: list[TokenSpan] = []
    tokens = zip(rendered.pieces, rendered.labels, rendered.special, strict=True)
    for piece, label, special in islice(tokens, MAX_SHOWN_TOKENS):
        trained = label != IGNORED_LABEL
        last = spans[-1] if spans else None
        if last is not None and not special and not last.special and last.trained == trained:
            spans[-1] = TokenSpan(text=last.text + piece, tokens=last.tokens + 1, trained=trained, special=False)
        else:
            spans.append(TokenSpan(text=piece, tokens=1, trained=trained, special=special))
    return SequenceView(
        spans=tuple(spans),
        tokens=len(rendered.input_ids),
        trained_tokens=rendered.trained_tokens,
        uncut_tokens=rendered.uncut_tokens,
    )
