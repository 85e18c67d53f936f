"""The result of an evaluation: base against tuned in figures, then row by row, the worst first."""

from collections.abc import Sequence
from html import escape

from engine.evaluation.contract import AnsweredRow, AnswerScores, EvaluationResult
from ui.backend.evaluations import MeasuredRun
from ui.views.chat import BRANCH_WORDS, NO_ANSWER, answer_box
from ui.views.html import Column, Row, duration, empty, facts, log, notices, pickable, plural, small, table, under

ROWS_PER_PAGE = 5

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
        (f"{tuned.loss:.4f}", "held-out loss, tuned"),
        (f"{base.loss:.4f}", "held-out loss, base"),
        (_perplexity(tuned.perplexity), "perplexity, tuned"),
        (_perplexity(base.perplexity), "perplexity, base"),
    )
    worse = (
        ""
        if tuned.perplexity < base.perplexity
        else "<b>Training made it worse:</b> the base model has the lower loss. "
    )
    measured = f"{plural(result.rows, 'held-out row')}, {plural(tuned.tokens, 'trained token')}, the same for both"
    return (
        f'{facts(figures)}<p class="small">{worse}Measured on {measured}, in {duration(result.seconds)}.</p>'
        f"{notices(result.notes)}{_scores(result)}"
    )


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2g}"


def _scores(result: EvaluationResult) -> str:
    if not result.scores:
        return small("No row was answered: no scores.")
    rows = [
        (BRANCH_WORDS[branch], f"{mean.exact:.0%}", f"{mean.rouge_l:.3f}", f"{mean.chrf:.3f}")
        for branch, mean in result.scores.items()
    ]
    answered = plural(next(iter(result.scores.values())).rows, "row")
    caption = f"Greedy answers to {answered}, compared with their references; 0 is nothing in common, 1 is identical."
    columns = [Column("Answers of"), *map(Column.of_numbers, ("Exact", "ROUGE-L", "chrF"))]
    return table(columns, rows, css="scores", caption=caption)


def render_answered(result: EvaluationResult, page: int) -> str:
    """Return one page of answered rows, the worst tuned answers first."""
    rows = result.answered[page * ROWS_PER_PAGE : (page + 1) * ROWS_PER_PAGE]
    return f'<div class="answered">{"".join(map(_answered, rows))}</div>' if rows else ""


def pages_of(result: EvaluationResult) -> int:
    """Return the number of pages of answered rows."""
    return -(-len(result.answered) // ROWS_PER_PAGE)


def page_words(result: EvaluationResult, page: int) -> str:
    """Return which of the answered rows a page shows."""
    first = page * ROWS_PER_PAGE + 1
    last = min(len(result.answered), (page + 1) * ROWS_PER_PAGE)
    where = f"{first}–{last}" if last > first else f"{first}"
    return f'<p class="small num">{where} of {plural(len(result.answered), "answered row")}, the worst first</p>'


def _answered(row: AnsweredRow) -> str:
    answers = answer_box("reference", "Reference", _text(row.reference)) + "".join(
        answer_box(branch, BRANCH_WORDS[branch], _text(answer.text), _figures(answer.scores, answer.tokens))
        for branch, answer in row.answers.items()
    )
    return (
        f'<section><h4 class="num">Row {row.row:,}</h4><details><summary>{escape(_shortened(row.prompt))}</summary>'
        f'{log(row.prompt, "Prompt")}</details><div class="answers">{answers}</div></section>'
    )


def _text(text: str) -> str:
    return escape(text) if text else NO_ANSWER


def _figures(scores: AnswerScores, tokens: int) -> str:
    exact = "exact · " if scores.exact else ""
    return f"{exact}chrF {scores.chrf:.2f} · ROUGE-L {scores.rouge_l:.2f} · {plural(tokens, 'token')}"


def _shortened(prompt: str, longest: int = 220) -> str:
    """Return the end of a prompt, which has the question; its beginning is mostly the template."""
    text = " ".join(prompt.split())
    return text if len(text) <= longest else f"… {text[-longest:]}"


def render_across(rows: Sequence[MeasuredRun], chosen: str) -> str:
    """Return the evaluations of all runs; a row can be picked."""
    if not rows:
        return ""
    numbers = ("Rows", "Loss", "Perplexity", "Base perplexity", "Exact", "ROUGE-L", "chrF")
    html = table(
        [Column("Run"), *map(Column.of_numbers, numbers)], (_across(row, chosen) for row in rows), css="across"
    )
    return f"<h3>All evaluations</h3>{small('Comparable only on the same held-out rows.')}{html}"


def _across(row: MeasuredRun, chosen: str) -> Row:
    result = row.result
    tuned, base, scores = result.losses.get("tuned"), result.losses.get("base"), result.scores.get("tuned")
    cells = [
        under(escape(row.name), f"{row.state} · {row.data}"),
        f"{result.rows:,}",
        f"{tuned.loss:.4f}" if tuned else "–",
        _perplexity(tuned.perplexity) if tuned else "–",
        _perplexity(base.perplexity) if base else "–",
    ]
    cells += [f"{scores.exact:.0%}", f"{scores.rouge_l:.3f}", f"{scores.chrf:.3f}"] if scores else ["–"] * 3
    key = f"{row.run_id}/{row.checkpoint}"
    return Row(cells, pickable(key, chosen=key == chosen))
