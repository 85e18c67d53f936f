"""What an evaluation found: base against tuned in figures, then row by row, the worst first."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from engine.evaluation.contract import AnsweredRow, AnswerScores, EvaluationResult
from ui.pick import pickable
from ui.views.notices import render_notices
from ui.views.quantities import duration, plural
from ui.views.transcript import BRANCH_WORDS

ROWS_PER_PAGE = 5

NOT_MEASURED = (
    '<div class="empty"><b>Not measured yet</b>Measuring takes the rows that this run did not learn from, and lets base '
    "and tuned be judged on exactly the same tokens. It runs on when you leave this page.</div>"
)
NO_RESULT = (
    '<div class="empty"><b>Choose a run to measure</b>Only a run knows which rows it was not trained on; a model as it '
    "is, or a folder, does not.</div>"
)


class MeasuredRun(NamedTuple):
    """One line of the table across runs."""

    run_id: str
    checkpoint: str  # "final", or its name
    name: str
    state: str  # the same in words
    data: str
    result: EvaluationResult


def render_evaluation(result: EvaluationResult) -> str:
    """Losses, perplexities and scores."""
    if "tuned" not in result.losses or "base" not in result.losses:
        return ""
    base, tuned = result.losses["base"], result.losses["tuned"]
    change = _change(base.perplexity, tuned.perplexity)
    facts = (
        f"<div><b>{tuned.loss:.4f}</b>held-out loss, tuned</div><div><b>{base.loss:.4f}</b>held-out loss, base</div>"
        f"<div><b>{_perplexity(tuned.perplexity)}</b>perplexity, tuned</div>"
        f"<div><b>{_perplexity(base.perplexity)}</b>perplexity, base</div>"
    )
    measured = f"{plural(result.rows, 'held-out row')}, {plural(tuned.tokens, 'learned token')}, the same for both"
    notes = render_notices(result.notes)
    return (
        f'<div class="facts">{facts}</div><p class="small">{change} Measured on {measured}, in '
        f"{duration(result.seconds)}.</p>{notes}{_scores(result)}"
    )


def _change(base: float, tuned: float) -> str:
    """What the perplexities say, in words."""
    if tuned < base:
        return (
            f"Before each token, the base model hesitates between {_perplexity(base)} equally likely ones on average, the "
            f"tuned model between {_perplexity(tuned)}."
        )
    return "<b>The run made it worse:</b> on rows it has not seen, the tuned model is less sure of the right words than the base."


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.2g}"


def _scores(result: EvaluationResult) -> str:
    if not result.scores:
        return '<p class="small">No row was answered, so there are no scores.</p>'
    rows = "".join(
        f'<tr><td>{BRANCH_WORDS[branch]}</td><td class="r">{mean.exact:.0%}</td><td class="r">{mean.rouge_l:.3f}</td>'
        f'<td class="r">{mean.chrf:.3f}</td></tr>'
        for branch, mean in result.scores.items()
    )
    count = next(iter(result.scores.values())).rows
    return (
        f'<div class="scroll"><table class="plain scores"><caption>Greedy answers to {plural(count, "row")}, against their '
        'references; 0 is nothing in common, 1 is the same.</caption><thead><tr><th>Answers of</th><th class="r">Exact</th>'
        f'<th class="r">ROUGE-L</th><th class="r">chrF</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def render_answered(result: EvaluationResult, page: int) -> str:
    """One page of answered rows, the worst tuned answers first."""
    shown = result.answered[page * ROWS_PER_PAGE : (page + 1) * ROWS_PER_PAGE]
    if not shown:
        return ""
    return f'<div class="answered">{"".join(_row(row) for row in shown)}</div>'


def pages_of(result: EvaluationResult) -> int:
    """How many pages of answered rows there are."""
    return -(-len(result.answered) // ROWS_PER_PAGE)


def page_words(result: EvaluationResult, page: int) -> str:
    """Where in the answered rows one is."""
    first = page * ROWS_PER_PAGE + 1
    last = min(len(result.answered), (page + 1) * ROWS_PER_PAGE)
    where = f"{first}–{last}" if last > first else f"{first}"
    return f'<p class="small num">{where} of {plural(len(result.answered), "answered row")}, the worst first</p>'


def _row(row: AnsweredRow) -> str:
    answers = "".join(
        f'<div class="answer {branch}"><h4>{BRANCH_WORDS[branch]}</h4><div class="text">{_text(answer.text)}</div>'
        f'<p class="figures">{_figures(answer.scores, answer.tokens)}</p></div>'
        for branch, answer in row.answers.items()
    )
    return (
        f'<section><h4 class="num">Row {row.row:,}</h4><details><summary>{escape(_shortened(row.prompt))}</summary>'
        f'<pre class="log" tabindex="0">{escape(row.prompt)}</pre></details>'
        f'<div class="answers"><div class="answer reference"><h4>Reference</h4><div class="text">{_text(row.reference)}'
        f"</div></div>{answers}</div></section>"
    )


def _text(text: str) -> str:
    return escape(text) if text else "<em>(it said nothing)</em>"


def _figures(scores: AnswerScores, tokens: int) -> str:
    exact = "exact · " if scores.exact else ""
    return f"{exact}chrF {scores.chrf:.2f} · ROUGE-L {scores.rouge_l:.2f} · {plural(tokens, 'token')}"


def _shortened(prompt: str, longest: int = 220) -> str:
    """The end of a prompt says what was asked; its beginning is mostly the template."""
    text = " ".join(prompt.split())
    return text if len(text) <= longest else f"… {text[-longest:]}"


def render_across(rows: Sequence[MeasuredRun], chosen: str) -> str:
    """What was measured on all runs, so that they can be compared; a row can be picked."""
    if not rows:
        return ""
    head = (
        '<thead><tr><th>Run</th><th class="r">Rows</th><th class="r">Loss</th><th class="r">Perplexity</th>'
        '<th class="r">of its base</th><th class="r">Exact</th><th class="r">ROUGE-L</th><th class="r">chrF</th></tr></thead>'
    )
    body = "".join(_across_row(row, chosen) for row in rows)
    return (
        '<h3>Across runs</h3><p class="small">Compare runs on the same data only: other held-out rows are other exams.</p>'
        f'<div class="scroll"><table class="plain across">{head}<tbody>{body}</tbody></table></div>'
    )


def _across_row(row: MeasuredRun, chosen: str) -> str:
    result = row.result
    tuned, base = result.losses.get("tuned"), result.losses.get("base")
    scores = result.scores.get("tuned")
    cells = [f"{result.rows:,}", f"{tuned.loss:.4f}" if tuned else "–"]
    cells += [_perplexity(tuned.perplexity) if tuned else "–", _perplexity(base.perplexity) if base else "–"]
    cells += [f"{scores.exact:.0%}", f"{scores.rouge_l:.3f}", f"{scores.chrf:.3f}"] if scores else ["–"] * 3
    figures = "".join(f'<td class="r">{cell}</td>' for cell in cells)
    key = f"{row.run_id}/{row.checkpoint}"
    return (
        f"<tr {pickable(key, chosen=key == chosen)}><td>{escape(row.name)}"
        f'<span class="under">{escape(row.state)} · {escape(row.data)}</span></td>{figures}</tr>'
    )
