"""A page of rows as a person reads them: as conversation, and as the tokens that training will see."""

from dataclasses import replace
from itertools import groupby, islice

from pydantic import BaseModel, ConfigDict, Field

from engine.data.conversation import Conversation, Example, PlainText
from engine.data.detect import Format
from engine.data.tokenize import IGNORED_LABEL, RenderedRow
from engine.errors import DatasetError

MAX_SEARCH_CHARACTERS = 1000


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PageRequest(_Part):
    """Which rows to show."""

    first_row: int = Field(0, ge=0)
    count: int = Field(10, ge=1, le=200)
    search: str = Field("", max_length=MAX_SEARCH_CHARACTERS)  # only rows that hold this text, in any case
    rows: tuple[int, ...] | None = Field(None, max_length=200)  # exactly these instead, in this order
    brief: bool = False  # how long sequences are, without their text: enough for a list


# What a page shows of one row; more than anybody reads, and a bound on what is sent.
MAX_SHOWN_CHARACTERS = 50_000
MAX_SHOWN_TOKENS = 20_000


class TokenSpan(_Part):
    """Neighbouring tokens of one kind, joined to one piece of text."""

    text: str
    tokens: int
    trained: bool
    special: bool  # a control token, which stands alone
    ids: tuple[int, ...] = ()  # of each token
    lengths: tuple[int, ...] = ()  # of each token's text in characters; 0 where the token before has its character


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
    learned_turns: tuple[int, ...] = ()  # of the conversation, from 0: which of them `train_on` means
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
    download_bytes: int | None = None  # what reading all rows fetches from the Hub first, where that is known


class DatasetColumns(_Part):
    """The columns of a dataset, in the order in which they are seen; known also where no format fits them."""

    columns: tuple[str, ...]
    format: Format  # the chosen one, or the one to begin with


class SearchProgress(_Part):
    """How far a search has come."""

    rows: int  # looked at so far
    total_rows: int | None  # None until that is known

    @property
    def fraction(self) -> float | None:
        """From 0 to 1, where the number of rows is known."""
        return min(1.0, self.rows / self.total_rows) if self.total_rows else None


class FoundRow(_Part):
    """Where a search ended."""

    row: int | None  # None where no row holds the text
    from_top: bool = False  # found only after beginning at the first row again


def searchable(text: str) -> str:
    """The text itself.

    Raises:
        DatasetError: If it is too long to be searched for.
    """
    if len(text) > MAX_SEARCH_CHARACTERS:
        raise DatasetError(
            f"The text to find has {len(text):,} characters; {MAX_SEARCH_CHARACTERS:,} are the most.",
            "Search for a shorter part of it.",
        )
    return text


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


def sequence_view(rendered: RenderedRow, *, brief: bool = False) -> SequenceView:
    """Join the tokens of a sequence into spans.

    Args:
        rendered: The sequence.
        brief: Count only, without spans.
    """
    tokens = zip(rendered.pieces, rendered.labels, rendered.special, rendered.input_ids, strict=True)
    shown = enumerate(islice(tokens, 0 if brief else MAX_SHOWN_TOKENS))
    spans: list[TokenSpan] = []
    # A control token stands alone, so its own place is part of what tells it from its neighbours.
    for (trained, place), group in groupby(
        shown, lambda one: (one[1][1] != IGNORED_LABEL, one[0] if one[1][2] else None)
    ):
        members = [token for _, token in group]
        spans.append(
            TokenSpan(
                text="".join(piece for piece, _, _, _ in members),
                tokens=len(members),
                trained=trained,
                special=place is not None,
                ids=tuple(token for _, _, _, token in members),
                lengths=tuple(len(piece) for piece, _, _, _ in members),
            )
        )
    return SequenceView(
        spans=tuple(spans),
        tokens=len(rendered.input_ids),
        trained_tokens=rendered.trained_tokens,
        uncut_tokens=rendered.uncut_tokens,
    )
