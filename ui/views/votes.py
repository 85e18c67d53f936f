"""Which of two answers is better: the pairs and the tally of the blind test, and the votes of a person."""

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import shorten

from engine.chat.contract import Branch
from engine.evaluation.blind_test import SIGNIFICANCE_LEVEL, BlindTally, Judgement, Pair
from engine.evaluation.votes import PairsOfVotes, StoredVotes, Vote, VotedAnswer
from ui.views import html
from ui.views.chat import LONGEST_SUMMARY, NO_ANSWER, answer_box, answer_html

VOTES_PER_PAGE = 5
_LONGEST_ANSWER = 3_000  # characters of an answer that are shown
_CLEAR_WINS = 6  # of as many decided pairs: the first result below 5%
_VERDICTS = {"equal": "Equally good", "neither": "Neither is good"}

NO_VOTES = html.empty(
    "No votes yet",
    "Press “This is better” under an answer in Chat, or judge pairs in the blind test. Each vote becomes a training pair.",
)


def render_counts(saved_votes: StoredVotes, pairs: PairsOfVotes) -> str:
    """Return the number of votes and of training pairs."""
    damaged = saved_votes.damaged_lines
    if not saved_votes.votes and not damaged:
        return NO_VOTES
    numbers = ((len(saved_votes.votes), "vote", "votes"), (len(pairs.rows), "pair to train on", "pairs to train on"))
    damage = html.notices([f"{html.plural(damaged, 'damaged line')} skipped."] if damaged else ())
    return f"{html.facts(html.counted(*number) for number in numbers)}{html.small(pairs.words) if pairs.left_out else ''}{damage}"


def render_votes(votes: Sequence[Vote], page: html.ListPage, asked_id: str = "") -> str:
    """Return one page of votes; the one with `asked_id` waits for a confirmation to delete it."""
    shown = "".join(_vote(vote, asked_id == vote.id) for vote in votes[page.start : page.end])
    return f'<div class="answered">{shown}</div>' if shown else ""


def _vote(vote: Vote, is_asked: bool) -> str:
    better, worse = vote.sides
    names = (_VERDICTS[vote.verdict],) * 2 if vote.is_tie else ("Better", "Worse")
    boxes = _box("" if vote.is_tie else "chosen", names[0], better) + _box("", names[1], worse)
    summary = shorten(vote.question, LONGEST_SUMMARY, placeholder=" …")
    prompt = "\n\n".join(f"{turn.role}: {_shorten(turn.content)}" for turn in vote.prompt)
    pick, text = ("really", "Delete permanently") if is_asked else ("delete", "Delete")
    delete = html.pick_button(f"{pick}:{vote.id}", text, css="inline", label=f"{text} the vote on {summary}")
    return (
        f'<section><h3 class="num">{vote.time.astimezone():%d %b %Y, %H:%M} · {escape(vote.source)}</h3>'
        f"<details><summary>{escape(summary)}</summary>{html.log(prompt, 'Prompt')}</details>"
        f'<div class="answers">{boxes}</div>'
        f'<p class="figures">{escape(html.short_name(better.model.base))} · {_sampling(vote)}{delete}</p></section>'
    )


def _box(css: str, name: str, answer: VotedAnswer) -> str:
    model = answer.model
    text = _shorten("\n\n".join(turn.content for turn in answer.turns))
    return answer_box(
        css,
        f"{name}: {model.name}{f', {model.checkpoint}' if model.checkpoint else ''}",
        escape(text) if text.strip() else NO_ANSWER,
        "cut off at the token limit" if answer.is_cut_off else "",
    )


def _sampling(vote: Vote) -> str:
    if vote.sampling.greedy:
        return "greedy"
    seed = f", seed {vote.sampling.seed}" if vote.sampling.seed is not None else ""
    return f"temperature {vote.sampling.temperature:g}{seed}"


def _shorten(text: str) -> str:
    more = len(text) - _LONGEST_ANSWER
    return text if more <= 0 else f"{text[:_LONGEST_ANSWER]} … {more:,} more characters"


def render_pair(pair: Pair) -> str:
    """Return both answers under the names of their sides, without their models."""
    sides = (("Left", pair.left), ("Right", pair.right))
    return _pair(pair.prompt, "".join(answer_box("", name, answer_html(pair.answers[side])) for name, side in sides))


