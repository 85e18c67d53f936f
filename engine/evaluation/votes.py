"""Votes: which of two answers a person preferred, stored as pairs for preference tuning.

Each person has one JSON Lines file, which is replaced as a whole. A vote on the same two answers replaces the earlier one.
"""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import AwareDatetime, Field, ValidationError

from loratory.engine.chat.contract import FinishReason, FrozenModel
from loratory.engine.config.results import SamplingConfig
from loratory.engine.config.run import Quantization
from loratory.engine.data.conversation import Message
from loratory.engine.errors import StorageError
from loratory.engine.evaluation.blind_test import Verdict
from loratory.engine.files import size_and_time, write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.processes.liveness import FileLock
from loratory.engine.runs.disk import require_disk_space

VoteSource = Literal["blind test", "chat"]
LeftOut = Literal["tie", "cut off", "empty"]

MOST_VOTES = 10_000
LARGEST_FILE_BYTES = 64_000_000
LONGEST_CHARACTERS = 200_000  # of prompt and both answers together
_LEFT_OUT_WORDS: Mapping[LeftOut, tuple[str, str]] = {
    "tie": ("tie", "ties"),
    "cut off": ("pair whose better answer was cut off", "pairs whose better answer was cut off"),
    "empty": ("pair with an empty answer", "pairs with an empty answer"),
}


class VotedTurn(FrozenModel):
    """One turn in the format of datasets."""

    role: Literal["system", "user", "assistant"]
    content: str


class AnswerModel(FrozenModel):
    """The model that wrote an answer."""

    name: str  # as people saw it
    base: str  # catalogue name, Hub id or folder of the base model
    revision: str | None = None
    quantization: Quantization = "none"
    run: str = ""  # id of the run, or the adapter's folder; empty for the base model alone
    checkpoint: str = ""  # empty for the final result

    def has_weights_of(self, other: "AnswerModel") -> bool:
        """Return whether it is the same model under any name: next to another run, a run has a longer one."""
        return self == other.model_copy(update={"name": self.name})


class VotedAnswer(FrozenModel):
    """One of the two answers; has several turns if the two conversations differ earlier."""

    turns: tuple[VotedTurn, ...] = Field(min_length=1)
    finish_reason: FinishReason | None = None
    model: AnswerModel

    @property
    def is_empty(self) -> bool:
        """Whether all texts are empty."""
        return not any(turn.content.strip() for turn in self.turns if turn.role == "assistant")

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended at a limit instead of a stop token."""
        return self.finish_reason not in (None, "eos")

    @property
    def text(self) -> str:
        """The last answer of the model."""
        return self.turns[-1].content


class Vote(FrozenModel):
    """A person's choice between two answers to one prompt."""

    id: str
    time: AwareDatetime
    by: str = ""  # the person's name on this machine
    source: VoteSource
    prompt: tuple[VotedTurn, ...] = Field(min_length=1)  # with the system prompt
    left: VotedAnswer
    right: VotedAnswer
    verdict: Verdict
    sampling: SamplingConfig

    @classmethod
    def new(cls, prompt: Sequence[VotedTurn], left: VotedAnswer, right: VotedAnswer, **facts: Any) -> Self:
        """Return a vote; its id is the same for every vote on these two answers to this prompt."""
        return cls(id=vote_id(prompt, left.turns, right.turns), prompt=tuple(prompt), left=left, right=right, **facts)

    @property
    def sides(self) -> tuple[VotedAnswer, VotedAnswer]:
        """The better and the worse answer; in any order for a tie."""
        return (self.right, self.left) if self.verdict == "right" else (self.left, self.right)

    @property
    def is_tie(self) -> bool:
        """Whether neither side won."""
        return self.verdict in ("equal", "neither")

    @property
    def question(self) -> str:
        """The last turn of the prompt."""
        return self.prompt[-1].content

    def left_out(self, *, with_cut_off: bool = False) -> LeftOut | None:
        """Return why the vote gives no pair of a dataset; None if it gives one.

        A better answer that was cut off would train the model to stop in mid-sentence.
        """
        if self.is_tie:
            return "tie"
        if self.left.is_empty or self.right.is_empty:
            return "empty"
        return "cut off" if self.sides[0].is_cut_off and not with_cut_off else None

    def pair(self) -> dict[str, Any]:
        """Return the row of a dataset: prompt, chosen and rejected, and where the pair comes from."""
        chosen, rejected = self.sides
        return {
            "prompt": [turn.model_dump() for turn in self.prompt],
            "chosen": [turn.model_dump() for turn in chosen.turns],
            "rejected": [turn.model_dump() for turn in rejected.turns],
            "vote": {"id": self.id, "time": self.time.isoformat(timespec="seconds"), "by": self.by, "in": self.source},
            "chosen_model": chosen.model.model_dump(),
            "rejected_model": rejected.model.model_dump(),
            "sampling": self.sampling.model_dump(mode="json"),
        }


def turns_of(messages: Sequence[Message]) -> tuple[VotedTurn, ...]:
    """Return the turns of a conversation in the format of votes."""
    # Without lone surrogates, which a browser can send and UTF-8 cannot encode.
    texts = ((message.role, message.content.encode("utf-8", "replace").decode()) for message in messages)
    return tuple(VotedTurn(role=role, content=content) for role, content in texts if role != "tool")


def vote_id(prompt: Sequence[VotedTurn], *answers: Sequence[VotedTurn]) -> str:
    """Return the id of a vote; it does not depend on which answer is on the left."""
    sides = sorted([[turn.role, turn.content] for turn in answer] for answer in answers)
    question = [[turn.role, turn.content] for turn in prompt]
    return hashlib.sha256(json.dumps([question, sides]).encode()).hexdigest()[:20]


