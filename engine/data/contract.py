"""The values of previews and checks: pages of rows, and the report that `loratory inspect` prints as JSON."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from loratory.engine.config.derived_defaults import DatasetStats
from loratory.engine.config.objectives import RowKind
from loratory.engine.config.run import DataFormatName, DatasetConfig, ModelConfig, TrainOn
from loratory.engine.config.vision import VisionConfig
from loratory.engine.data.conversation import Conversation, Message
from loratory.engine.data.records import ProblemKind
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.errors import DatasetError
from loratory.engine.models.families.base import SmallerImage, Tiles

MAX_SHOWN_CHARACTERS = 50_000  # of one text of a row


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class RowProblem(_Part):
    """What is wrong with one row. `row` counts from 0 over everything that is not blank, people from 1; `line` from 1."""

    row: int
    line: int | None  # None where the source has no lines (Parquet, the Hub)
    problem: str
    kind: ProblemKind
    dropped: bool = True  # False: the row is kept, with a warning
    sample: str = ""  # how the row begins


class Histogram(_Part):
    """Counts of sequences by length: `counts[i]` of them have `edges[i]` tokens or more, and fewer than `edges[i + 1]`."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]


class TokenLengths(_Part):
    """Lengths of sequences in tokens, before they are cut at max_length."""

    min: int
    p50: int
    p95: int
    max: int
    over_max_length: int  # sequences that are cut
    histogram: Histogram


class PairLengths(_Part):
    """The difference in length of chosen and rejected answers; negative where the chosen ones are shorter."""

    unit: Literal["tokens", "characters"]  # trained tokens; characters where no tokens were counted
    chosen_longer: int  # pairs
    rejected_longer: int
    equal: int
    median: int  # difference, the lower one of two
    histogram: Histogram  # of differences

    @property
    def pairs(self) -> int:
        return self.chosen_longer + self.rejected_longer + self.equal

    @property
    def longer_share(self) -> float | None:
        """Share of the pairs of unequal lengths whose chosen answer is the longer one; None without such pairs."""
        unequal = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / unequal if unequal else None


