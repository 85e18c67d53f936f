"""Base against tuned: an evaluation in figures, then row by row, the worst first; and the blind test with its tally."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from engine.chat.contract import Branch
from engine.evaluation.blind_test import SIGNIFICANCE_LEVEL, BlindTally, Judgement, Pair
from engine.evaluation.job import (
    AnsweredRow,
    AnswerScores,
    EvaluationResult,
    forgetting_words,
    gain_words,
    preference_sentences,
)
from engine.evaluation.preference import RATING_COLUMNS, interval, rating_cells
from ui.backend.results import MeasuredRun
from ui.views.chat import BRANCH_WORDS, NO_ANSWER, answer_box
from ui.views.html import (
    Column,
    Row,
    duration,
    empty,
    facts,
    log,
    markdown,
    notices,
    pickable,
    plural,
    progress_bar,
    small,
    table,
    under,
)

ROWS_PER_PAGE = 5
# Turn separators and roles of common templates; other prompts are shown whole.
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<bos>|\[/?INST\]|<(?:start|end)_of_turn>")
_ROLE = re.compile(r"^(?:system|user|assistant|model)(?:\n+|$)")
_LONGEST_SUMMARY = 220  # characters of a prompt
_CLEAR_WINS = 6  # of as many decided pairs: the first result below 5%

NOT_MEASURED = empty(
    "Not measured yet",
    "Measuring compares base and tuned on the same tokens of the held-out set. It continues when you leave this page.",
)
NO_RESULT = empty("Choose a run to measure", "Only a run has a held-out set; a base model or a folder does not.")


def render_evaluation(result: EvaluationResult) -> str:
    """Return losses, perplexities and scores."""
    if "tuned" not in result.losses or "base" not in result.losses:
        return ""
    base, tuned = result.losses["base"], result.losses["tuned"]
    figures = (
        *_changes(result),
        (f"{tuned.loss:.4f}", "held-out loss, tuned"),
        (f"{base.loss:.4f}", "held-out loss, base"),
        (_perplexity(tuned.perplexity), "perplexity, tuned"),
        (_perplexity(base.perplexity), "perplexity, base"),
    )
    worse = ""
    if result.gain is not None and tuned.perplexity >= base.perplexity:
        worse = "<b>Training made it worse:</b> the base model has the lower loss. "
    sample_words = f"{plural(result.rows, 'held-out row')}, {plural(tuned.tokens, 'trained token')}, the same for both"
    return (
        f'{facts(figures)}<p class="small">{worse}Measured on {sample_words}, in {duration(result.seconds)}.</p>'
        f"{_preference(result)}{_ratings(result)}{_forgetting(result)}{notices(result.notes)}{_scores(result)}"
    )


def _names(result: EvaluationResult) -> dict[Branch, str]:
    return {**BRANCH_WORDS, "second": f"Start: {result.start}"}


def _preference(result: EvaluationResult) -> str:
    """Return preference accuracies and margins of all branches, with an explanation."""
    preference = result.preference
    if preference is None:
        return ""
    rows = []
    for branch, one in preference.branches.items():
        accuracy = reward = "–"
        if branch == "tuned":
            low, high = interval(preference.right, preference.pairs)
            accuracy = f"{preference.accuracy:.0%} ({low:.0%}–{high:.0%})"
            reward = "–" if one.reward_margin is None else f"{one.reward_margin:+.3f}"
        likelier = f"{one.preferred:,} of {preference.pairs:,} · {one.preferred / preference.pairs:.0%}"
        cells = (accuracy, reward, likelier, f"{one.preferred_per_token / preference.pairs:.0%}", f"{one.margin:+.2f}")
        rows.append((escape(_names(result)[branch]), *cells))
    numbers = ("Accuracy", "Reward margin", "Chosen likelier", "Per token", "Margin, nats")
    caption = "Chosen likelier: the chosen answer as a whole is likelier than the rejected one. Per token: its average token is."
    return _preference_table(result, numbers, rows, caption)


def _ratings(result: EvaluationResult) -> str:
    """Return rewards of labelled completions by branch; the reference has none and is left out."""
    ratings = result.ratings
    if ratings is None:
        return ""
    rows = []
    for branch, one in ratings.branches.items():
        accuracy, *rewards = rating_cells(one, ratings)
        if branch == "tuned":
            low, high = interval(ratings.right, ratings.completions)
            accuracy = f"{accuracy} ({low:.0%}–{high:.0%})"
        rows.append((escape(_names(result)[branch]), accuracy, *rewards))
    caption = "Mean rewards of the completions; TRL logs them as rewards/chosen, rewards/rejected and rewards/margins."
    return _preference_table(result, RATING_COLUMNS, rows, caption)


def _preference_table(
    result: EvaluationResult, numbers: Sequence[str], rows: Sequence[Sequence[str]], caption: str
) -> str:
    columns = [Column("Model"), *map(Column.of_numbers, numbers)]
    words = "".join(small(sentence) for sentence in preference_sentences(result))
    return f"<h3>Preferences</h3>{table(columns, rows, css='preferences', caption=caption)}{words}"


def _changes(result: EvaluationResult) -> tuple[tuple[str, str], ...]:
    """Gain on held-out rows and loss on general text; empty if forgetting was not measured."""
    if result.gain is None or result.forgetting is None:
        return ()
    return ((gain_words(result.gain), "held-out rows"), (forgetting_words(result.forgetting), "general text"))


def _forgetting(result: EvaluationResult) -> str:
    if result.forgetting is None:
        return ""
    base, tuned = result.general_losses["base"], result.general_losses["tuned"]
    return small(
        f"Forgot: how far the tuned model's loss on {plural(tuned.tokens, 'token')} of general text (articles, dialogue, "
        f"code, arithmetic; 14 languages) is above the base model's: {base.loss:.4f} → {tuned.loss:.4f}."
    )


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2g}"


def _scores(result: EvaluationResult) -> str:
    if not result.scores:
        return small("No row was answered: no scores.")
    rows = [
        (escape(_names(result)[branch]), f"{mean.exact:.0%}", f"{mean.rouge_l:.3f}", f"{mean.chrf:.3f}")
        for branch, mean in result.scores.items()
    ]
    row_words = plural(next(iter(result.scores.values())).rows, "row")
    caption = f"Greedy answers to {row_words}, compared with their references; 0 means no overlap, 1 means identical."
    columns = [Column("Answers of"), *map(Column.of_numbers, ("Exact", "ROUGE-L", "chrF"))]
    return table(columns, rows, css="scores", caption=caption)


def render_answered(result: EvaluationResult, page: int) -> str:
    """Return one page of answered rows, the worst tuned answers first."""
    rows = result.answered[page * ROWS_PER_PAGE : (page + 1) * ROWS_PER_PAGE]
    names = _names(result)
    return f'<div class="answered">{"".join(_answer_row(row, names) for row in rows)}</div>' if rows else ""


def pages_of(result: EvaluationResult) -> int:
    """Return the number of pages of answered rows."""
    return -(-len(result.answered) // ROWS_PER_PAGE)


def page_words(result: EvaluationResult, page: int) -> str:
    """Return which of the answered rows a page shows."""
    first = page * ROWS_PER_PAGE + 1
    last = min(len(result.answered), (page + 1) * ROWS_PER_PAGE)
    where = f"{first}–{last}" if last > first else f"{first}"
    return f'<p class="small num">{where} of {plural(len(result.answered), "answered row")}, the worst first</p>'


def question_of(prompt: str) -> str:
    """Return the last message of a rendered prompt, without the control tokens and roles of its template."""
    parts = (part.strip() for part in _CONTROL.split(prompt))
    texts = [words for part in parts if (words := _ROLE.sub("", part).strip())]
    return texts[-1] if texts else prompt


def _answer_row(row: AnsweredRow, names: Mapping[Branch, str]) -> str:
    answers = answer_box("reference", "Reference", _text(row.reference)) + "".join(
        answer_box(branch, names[branch], _text(answer.text), _figures(answer.scores, answer.tokens))
        for branch, answer in row.answers.items()
    )
    summary = " ".join(question_of(row.prompt).split())
    if len(summary) > _LONGEST_SUMMARY:
        summary = f"… {summary[-_LONGEST_SUMMARY:]}"
    return (
        f'<section><h3 class="num">Row {row.row + 1:,}</h3><details><summary>{escape(summary)}</summary>'
        f'{log(row.prompt, "Prompt")}</details><div class="answers">{answers}</div></section>'
    )


def _text(text: str) -> str:
    return markdown(text) if text.strip() else NO_ANSWER


def _figures(scores: AnswerScores, tokens: int) -> str:
    exact = "exact · " if scores.exact else ""
    return f"{exact}chrF {scores.chrf:.2f} · ROUGE-L {scores.rouge_l:.2f} · {plural(tokens, 'token')}"


def render_across(rows: Sequence[MeasuredRun], chosen: str) -> str:
    """Return the evaluations of all runs; a row can be picked."""
    if not rows:
        return ""
    numbers = ["Rows", "Loss", "Perplexity", "Base perplexity", "Forgot", "Exact", "ROUGE-L", "chrF"]
    with_preferences = any(row.result.preference_accuracy is not None for row in rows)
    numbers += ["Preference accuracy"] if with_preferences else []
    columns = [Column("Run"), *map(Column.of_numbers, numbers)]
    html = table(columns, (_across(row, chosen, with_preferences=with_preferences) for row in rows), css="across")
    return f"<h3>All evaluations</h3>{small('Comparable only on the same held-out rows.')}{html}"


def _across(row: MeasuredRun, chosen: str, *, with_preferences: bool) -> Row:
    result = row.result
    tuned, base, scores = result.losses.get("tuned"), result.losses.get("base"), result.scores.get("tuned")
    cells = [
        under(escape(row.name), f"{row.state} · {row.data}"),
        f"{result.rows:,}",
        f"{tuned.loss:.4f}" if tuned else "–",
        _perplexity(tuned.perplexity) if tuned else "–",
        _perplexity(base.perplexity) if base else "–",
        f"{max(0.0, result.forgetting):.1%}" if result.forgetting is not None else "–",
    ]
    cells += [f"{scores.exact:.0%}", f"{scores.rouge_l:.3f}", f"{scores.chrf:.3f}"] if scores else ["–"] * 3
    if with_preferences:
        cells.append(f"{result.preference_accuracy:.0%}" if result.preference_accuracy is not None else "–")
    key = f"{row.run_id}/{row.checkpoint}"
    return Row(cells, pickable(key, chosen=key == chosen))


def render_pair(pair: Pair) -> str:
    """Return both answers under the names of their sides, without their models."""
    answers = _blind_answer("Left", pair.answers[pair.left]) + _blind_answer("Right", pair.answers[pair.right])
    return _blind_pair(pair.prompt, answers)


def render_writing(prompt: str, tokens: int, most: int) -> str:
    """Return the progress of the answers, of `most` tokens in all; they appear together, for the quicker one gives itself away."""
    count = f"{tokens:,} tokens so far" if tokens else "reading the question"
    waiting = f'<div class="answers waiting" role="status"><p>Generating two answers, {count}. They appear together.</p></div>'
    waiting += progress_bar("Answers", min(1.0, tokens / most) if tokens else None)
    return f'<div class="talk blind">{_blind_question(prompt)}{waiting}</div>'


def render_revealed(judgement: Judgement, names: Mapping[Branch, str]) -> str:
    """Return the choice and the names of both models."""
    pair, preference = judgement.pair, judgement.winner
    if preference is not None:
        words = f"You preferred <b>{escape(names[preference])}</b>."
    elif judgement.verdict == "equal":
        words = "You found them <b>equally good</b>."
    else:
        words = "You found <b>neither good</b>."
    answers = "".join(
        _blind_answer(f"{side}: {names[branch]}", pair.answers[branch], chosen=preference == branch)
        for side, branch in (("Left", pair.left), ("Right", pair.right))
    )
    if pair.reference:
        answers += answer_box("reference wide", "Reference", _text(pair.reference))
    return _blind_pair(pair.prompt, answers, words)


def render_same_words(pair: Pair) -> str:
    """Return a pair of identical answers."""
    both = answer_box("", "Both", _text(pair.answers[pair.left]))
    return _blind_pair(pair.prompt, both, "Both answers are identical; this counts as equal.")


def render_tally(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Return how often each side was preferred, and whether that is significant."""
    if not tally.total:
        return empty("No pairs judged yet", "Judge a few pairs; the tally is saved with the run.")
    figures = (
        (f"{tally.second_preferred:,}", f"preferred {escape(names[tally.second])}"),
        (f"{tally.first_preferred:,}", f"preferred {escape(names[tally.first])}"),
        (f"{tally.equal:,}", "equally good"),
        (f"{tally.neither:,}", "neither good"),
    )
    return f'{facts(figures)}{_split_bar(tally)}<p class="sentence">{how_sure(tally, names)}</p>'


