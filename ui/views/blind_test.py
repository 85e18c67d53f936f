"""The blind test: two answers without names, whose they were, and the result of all choices."""

from collections.abc import Mapping
from html import escape

from engine.chat.contract import Branch
from engine.evaluation.blind_test import CLEAR_CHANCE, BlindTally, Judgement, Pair
from ui.views.chat import NO_ANSWER, answer_box
from ui.views.html import empty, facts, plural

_CLEAR_WINS = 6  # 6 of 6 is the first result below 5%


def render_pair(pair: Pair) -> str:
    """Return both answers under the names of their sides; nothing in it shows whose they are."""
    return _talk(pair.prompt, _answer("Left", pair.answers[pair.left]) + _answer("Right", pair.answers[pair.right]))


def render_writing(prompt: str, tokens: int) -> str:
    """Return the progress of the answers; they appear together, since the quicker one would give itself away."""
    count = f"{tokens:,} tokens so far" if tokens else "reading the question"
    waiting = f'<div class="answers waiting" role="status"><p>Generating two answers, {count}. They appear together.</p></div>'
    return f'<div class="talk blind">{_question(prompt)}{waiting}</div>'


def render_revealed(judgement: Judgement, names: Mapping[Branch, str]) -> str:
    """Return the choice, and whose answers these were."""
    pair, preferred = judgement.pair, judgement.preferred
    if preferred is not None:
        words = f"You preferred <b>{escape(names[preferred])}</b>."
    elif judgement.verdict == "equal":
        words = "You found them <b>equally good</b>."
    else:
        words = "You found <b>neither good</b>."
    answers = "".join(
        _answer(f"{side}: {names[branch]}", pair.answers[branch], chosen=preferred == branch)
        for side, branch in (("Left", pair.left), ("Right", pair.right))
    )
    if pair.reference:
        answers += answer_box("reference wide", "Reference", escape(pair.reference))
    return f'{_talk(pair.prompt, answers)}<p class="sentence" role="status">{words}</p>'


def render_same_words(pair: Pair) -> str:
    """Return a pair that leaves nothing to choose between."""
    return (
        _talk(pair.prompt, answer_box("", "Both", escape(pair.answers[pair.left])))
        + '<p class="sentence" role="status">Both answers are identical; this counts as equal.</p>'
    )


def render_tally(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Return how often each side was preferred, and whether that is significant."""
    if not tally.judged:
        return empty("No pairs judged yet", "Judge a few pairs; the tally is saved with the run.")
    figures = (
        (f"{tally.second_preferred:,}", f"preferred {escape(names[tally.second])}"),
        (f"{tally.first_preferred:,}", f"preferred {escape(names[tally.first])}"),
        (f"{tally.equal:,}", "equally good"),
        (f"{tally.neither:,}", "neither good"),
    )
    return f'{facts(figures)}{_split(tally)}<p class="sentence">{how_sure(tally, names)}</p>'


def how_sure(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Return the sign test in plain words."""
    if not tally.decided:
        return f"Of {plural(tally.judged, 'pair')} none was decided: no result yet."
    ahead = tally.second if tally.second_preferred >= tally.first_preferred else tally.first
    wins = max(tally.first_preferred, tally.second_preferred)
    decided = plural(tally.decided, "decided pair")
    if 2 * wins == tally.decided:
        return f"Of {decided}, each side won {wins:,}: no difference."
    name = names[ahead]
    if tally.chance < CLEAR_CHANCE:
        verdict = "That is clear."
    elif wins == tally.decided and tally.decided < _CLEAR_WINS:
        verdict = f"That may be chance. At least {_CLEAR_WINS} decided pairs are needed for a clear result."
    else:
        verdict = "That may be chance. Judge more pairs to be surer."
    return (
        f"<b>{escape(name[:1].upper() + name[1:])}</b> won {wins:,} of {decided}. If both were equally good, a result at "
        f"least this one-sided would come in {_percent(tally.chance)} of all tests (exact sign test, two-sided). {verdict}"
    )


def _percent(chance: float) -> str:
    if chance < 0.001:
        return "less than 0.1%"
    return f"{100 * chance:.1f}%" if chance < 0.1 else f"{100 * chance:.0f}%"


def _split(tally: BlindTally) -> str:
    """Return the decided pairs as one bar, told apart by place as well as by colour."""
    if not tally.decided:
        return ""
    share = 100 * tally.second_preferred / tally.decided
    return (
        f'<div class="split" aria-hidden="true"><span class="won" style="width:{share:.1f}%"></span>'
        '<span class="lost"></span></div>'
    )


def _talk(prompt: str, answers: str) -> str:
    return f'<div class="talk blind">{_question(prompt)}<div class="answers">{answers}</div></div>'


def _question(prompt: str) -> str:
    return f'<div class="question"><span>Question</span>{escape(prompt)}</div>'


def _answer(name: str, text: str, *, chosen: bool = False) -> str:
    return answer_box("chosen" if chosen else "", name, escape(text) if text.strip() else NO_ANSWER)