def render_writing(prompt: str, tokens: int, most: int) -> str:
    """Return the progress of the answers, of `most` tokens in all; they appear together, for the quicker one gives itself away."""
    count = f"{tokens:,} tokens so far" if tokens else "reading the question"
    waiting = f'<div class="answers waiting" role="status"><p>Generating two answers, {count}. They appear together.</p></div>'
    waiting += html.progress_bar("Answers", min(1.0, tokens / most) if tokens else None)
    return f'<div class="talk blind">{_question(prompt)}{waiting}</div>'


def render_revealed(judgement: Judgement, names: Mapping[Branch, str]) -> str:
    """Return the choice and the names of both models."""
    pair, preference = judgement.pair, judgement.winner
    if preference is not None:
        words = f"You preferred <b>{escape(names[preference])}</b>."
    else:
        words = f"You found {'them <b>equally' if judgement.verdict == 'equal' else '<b>neither'} good</b>."
    answers = "".join(
        answer_box(
            "chosen" if branch == preference else "", f"{side}: {names[branch]}", answer_html(pair.answers[branch])
        )
        for side, branch in (("Left", pair.left), ("Right", pair.right))
    )
    if pair.reference:
        answers += answer_box("reference wide", "Reference", answer_html(pair.reference))
    return _pair(pair.prompt, answers, words)


def render_same_words(pair: Pair) -> str:
    """Return a pair of identical answers."""
    both = answer_box("", "Both", answer_html(pair.answers[pair.left]))
    return _pair(pair.prompt, both, "Both answers are identical; this counts as equal.")


def _pair(prompt: str, answers: str, words: str = "") -> str:
    verdict = f'<p class="sentence" role="status">{words}</p>' if words else ""
    return f'<div class="talk blind">{_question(prompt)}<div class="answers">{answers}</div></div>{verdict}'


def _question(prompt: str) -> str:
    return f'<div class="question"><h3>Question</h3><div>{escape(prompt)}</div></div>'


def render_tally(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Return how often each side was preferred, and whether that is significant.

    The bar of the decided pairs is distinguished by position as well as by colour.
    """
    if not tally.total:
        return html.empty("No pairs judged yet", "Judge a few pairs; the tally is saved with the run.")
    figures = (
        (f"{tally.second_preferred:,}", f"preferred {escape(names[tally.second])}"),
        (f"{tally.first_preferred:,}", f"preferred {escape(names[tally.first])}"),
        (f"{tally.equal:,}", "equally good"),
        (f"{tally.neither:,}", "neither good"),
    )
    bar = ""
    if tally.decisive:
        won = f'<span class="won" style="width:{100 * tally.second_preferred / tally.decisive:.1f}%"></span>'
        bar = f'<div class="split" aria-hidden="true">{won}<span class="lost"></span></div>'
    return f'{html.facts(figures)}{bar}<p class="sentence">{_significance(tally, names)}</p>'


def _significance(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Return the result of the sign test as HTML."""
    if not tally.decisive:
        return f"Of {html.plural(tally.total, 'pair')} none was decided: no result yet."
    wins, decided = max(tally.first_preferred, tally.second_preferred), html.plural(tally.decisive, "decided pair")
    if 2 * wins == tally.decisive:
        return f"Of {decided}, each side won {wins:,}: no difference."
    name = names[tally.second if tally.second_preferred == wins else tally.first]
    chance = "less than 0.1%" if tally.p_value < 0.001 else f"{tally.p_value:.{1 if tally.p_value < 0.1 else 0}%}"
    if tally.p_value < SIGNIFICANCE_LEVEL:
        verdict = "That is clear."
    elif wins == tally.decisive and tally.decisive < _CLEAR_WINS:
        verdict = f"That may be chance. At least {_CLEAR_WINS} decided pairs are needed for a clear result."
    else:
        verdict = "That may be chance. Judge more pairs for a clearer result."
    return (
        f"<b>{escape(name[:1].upper() + name[1:])}</b> won {wins:,} of {decided}. If both were equally good, a result at "
        f"least this one-sided would come in {chance} of all tests (exact sign test, two-sided). {verdict}"
    )
