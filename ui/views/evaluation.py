"""Base against tuned: an evaluation in figures, then row by row, the worst first."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import shorten

from engine.chat.contract import Branch
from engine.evaluation.job import (
    AnsweredRow,
    AnswerScores,
    EvaluationResult,
    forgetting_words,
    gain_words,
    preference_sentences,
)
from engine.evaluation.preference import interval
from engine.evaluation.ratings import RATING_COLUMNS, rating_cells
from ui.backend.conversation import BRANCH_WORDS
from ui.backend.results import MeasuredRun
from ui.views import html
from ui.views.chat import LONGEST_SUMMARY, answer_box, answer_html

ROWS_PER_PAGE = 5
# Turn separators and roles of common templates; other prompts are shown whole.
_CONTROL = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<bos>|\[/?INST\]|<(?:start|end)_of_turn>")
_ROLE = re.compile(r"^(?:system|user|assistant|model)(?:\n+|$)")

NOT_MEASURED = html.empty(
    "Not measured yet",
    "Measuring compares base and tuned on the same tokens of the held-out set. It continues when you leave this page.",
)
NO_RESULT = html.empty("Choose a run to measure", "Only a run has a held-out set; a base model or a folder does not.")


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
    sample_words = (
        f"{html.plural(result.rows, 'held-out row')}, {html.plural(tuned.tokens, 'trained token')}, the same for both"
    )
    return (
        f'{html.facts(figures)}<p class="small">{worse}Measured on {sample_words}, in {html.duration(result.seconds)}.</p>'
        f"{_preference(result)}{_ratings(result)}{_forgetting(result)}{html.notices(result.notes)}{_scores(result)}"
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
    columns = [html.Column("Model"), *map(html.Column.of_numbers, numbers)]
    words = "".join(html.small(sentence) for sentence in preference_sentences(result))
    return f"<h3>Preferences</h3>{html.table(columns, rows, css='preferences', caption=caption)}{words}"


def _changes(result: EvaluationResult) -> tuple[tuple[str, str], ...]:
    """Gain on held-out rows and loss on general text; empty if forgetting was not measured."""
    if result.gain is None or result.forgetting is None:
        return ()
    return ((gain_words(result.gain), "held-out rows"), (forgetting_words(result.forgetting), "general text"))


def _forgetting(result: EvaluationResult) -> str:
    if result.forgetting is None:
        return ""
    base, tuned = result.general_losses["base"], result.general_losses["tuned"]
    return html.small(
        f"Forgot: how far the tuned model's loss on {html.plural(tuned.tokens, 'token')} of general text (articles, dialogue, "
        f"code, arithmetic; 14 languages) is above the base model's: {base.loss:.4f} → {tuned.loss:.4f}."
    )


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2g}"


def _scores(result: EvaluationResult) -> str:
    if not result.scores:
        return html.small("No row was answered: no scores.")
    rows = [
        (escape(_names(result)[branch]), f"{mean.exact:.0%}", f"{mean.rouge_l:.3f}", f"{mean.chrf:.3f}")
        for branch, mean in result.scores.items()
    ]
    row_words = html.plural(next(iter(result.scores.values())).rows, "row")
    caption = f"Greedy answers to {row_words}, compared with their references; 0 means no overlap, 1 means identical."
    columns = [html.Column("Answers of"), *map(html.Column.of_numbers, ("Exact", "ROUGE-L", "chrF"))]
    return html.table(columns, rows, css="scores", caption=caption)


def render_answered(result: EvaluationResult, page: html.ListPage) -> str:
    """Return one page of answered rows, the worst tuned answers first."""
    rows, names = result.answered[page.start : page.end], _names(result)
    return f'<div class="answered">{"".join(_answer_row(row, names) for row in rows)}</div>' if rows else ""


def question_of(prompt: str) -> str:
    """Return the last message of a rendered prompt, without the control tokens and roles of its template."""
    parts = (part.strip() for part in _CONTROL.split(prompt))
    texts = [words for part in parts if (words := _ROLE.sub("", part).strip())]
    return texts[-1] if texts else prompt


def _answer_row(row: AnsweredRow, names: Mapping[Branch, str]) -> str:
    answers = answer_box("reference", "Reference", answer_html(row.reference)) + "".join(
        answer_box(branch, names[branch], answer_html(answer.text), _figures(answer.scores, answer.tokens))
        for branch, answer in row.answers.items()
    )
    summary = shorten(question_of(row.prompt), LONGEST_SUMMARY, placeholder=" …")
    return (
        f'<section><h3 class="num">Row {row.row + 1:,}</h3><details><summary>{escape(summary)}</summary>'
        f'{html.log(row.prompt, "Prompt")}</details><div class="answers">{answers}</div></section>'
    )


def _figures(scores: AnswerScores, tokens: int) -> str:
    exact = "exact · " if scores.exact else ""
    return f"{exact}chrF {scores.chrf:.2f} · ROUGE-L {scores.rouge_l:.2f} · {html.plural(tokens, 'token')}"


def render_across(rows: Sequence[MeasuredRun], chosen: str) -> str:
    """Return the evaluations of all runs; a row can be picked."""
    if not rows:
        return ""
    numbers = ["Rows", "Loss", "Perplexity", "Base perplexity", "Forgot", "Exact", "ROUGE-L", "chrF"]
    with_preferences = any(row.result.preference_accuracy is not None for row in rows)
    numbers += ["Preference accuracy"] if with_preferences else []
    columns = [html.Column("Run"), *map(html.Column.of_numbers, numbers)]
    content = html.table(
        columns, (_across(row, chosen, with_preferences=with_preferences) for row in rows), css="across"
    )
    return f"<h3>All evaluations</h3>{html.small('Comparable only on the same held-out rows.')}{content}"


def _across(row: MeasuredRun, chosen: str, *, with_preferences: bool) -> html.Row:
    result = row.result
    tuned, base, scores = result.losses.get("tuned"), result.losses.get("base"), result.scores.get("tuned")
    cells = [
        html.under(escape(row.name), f"{row.state} · {row.data}"),
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
    return html.Row(cells, html.pickable(key, chosen=key == chosen))