class RowLengths(_Part):
    """Tokens of the sequences to train on, before the cut: in their order, or an even draw from the shortest to the longest.

    The rows of a step follow from them; they depend on the data, the split and the tokenizer, not on `max_length`.
    """

    tokens: tuple[int, ...] = Field(min_length=1)
    trained: tuple[int, ...]  # tokens of the same sequences
    count: int  # of rows to train on: sequences, or pairs of two
    longest_held_out: int = 0
    per_row: int = 1  # sequences of each row, next to one another; 2 for the chosen and the rejected answer
    kind: RowKind = "answers"
    shared: tuple[int, ...] = ()  # tokens that both sequences of each row begin with; none where they are not known
    longest_prompt: int = 0  # of what is answered, at most; 0 where that is not known
    pixels: tuple[
        int, ...
    ] = ()  # of the images of each sequence, as the model sees them; none where no row has an image
    largest_image: int = 0  # pixels

    @property
    def longest(self) -> int:
        return max(self.tokens)

    def with_largest_image(self, pixels: int, pixels_per_token: int) -> Self:
        """Return about these rows with smaller images: the largest of so many pixels, the rest in proportion."""
        share = 1 - pixels / self.largest_image
        saved = [round(own * share) for own in self.pixels]
        tokens = tuple(own - less // pixels_per_token for own, less in zip(self.tokens, saved, strict=True))
        remaining = tuple(own - less for own, less in zip(self.pixels, saved, strict=True))
        return self.model_copy(update={"tokens": tokens, "pixels": remaining, "largest_image": pixels})

    def cut_rows(self, max_length: int) -> int:
        """Return how many of `count` rows are cut at this length, in proportion where the lengths are a draw."""
        tokens, each = self.tokens, self.per_row
        longest = [max(tokens[start : start + each]) for start in range(0, len(tokens), each)]
        return round(self.count * sum(length > max_length for length in longest) / len(longest))

    @property
    def known(self) -> DatasetStats:
        """The facts that row-dependent defaults depend on."""
        return DatasetStats(self.count, max(self.longest, self.longest_held_out), kind=self.kind)


class SourceReport(_Part):
    """One of the sources of a mixture; a dataset of one source has one."""

    source: str
    kind: str
    format: DataFormatName
    rows: int
    kept: int
    weight: float


class DatasetForm(_Part):
    """How a dataset is read."""

    kind: str = ""  # of file, such as "JSON Lines, gzip"
    format: DataFormatName
    format_reason: str
    format_sure: bool
    columns: tuple[str, ...]  # of the dataset
    column_map: dict[str, str]  # which of them is read as what
    notes: tuple[str, ...] = ()  # about all rows: what the template does not support, what was assumed


class DatasetReport(DatasetForm):
    """One pass over every row. `kept + dropped == rows`; `trained_tokens + masked_tokens == total_tokens`."""

    source: str
    fingerprint: str  # sha256 over the content of the kept rows, in order
    source_fingerprint: str = ""  # changes when the files do, as far as size, time and samples show

    parts: tuple[SourceReport, ...] = ()

    rows: int
    kept: int
    dropped: int
    problems: tuple[RowProblem, ...]  # of dropped rows, the first MAX_LISTED of them
    problem_counts: dict[str, int]  # of all dropped rows, by kind
    unknown_roles: dict[str, tuple[int, str]] = {}  # those of most rows: their number, and how the first turn begins
    notices: tuple[RowProblem, ...] = ()  # about rows that stay, the first MAX_LISTED of them
    notice_counts: dict[str, int] = {}

    duplicates: int  # rows that repeat an earlier one exactly
    duplicate_rows: tuple[int, ...] = ()  # the first MAX_LISTED of them
    train_rows: int
    held_out_rows: int
    why_none_held_out: str = ""  # where eval_fraction is above 0; also among the notes

    model: str | None = None  # whose tokenizer counted; None: no tokens were counted, and the fields below are None
    max_length: int | None = None
    train_on: TrainOn = "assistant"
    sequences: int | None = None  # more than rows kept, where a template needs several sequences for one row
    token_lengths: TokenLengths | None = None
    total_tokens: int | None = None
    trained_tokens: int | None = None
    masked_tokens: int | None = None
    lost_trained_tokens: int | None = None  # cut away at max_length
    row_lengths: RowLengths | None = None
    longest_rows: tuple[int, ...] = ()
    shortest_rows: tuple[int, ...] = ()

    # Of preferences alone.
    pair_lengths: PairLengths | None = None
    length_gap_rows: tuple[int, ...] = ()  # with the largest differences, the largest first
    contradicting_rows: tuple[int, ...] = ()  # that prefer the opposite of another row, the first MAX_LISTED of them
    contradictions: int = 0
    prompts: int | None = None  # that differ; preferences with one prompt stay on one side of the split
    desirable: int | None = None  # answers rated good, of those kept

    size_bytes: int | None = None
    seconds: float = 0.0

    def at_max_length(self, max_length: int) -> Self | None:
        """Return the report for another `max_length`; None where a row is cut at one of the two, or no tokens were counted."""
        if self.max_length is None or self.token_lengths is None:
            return None
        is_whole = self.token_lengths.max <= min(self.max_length, max_length)
        return self.model_copy(update={"max_length": max_length}) if is_whole else None


class CheckProgress(_Part):
    """The progress of a pass."""

    rows: int
    bytes_read: int
    size_bytes: int | None  # None where the size is not known
    tokens: int = 0
    waiting: str = ""  # why it has not started
    unknown_roles: dict[str, tuple[int, str]] = {}  # as in a report

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None if the size is unknown."""
        return min(1.0, self.bytes_read / self.size_bytes) if self.size_bytes else None


class HeldOutRows(_Part, extra="forbid"):
    """Held-out rows."""

    rows: tuple[int, ...]  # of the dataset, from 0; spread evenly over all that were held out
    total: int


class PageRequest(_Part):
    """Which rows to show."""

    first_row: int = Field(default=0, ge=0)
    count: int = Field(default=10, ge=1, le=200)
    rows: tuple[int, ...] | None = Field(default=None, max_length=200)  # only these rows, in this order
    brief: bool = False  # how long sequences are, without their text: enough for a list
    edit: dict[str, Any] | None = None  # what the first row is shown with instead, although it is not saved


MAX_SEARCH_CHARACTERS = 1000


class DataRequest(_Part):
    """A request about a dataset, for the inspector's process; each kind reads some of the fields."""

    dataset: DatasetConfig
    model: ModelConfig | None = None  # whose tokenizer counts; None for no tokens
    vision: VisionConfig = VisionConfig()  # how large images may be
    max_length: int | None = None  # where sequences are cut, in tokens; None cuts none
    page: PageRequest = Field(default_factory=PageRequest)
    row: int = 0
    text: str = Field(default="", max_length=MAX_SEARCH_CHARACTERS)
    after_row: int = -1
    seed: int = 42
    count: int = 200


class ImageView(_Part):
    """An image of a row, and with a model what it becomes."""

    width: int  # pixels
    height: int
    picture: str = ""  # a data: URL, small enough for a page; empty for later images of a row with many
    tiles: Tiles | None = None
    smaller: SmallerImage | None = None


class TokenSpan(_Part):
    """Neighbouring tokens of one kind, joined to one piece of text."""

    text: str
    tokens: int
    trained: bool
    special: bool  # a control token, which has a span of its own
    image: int | None = None  # which of the row's images these are, whose text is left out
    differs: bool = False  # of a pair: the other answer has other tokens here
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
    cut_text: str = ""  # how what is cut begins
    shared_tokens: int = 0  # of a pair: the first ones, which both answers follow; they end a span


class PageRow(_Part):
    """A row, or why it is left out."""

    row: int
    line: int | None
    conversation: Conversation | None = None
    text: str | None = None  # of plain text
    raw: str = ""  # how the row begins in its file
    problem: str | None = None  # why the row is left out
    notices: tuple[str, ...] = ()
    rejected: tuple[Message, ...] = ()  # of a pair: the turns in place of those from `completion_start` on
    desirable: bool | None = None  # how the answer was rated
    trained_turns: tuple[int, ...] = ()  # of the conversation, from 0: which of them `train_on` means
    sequences: tuple[SequenceView, ...] = ()  # empty without a model
    images: tuple[ImageView, ...] = ()  # of the conversation, then those of the rejected answer


class DatasetPage(DatasetForm):
    """Rows of a dataset, in order."""

    rows: tuple[PageRow, ...]
    first_row: int
    next_row: int | None = None  # where the next page begins; None after the last row
    total_rows: int | None  # None until the whole dataset has been seen
    samples: dict[str, str] = {}  # how columns begin
    download_bytes: int | None = None  # what reading all rows fetches from the Hub first, where that is known


class DatasetColumns(_Part):
    """The columns of a dataset, in the order in which they are seen; known also where no format fits them."""

    columns: tuple[str, ...]
    format: DataFormatName  # the chosen one, or the one to begin with
    samples: dict[str, str] = {}  # how columns begin


class SearchProgress(_Part):
    """The progress of a search."""

    rows: int  # scanned so far
    total_rows: int | None  # None until that is known

    @property
    def fraction(self) -> float | None:
        """From 0 to 1; None if the number of rows is unknown."""
        return min(1.0, self.rows / self.total_rows) if self.total_rows else None


class FoundRow(_Part):
    """The result of a search."""

    row: int | None  # None where no row holds the text
    from_top: bool = False  # found only after wrapping around to the first row


def searchable(text: str) -> str:
    """Return the text itself, if it is short enough to be searched for.

    Raises:
        DatasetError: If it is too long to be searched for.
    """
    if len(text) > MAX_SEARCH_CHARACTERS:
        raise DatasetError(
            f"The text to find has {len(text):,} characters; {MAX_SEARCH_CHARACTERS:,} are the most.",
            "Search for a shorter part of it.",
        )
    return text


class RowForm(_Part):
    """The form of a dataset's rows, as its first ones show it: what a script needs to read them with usual readers."""

    format: str
    columns: dict[str, str]  # of the format's roles
    loader: dict[str, Any]  # arguments of `load_dataset`
    role_field: str  # of a turn
    content_field: str
    turn_column: str  # with all turns of a row; empty where there is none
    text_column: str | None  # with plain text; None where rows are conversations
    is_rated: bool  # rows are answers with a label, and not pairs
    has_dialogues: bool  # the sides of a pair are texts with Human: and Assistant: in them
    has_system: bool  # in a column of its own
    image_column: str = ""  # with images of rows; empty where they have none
    roles: dict[str, str] = {}  # by their names in the rows
    has_turn_lists: bool = False  # cells hold lists of turns
    has_json: bool = False  # lists are written as JSON in a text
    has_reasoning: bool = False
    most_answers: int = 0  # of one row
    holds_whole_conversations: bool = False  # both answers of a pair begin with the prompt


class SetQuestion(BaseModel, frozen=True):
    """A question about a person's sets, or a change to one; each kind reads some of the fields."""

    do: Literal[
        "list", "make", "rename", "rows", "numbers", "row", "apply", "hits", "changes", "log", "lines", "check", "found", "report"
    ]  # fmt: skip
    name: str = Field(default="", max_length=100)
    version: str = Field(default="", max_length=100)  # as it is where empty; changes are those from it to the other
    other: str = Field(default="", max_length=100)  # version; or the new name
    text: str = Field(default="", max_length=1000)  # that rows hold, in any case
    state: Literal["", "kept", "excluded", "held_out", "flagged", "edited"] = ""
    sort: Literal["row", "-row", "characters", "-characters", "score", "-score"] = "row"
    first: int = Field(default=0, ge=0)  # of the rows in this order
    count: int = Field(default=60, ge=1)
    row: int = Field(default=1, ge=1)
    operations: list[Any] = Field(default=[], max_length=1000)
    since: int | None = None
    dataset: DatasetConfig = DatasetConfig(source="-")  # to make a set of, for which there is space; to check as
    seed: int = 0
    settings: CheckSettings = CheckSettings()
    check: str = Field(default="", max_length=100)  # only rows that it found; with a remedy, `apply` is about these
    remedy: Literal["", "exclude", "best", "hold_out", "mask"] = ""
