"""Votes: counts, the resulting dataset, and each vote with its two answers."""

from collections.abc import Sequence
from html import escape

from engine.evaluation.votes import PairsOfVotes, Vote, VotedAnswer
from ui.views.chat import NO_ANSWER, answer_box
from ui.views.html import empty, facts, log, pick_button, plural, short_name, small

VOTES_PER_PAGE = 5
_LONGEST_SUMMARY = 220  # characters of a question
_LONGEST_ANSWER = 3_000  # characters of an answer that are shown
_VERDICTS = {"equal": "Equally good", "neither": "Neither is good"}

NO_VOTES = empty(
    "No votes yet",
    "Press “This is better” under an answer in Chat, or judge pairs in the blind test. Each vote becomes a training pair.",
)


def render_counts(votes: Sequence[Vote], pairs: PairsOfVotes) -> str:
    """Return the number of votes and of training pairs."""
    if not votes:
        return NO_VOTES
    rows = len(pairs.rows)
    figures = (
        (f"{len(votes):,}", "vote" if len(votes) == 1 else "votes"),
        (f"{rows:,}", "pair to train on" if rows == 1 else "pairs to train on"),
    )
    return f"{facts(figures)}{small(pairs.words) if pairs.left_out else ''}"


def pages_of(votes: Sequence[Vote]) -> int:
    """Return the number of pages of votes."""
    return -(-len(votes) // VOTES_PER_PAGE)


def page_words(votes: Sequence[Vote], page: int) -> str:
    """Return which of the votes a page shows."""
    first, last = page * VOTES_PER_PAGE + 1, min(len(votes), (page + 1) * VOTES_PER_PAGE)
    where = f"{first}–{last}" if last > first else f"{first}"
    return f'<p class="small num">{where} of {plural(len(votes), "vote")}, the newest first</p>'


def render_votes(votes: Sequence[Vote], page: int, asked_id: str = "") -> str:
    """Return one page of votes; the one with `asked_id` waits for a confirmation to delete it."""
    page_votes = votes[page * VOTES_PER_PAGE : (page + 1) * VOTES_PER_PAGE]
    return (
        f'<div class="answered">{"".join(_vote(vote, asked_id == vote.id) for vote in page_votes)}</div>'
        if page_votes
        else ""
    )


def _vote(vote: Vote, is_asked: bool) -> str:
    better, worse = vote.sides
    names = (_VERDICTS[vote.verdict],) * 2 if vote.is_tie else ("Better", "Worse")
    boxes = (
        _box("" if vote.is_tie else "chosen", names[0], better),
        _box("", names[1], worse),
    )
    summary = " ".join(vote.question.split())
    summary = summary if len(summary) <= _LONGEST_SUMMARY else f"{summary[:_LONGEST_SUMMARY]} …"
    prompt = "\n\n".join(f"{turn.role}: {_shorten(turn.content)}" for turn in vote.prompt)
    if is_asked:
        delete = pick_button(f"really:{vote.id}", "Delete permanently", css="inline")
    else:
        delete = pick_button(f"delete:{vote.id}", "Delete", css="inline", label=f"Delete the vote on {summary}")
    figures = f"{escape(short_name(better.model.base))} · {_sampling(vote)}"
    return (
        f'<section><h3 class="num">{vote.time.astimezone():%d %b %Y, %H:%M} · {escape(vote.source)}</h3>'
        f"<details><summary>{escape(summary)}</summary>{log(prompt, 'Prompt')}</details>"
        f'<div class="answers">{"".join(boxes)}</div><p class="figures">{figures}{delete}</p></section>'
    )


def _box(css: str, name: str, answer: VotedAnswer) -> str:
    model = answer.model
    place = f", {model.checkpoint}" if model.checkpoint else ""
    turns = [turn.content for turn in answer.turns]
    text = _shorten("\n\n".join(turns))
    note = "cut off at the token limit" if answer.is_cut_off else ""
    title = f"{name}: {model.name}{place}"
    return answer_box(css, title, escape(text) if text.strip() else NO_ANSWER, note)


def _sampling(vote: Vote) -> str:
    if vote.sampling.greedy:
        return "greedy"
    seed = f", seed {vote.sampling.seed}" if vote.sampling.seed is not None else ""
    return f"temperature {vote.sampling.temperature:g}{seed}"


def _shorten(text: str) -> str:
    more = len(text) - _LONGEST_ANSWER
    return text if more <= 0 else f"{text[:_LONGEST_ANSWER]} … {more:,} more characters"
