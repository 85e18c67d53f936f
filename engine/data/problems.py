"""Why a row is left out, or what is odd about one that stays."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

ProblemKind = Literal[
    "not_json",
    "not_utf8",
    "not_an_object",
    "too_long",
    "too_deep",
    "duplicate_key",
    "bad_text",
    "bad_number",
    "weight",
    "csv",
    "missing_column",
    "not_text",
    "empty",
    "unknown_role",
    "no_assistant_turn",
    "nothing_to_learn",
    "tools",
    "template",
    "template_leaves_out",
    "special_token",
    "cut_away",
    "unanswered",
    "order",
]


class RowProblemError(Exception):
    """A row cannot be learned from; `problem` says why in words that name the value."""

    def __init__(self, kind: ProblemKind, problem: str) -> None:
        super().__init__(problem)
        self.kind: ProblemKind = kind
        self.problem = problem


class RowProblem(BaseModel):
    """What is wrong with one row. `row` counts from 0 over everything that is not blank, `line` from 1 as editors do."""

    model_config = ConfigDict(frozen=True)

    row: int
    line: int | None  # None where the source has no lines (Parquet, the Hub)
    problem: str
    kind: ProblemKind
    dropped: bool = True  # False: the row stays, and this is worth knowing
    sample: str = ""  # how the row begins


def shortened(text: str, limit: int = 60) -> str:
    """A piece of somebody's text that is safe to show in one line."""
    piece = text[: limit * 2]
    clean = "".join(letter if letter.isprintable() else " " for letter in piece).strip()
    return clean if len(clean) <= limit and len(text) <= limit * 2 else f"{clean[: limit - 1]}…"