class PairsOfVotes(NamedTuple):
    """The pairs of a dataset, and counts of the votes that were left out."""

    rows: tuple[dict[str, Any], ...]
    left_out: Mapping[LeftOut, int]

    @property
    def summary(self) -> str:
        """The number of pairs, and of the votes that were left out."""
        summary = f"{len(self.rows):,} {'pair' if len(self.rows) == 1 else 'pairs'}."
        out = [f"{count:,} {_LEFT_OUT_WORDS[why][count != 1]}" for why, count in self.left_out.items()]
        return f"{summary} Left out: {', '.join(out)}." if out else summary

    def json_lines(self) -> str:
        """Return the rows as JSON Lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def pairs_of_votes(votes: Sequence[Vote], *, with_cut_off: bool = False) -> PairsOfVotes:
    """Return the pairs of votes, oldest first; votes that give no pair are left out."""
    reasons = [(vote, vote.left_out(with_cut_off=with_cut_off)) for vote in reversed(votes)]
    left_out = Counter(why for _, why in reasons if why is not None)
    return PairsOfVotes(tuple(vote.pair() for vote, why in reasons if why is None), dict(left_out))


@dataclass(eq=False)
class Votes:
    """The votes of a home's owner."""

    home: LoratoryHome
    # Stamp of the file and votes of the last read.
    _cache: tuple[tuple[int, int], tuple[Vote, ...]] | None = field(default=None, init=False)

    @property
    def file(self) -> Path:
        """The file with the votes."""
        return self.home.votes / "votes.jsonl"

    @property
    def may_save(self) -> bool:
        """Whether votes are saved; those of a lab's guests are not."""
        return not self.home.is_guest

    def read(self) -> tuple[Vote, ...]:
        """Return all votes, the newest first."""
        stamp = size_and_time(self.file)
        cache = self._cache
        if cache is None or cache[0] != stamp:
            votes = filter(None, map(_parse, self._lines()))
            cache = self._cache = (stamp, tuple(sorted(votes, key=lambda vote: vote.time, reverse=True)))
        return cache[1]

    def find(self, identifier: str) -> Vote | None:
        """Return a vote by its id; None if there is none."""
        return next((vote for vote in self.read() if vote.id == identifier), None)

    def save(self, vote: Vote) -> None:
        """Save a vote; it replaces an earlier one on the same answers.

        Raises:
            StorageError: If it is too long, there are too many, or it cannot be written; the file is then unchanged.
        """
        if not self.may_save:
            raise StorageError("Votes of guests are not saved.", "Ask an admin of the lab to become a member.")
        length = sum(len(turn.content) for turn in (*vote.prompt, *vote.left.turns, *vote.right.turns))
        if length > LONGEST_CHARACTERS:
            what = f"The conversation has {length:,} characters; a vote may have at most {LONGEST_CHARACTERS:,}."
            raise StorageError(what, "Ask in a new conversation, or lower Max new tokens.")
        line = vote.model_dump_json().encode() + b"\n"
        require_disk_space(self.home, self.home.owner, len(line))
        with self._lock():
            lines = [*self._lines_without({vote.id}), line]
            if len(lines) > MOST_VOTES or sum(map(len, lines)) > LARGEST_FILE_BYTES:
                what = f"There are {len(lines) - 1:,} votes, which is the limit."
                raise StorageError(what, "Use them as a dataset, then delete them.")
            write_atomically(self.file, b"".join(lines))

    def remove(self, identifiers: Collection[str] | None = None) -> int:
        """Delete votes, or the whole file if None; return the number of deleted votes.

        Raises:
            StorageError: If the file cannot be written; it is then unchanged.
        """
        with self._lock():
            ids = {vote.id for vote in self.read() if identifiers is None or vote.id in identifiers}
            if ids:
                write_atomically(self.file, b"" if identifiers is None else b"".join(self._lines_without(ids)))
        return len(ids)

    def snapshot(self, *, with_cut_off: bool = False) -> tuple[Path, PairsOfVotes]:
        """Write the pairs to a file in the person's uploads; a new file if they have changed.

        Raises:
            StorageError: If there is no pair, or it cannot be written.
        """
        if not self.may_save:
            raise StorageError("A guest trains on the samples.", "Ask an admin of the lab to become a member.")
        pairs = pairs_of_votes(self.read(), with_cut_off=with_cut_off)
        if not pairs.rows:
            raise StorageError(f"Your votes give no pair. {pairs.summary}", "Vote in Chat or in the blind test first.")
        text = pairs.json_lines()
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        path = self.home.uploads / f"votes-{date.today().isoformat()}-{digest}.jsonl"
        require_disk_space(self.home, self.home.owner, len(text.encode()))
        write_atomically(path, text, makes_folder=True)
        return path, pairs

    def _lines(self) -> list[bytes]:
        with contextlib.suppress(OSError), self.file.open("rb") as file:
            return [line for line in file.read(2 * LARGEST_FILE_BYTES).splitlines() if line.strip()]
        return []

    def _lines_without(self, identifiers: Collection[str]) -> list[bytes]:
        lines = [line for line in self._lines() if (vote := _parse(line)) is None or vote.id not in identifiers]
        return [line + b"\n" for line in lines]

    def _lock(self) -> FileLock:
        return FileLock(self.home.votes / "lock")


def _parse(line: bytes) -> Vote | None:
    with contextlib.suppress(ValidationError):
        return Vote.model_validate_json(line)
    return None