def how_sure(tally: BlindTally, names: Mapping[Branch, str]) -> str:
    """Return the result of the sign test as text."""
    if not tally.decisive:
        return f"Of {plural(tally.total, 'pair')} none was decided: no result yet."
    ahead = tally.second if tally.second_preferred >= tally.first_preferred else tally.first
    wins = max(tally.first_preferred, tally.second_preferred)
    pair_words = plural(tally.decisive, "decided pair")
    if 2 * wins == tally.decisive:
        return f"Of {pair_words}, each side won {wins:,}: no difference."
    name = names[ahead]
    chance = f"{tally.p_value:.1%}" if tally.p_value < 0.1 else f"{tally.p_value:.0%}"
    if tally.p_value < 0.001:
        chance = "less than 0.1%"
    if tally.p_value < SIGNIFICANCE_LEVEL:
        verdict = "That is clear."
    elif wins == tally.decisive and tally.decisive < _CLEAR_WINS:
        verdict = f"That may be chance. At least {_CLEAR_WINS} decided pairs are needed for a clear result."
    else:
        verdict = "That may be chance. Judge more pairs for a clearer result."
    return (
        f"<b>{escape(name[:1].upper() + name[1:])}</b> won {wins:,} of {pair_words}. If both were equally good, a result at "
        f"least this one-sided would come in {chance} of all tests (exact sign test, two-sided). {verdict}"
    )


def _split_bar(tally: BlindTally) -> str:
    """Return the decided pairs as one bar, distinguished by position as well as by colour."""
    if not tally.decisive:
        return ""
    won_html = f'<span class="won" style="width:{100 * tally.second_preferred / tally.decisive:.1f}%"></span>'
    return f'<div class="split" aria-hidden="true">{won_html}<span class="lost"></span></div>'


def _blind_pair(prompt: str, answers: str, words: str = "") -> str:
    verdict = f'<p class="sentence" role="status">{words}</p>' if words else ""
    return f'<div class="talk blind">{_blind_question(prompt)}<div class="answers">{answers}</div></div>{verdict}'


def _blind_question(prompt: str) -> str:
    return f'<div class="question"><h3>Question</h3><div>{escape(prompt)}</div></div>'


def _blind_answer(name: str, text: str, *, chosen: bool = False) -> str:
    return answer_box("chosen" if chosen else "", name, _text(text))
