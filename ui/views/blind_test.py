"""The blind test as a person sees it: two answers without names, what was behind them, and what the tally says."""

from collections.abc import Mapping
from html import escape

from engine.chat.contract import Branch
from engine.evaluation.blind_test import CLEAR_CHANCE, BlindTally, Judgement, Pair
from ui.views.quantities import plural


def render_pair(pair: Pair) -> str:
    """Both answers under the names of their sides; nothing in it tells whose they are."""
    return (
        f'<div class="talk blind">{_question(pair.prompt)}<div class="answers">'
        f"{_answer('Left', pair.answers[pair.left])}{_answer('Right', pair.answers[pair.right])}</div></div>"
    )


def render_writing(prompt: str, tokens: int) -> str:
    """While the answers are written; they appear together, since the quicker one would tell."""
    count = f"{tokens:,} tokens so far" if tokens else "reading the question"
    return (
        f'<div class="talk blind">{_question(prompt)}<div class="answers waiting" role="status">'
        f"<p>Two answers are being written, {count}. They appear together.</p></div></div>"
    )


def render_revealed(judgement: Judgement, names: Mapping[Branch, str]) -> str:
    """What was chosen, and whose answers these were."""
    pair = judgement.pair
    preferred = judgement.preferred
    if preferred is not None:
        words = f"You preferred <b>{escape(names[preferred])}</b>."
    elif judgement.verdict == "equal":
        words = "You found them <b>equally good</b>."
    else:
        words = "You found <b>neither good</b>."
    reference = ""
    if pair.reference:
        reference = f'<div class="answer reference wide"><h4>Reference</h4><div class="text">{escape(pair.reference)}</div></div>'
    return (
        f'<div class="talk blind">{_question(pair.prompt)}<div class="answers">'
        f"{_answer(f'Left: {names[pair.left]}', pair.answers[pair.left], preferred == pair.left)}"
        f"{_answer(f'Right: {names[pair.right]}', pair.answers[pair.right], preferred == pair.right)}{reference}</div></div>"
        f'<p class="sentence" role="status">{words}</p>'
    )


def render_same_words(pair: Pair) -> str:
    """Nothing to choose between."""
    return (
        f'<div class="talk blind">{_question(pair.prompt)}<div class="answers"><div class="answer"><h4>Both</h4>'
        f'<div class="text">{escape(pair.answers[pair.left])}</div></div></div></div>'
        '<p class="sentence" role="status">Both said the same, word for word; this counts as equal.</p>'
    )


def render_tally(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Who was preferred how often, and how sure that is."""
    if not tally.judged:
        return '<div class="empty"><b>Nothing judged yet</b>Judge a few pairs; the tally is kept with the run.</div>'
    first, second = escape(names[tally.first]), escape(names[tally.second])
    figures = (
        (tally.second_preferred, f"preferred {second}"),
        (tally.first_preferred, f"preferred {first}"),
        (tally.equal, "equally good"),
        (tally.neither, "neither good"),
    )
    facts = "".join(f"<div><b>{count:,}</b>{words}</div>" for count, words in figures)
    return f'<div class="facts">{facts}</div>{_split(tally)}<p class="sentence">{how_sure(tally, names)}</p>'


def how_sure(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """The sign test in plain words."""
    if not tally.decided:
        return f"Of {plural(tally.judged, 'pair')} none was decided, so that nothing can be said yet."
    ahead = tally.second if tally.second_preferred >= tally.first_preferred else tally.first
    wins = max(tally.first_preferred, tally.second_preferred)
    decided = plural(tally.decided, "pair")
    if 2 * wins == tally.decided:
        return f"Of {decided} that were decided, each side won {wins:,}: no difference can be seen."
    chance = tally.chance
    verdict = (
        "That is clear." if chance < CLEAR_CHANCE else f"That may be chance. {_how_many_more(wins, tally.decided)}"
    )
    return (
        f"<b>{escape(names[ahead][:1].upper() + names[ahead][1:])}</b> won {wins:,} of {decided} that were decided. If both were equally good, a result at "
        f"least this one-sided would come in {_percent(chance)} of all tests (exact sign test, two-sided). {verdict}"
    )


def _how_many_more(wins: int, decided: int) -> str:
    """Few pairs can never be clear; say so instead of letting a person wonder."""
    needed = 6  # 6 of 6 is the first result below 5%
    if wins == decided and decided < needed:
        return f"At least {needed} decided pairs are needed for a clear result."
    return "Judge more pairs to be surer."


def _percent(chance: float) -> str:
    if chance < 0.001:
        return "less than 0.1%"
    return f"{100 * chance:.1f}%" if chance < 0.1 else f"{100 * chance:.0f}%"


def _split(tally: BlindTally) -> str:
    """The decided pairs as one bar, told apart by place as well as by colour."""
    if not tally.decided:
        return ""
    share = 100 * tally.second_preferred / tally.decided
    return (
        f'<div class="split" aria-hidden="true"><span class="won" style="width:{share:.1f}%"></span>'
        '<span class="lost"></span></div>'
    )


def _question(prompt: str) -> str:
    return f'<div class="question"><span>The question</span>{escape(prompt)}</div>'


def _answer(name: str, text: str, chosen: bool = False) -> str:
    said = escape(text) if text.strip() else "<em>(it said nothing)</em>"
    mark = " chosen" if chosen else ""
    return f'<div class="answer{mark}"><h4>{escape(name)}</h4><div class="text">{said}</div></div>'
