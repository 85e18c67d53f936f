"""What a check found: the JSON of `loratory inspect`, and what every run says about its data."""

from pydantic import BaseModel, ConfigDict

from engine.config.dataset import TrainOn
from engine.data.detect import Format
from engine.data.problems import RowProblem


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Histogram(_Part):
    """How many sequences have which length: `counts[i]` of them from `edges[i]` up to, not with, `edges[i + 1]` tokens."""

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


class SourceReport(_Part):
    """One of the sources of a mixture; a dataset of one source has one."""

    source: str
    kind: str
    format: Format
    rows: int
    kept: int
    weight: float


class DatasetReport(_Part):
    """One pass over every row. `kept + dropped == rows`; `trained_tokens + masked_tokens == total_tokens`."""

    source: str
    kind: str = ""  # of file, in words, such as "JSON Lines, gzip"
    format: Format
    format_reason: str
    format_sure: bool
    columns: tuple[str, ...]  # of the dataset
    column_map: dict[str, str]  # which of them is read as what
    fingerprint: str  # sha256 over what the kept rows say, in order

    parts: tuple[SourceReport, ...] = ()

    rows: int
    kept: int
    dropped: int
    problems: tuple[RowProblem, ...]  # of dropped rows, the first MAX_LISTED of them
    problem_counts: dict[str, int]  # of all dropped rows, by kind
    notices: tuple[RowProblem, ...] = ()  # about rows that stay, the first MAX_LISTED of them
    notice_counts: dict[str, int] = {}
    notes: tuple[str, ...] = ()  # about all rows: what the template cannot say, what was assumed

    duplicates: int  # rows that repeat an earlier one exactly
    duplicate_rows: tuple[int, ...] = ()  # the first MAX_LISTED of them
    train_rows: int
    held_out_rows: int

    model: str | None = None  # whose tokenizer counted; None: no tokens were counted, and the fields below are None
    max_length: int | None = None
    train_on: TrainOn = "assistant"
    sequences: int | None = None  # more than rows kept, where a template needs several sequences for one row
    token_lengths: TokenLengths | None = None
    total_tokens: int | None = None
    trained_tokens: int | None = None
    masked_tokens: int | None = None
    lost_trained_tokens: int | None = None  # cut away at max_length
    longest_rows: tuple[int, ...] = ()
    shortest_rows: tuple[int, ...] = ()

    size_bytes: int | None = None
    seconds: float = 0.0


class CheckProgress(_Part):
    """How far a pass has come."""

    rows: int
    bytes_read: int
    size_bytes: int | None  # None where the size is not known
    tokens: int = 0

    @property
    def fraction(self) -> float | None:
        """From 0 to 1, where the size is known."""
        return min(1.0, self.bytes_read / self.size_bytes) if self.size_bytes else None


class HeldOutRows(BaseModel):
    """Rows that were kept back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: tuple[int, ...]  # of the dataset, from 0; spread evenly over all that were held out
    total: int
