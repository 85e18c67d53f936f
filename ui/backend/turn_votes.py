"""Votes in the conversation: the pairs of answers that a turn offers, and what was chosen among them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import combinations, takewhile
from typing import NamedTuple

from loratory.engine.chat.contract import Branch
from loratory.engine.evaluation.votes import Vote, VotedAnswer, VotedTurn, Votes, turns_of, vote_id
from loratory.ui.backend.conversation import Turn, in_context, messages_of


class TurnPair(NamedTuple):
    """Two answers of a turn, each with the turns of its own conversation since the two began to differ."""

    prompt: tuple[VotedTurn, ...]
    sides: dict[Branch, tuple[VotedTurn, ...]]

    @property
    def id(self) -> str:
        """Of a vote on it."""
        return vote_id(self.prompt, *self.sides.values())


def pairs_of_turn(turns: Sequence[Turn], number: int) -> list[TurnPair]:
    """Return the pairs that a turn offers: of answers that differ, are not empty and were not stopped."""
    turn = turns[number]
    if turn.settings is None:
        return []
    whole = [
        answer.branch
        for answer in turn.answers
        if answer.done
        and answer.finish_reason != "stopped"
        and answer.text.strip()
        and _is_of_one_model(turns[: number + 1], answer.branch)
    ]
    system = turn.settings.system
    pairs = (_pair(turns[: number + 1], first, second, system) for first, second in combinations(whole, 2))
    return [pair for pair in pairs if pair is not None]


def _is_of_one_model(turns: Sequence[Turn], branch: Branch) -> bool:
    """Return whether one known model gave all answers of a branch: another one may have been loaded between two turns."""
    branch_turns = [turn for turn in in_context(turns) if any(answer.branch == branch for answer in turn.answers)]
    first, *rest = (turn.settings.models.get(branch) if turn.settings is not None else None for turn in branch_turns)
    return first is not None and all(model is not None and model.has_weights_of(first) for model in rest)


def _pair(turns: Sequence[Turn], left: Branch, right: Branch, system: str) -> TurnPair | None:
    sides = {branch: turns_of(messages_of(turns, branch, system)) for branch in (left, right)}
    first, second = sides.values()
    prefix = len(list(takewhile(lambda turns: turns[0] == turns[1], zip(first, second, strict=False))))
    rests = {branch: messages[prefix:] for branch, messages in sides.items()}
    # A branch that was not asked earlier has another question where the other one has an answer.
    if not all(rest and rest[0].role == rest[-1].role == "assistant" for rest in rests.values()):
        return None
    texts = [[turn.content.split() for turn in rest] for rest in rests.values()]
    return TurnPair(first[:prefix], rests) if texts[0] != texts[1] else None


def ballot(votes: Votes, turns: Sequence[Turn], number: int) -> dict[Branch, bool]:
    """Return the answers of a turn that can be voted for, each with whether it was."""
    chosen: dict[Branch, bool] = {}
    if any(turn.images for turn in turns[: number + 1]):  # a vote has texts alone
        return chosen
    for pair in pairs_of_turn(turns, number):
        vote = votes.find(pair.id)
        for branch, messages in pair.sides.items():
            is_better = vote is not None and not vote.is_tie and messages == vote.sides[0].turns
            chosen[branch] = chosen.get(branch, False) or is_better
    return chosen


def choose(votes: Votes, turns: Sequence[Turn], number: int, better: Branch, by: str) -> None:
    """Save that an answer is better than the other ones of its turn, or undo that vote.

    Raises:
        StorageError: If it cannot be kept.
    """
    pairs, turn = pairs_of_turn(turns, number), turns[number]
    takes_back = ballot(votes, turns, number).get(better, False)
    votes.remove([pair.id for pair in pairs])
    if takes_back or turn.settings is None:
        return
    finishes = {answer.branch: answer.finish_reason for answer in turn.answers}
    for pair in pairs:
        if better not in pair.sides:
            continue
        left, right = (
            VotedAnswer(turns=messages, finish_reason=finishes[branch], model=turn.settings.models[branch])
            for branch, messages in sorted(pair.sides.items(), key=lambda side: side[0] != better)
        )
        facts = {"source": "chat", "by": by, "time": datetime.now(UTC), "sampling": turn.settings.sampling}
        votes.save(Vote.new(pair.prompt, left, right, verdict="left", **facts))
