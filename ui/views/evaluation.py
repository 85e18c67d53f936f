"""Base against tuned: an evaluation in figures and rows, the blind test with its tally, and the votes of a person."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import islice

from loratory.engine.chat.contract import Branch
from loratory.engine.evaluation.blind_test import SIGNIFICANCE_LEVEL, BlindCounts, Judgement, Pair
from loratory.engine.evaluation.job import (
    AnsweredRow,
    AnswerScores,
    EvaluationResult,
    describe_forgetting,
    describe_gain,
    preference_sentences,
)
from loratory.engine.evaluation.preference import RATING_COLUMNS, interval, rating_cells
from loratory.engine.evaluation.samples import PromptSamples, TestResult, describe_test
from loratory.engine.evaluation.votes import PairsOfVotes, Vote, VotedAnswer
from loratory.ui.backend.conversation import BRANCH_WORDS
from loratory.ui.backend.results import MeasuredRun
from loratory.ui.views import html
from loratory.ui.views.chat import LONGEST_SUMMARY, NO_ANSWER, answer_box, answer_html

ROWS_PER_PAGE = 5
_MOST_TEST_ROWS = 20  # that are shown of a test set
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
        return "".join(_test(test, _names(result)) for test in result.tests) + html.notices(result.notes)
    base, tuned = result.losses["base"], result.losses["tuned"]
    changes: list[tuple[str, str]] = []
    if (gain := result.gain) is not None and (forgetting := result.forgetting) is not None:
        changes = [(describe_gain(gain), "held-out rows"), (describe_forgetting(forgetting), "general text")]
    figures = (
        *changes,
        (f"{tuned.loss:.4f}", "held-out loss, tuned"),
        (f"{base.loss:.4f}", "held-out loss, base"),
        (_perplexity(tuned.perplexity), "perplexity, tuned"),
        (_perplexity(base.perplexity), "perplexity, base"),
    )
    worse = ""
    if result.gain is not None and tuned.perplexity >= base.perplexity:
        worse = "<b>Training made it worse:</b> the base model has the lower loss. "
    rows, tokens = html.plural(result.rows, "held-out row"), html.plural(tuned.tokens, "trained token")
    sample = f"{rows}, {tokens}, the same for both, in {html.duration(result.seconds)}"
    return (
        f'{html.facts(figures)}<p class="small">{worse}Measured on {sample}.</p>'
        f"{_preference(result)}{_ratings(result)}{_forgetting(result)}{html.notices(result.notes)}{_scores(result)}"
        f"{''.join(_test(test, _names(result)) for test in result.tests)}"
    )


def _test(test: TestResult, names: Mapping[Branch, str]) -> str:
    """Return the scores on a test set, and the answers, the worst first."""
    tags = sorted({tag for score in test.branches.values() for tag in score.by_tag})
    pass_at_k = [f"pass@{test.samples}"] if test.samples > 1 else []
    numbers = ("Score", "95% interval", "pass@1", *pass_at_k, *map(escape, tags))
    rows = []
    for branch, figures in test.branches.items():
        shares = [f"{figures.pass_at_1:.0%}", *([f"{figures.pass_at_k:.0%}"] if test.samples > 1 else [])]
        by_tag = [f"{figures.by_tag[tag]:.2f}" if tag in figures.by_tag else "–" for tag in tags]
        interval_text = f"{figures.interval[0]:.2f}–{figures.interval[1]:.2f}"
        rows.append((escape(names[branch]), f"{figures.score:.3f}", interval_text, *shares, *by_tag))
    columns = [html.Column("Model"), *map(html.Column.of_numbers, numbers)]
    sentences = "".join(map(html.small, describe_test(test, names)))
    prompts = zip(*test.prompts.values(), strict=True)
    answers = "".join(_test_row(row, list(test.prompts), names) for row in islice(prompts, _MOST_TEST_ROWS))
    title = f"<h3>{escape(test.name)}: {escape(', '.join(test.scorers))}</h3>"
    return f'{title}{html.table(columns, rows, css="scores")}{sentences}<div class="answered">{answers}</div>'


def _test_row(row: Sequence[PromptSamples], branches: Sequence[Branch], names: Mapping[Branch, str]) -> str:
    """Return a prompt of a test with the first answer of each model side by side."""
    first, scores = row[0], ", ".join(f"{samples.score:.2f}" for samples in row)
    boxes = answer_box("reference", "Reference", answer_html(first.reference)) if first.reference else ""
    for branch, samples in zip(branches, row, strict=True):
        reasons = " · ".join(filter(None, (verdict.reason for verdict in samples.answers[0].verdicts)))
        figures = escape(f"score {samples.score:.2f} {reasons}".strip())
        boxes += answer_box(branch, names[branch], answer_html(samples.answers[0].text), figures)
    summary = escape(html.shorten(first.prompt, LONGEST_SUMMARY))
    return (
        f'<details class="test-row"><summary>{scores} · {summary}</summary><div class="answers">{boxes}</div></details>'
    )


def _names(result: EvaluationResult) -> dict[Branch, str]:
    return {**BRANCH_WORDS, "second": f"Start: {result.start}"}


def _preference(result: EvaluationResult) -> str:
    """Return preference accuracies and margins of all branches, with an explanation."""
    preference = result.preference
    if preference is None:
        return ""
    rows = []
    for branch, figures in preference.branches.items():
        accuracy = reward = "–"
        if branch == "tuned":
            accuracy = f"{preference.accuracy:.0%} {_interval(preference.right, preference.pairs)}"
            reward = "–" if figures.reward_margin is None else f"{figures.reward_margin:+.3f}"
        likelier = f"{figures.preferred:,} of {preference.pairs:,} · {figures.preferred / preference.pairs:.0%}"
        per_token = f"{figures.preferred_per_token / preference.pairs:.0%}"
        rows.append((escape(_names(result)[branch]), accuracy, reward, likelier, per_token, f"{figures.margin:+.2f}"))
    numbers = ("Accuracy", "Reward margin", "Chosen likelier", "Per token", "Margin, nats")
    caption = "Chosen likelier: the chosen answer as a whole is likelier than the rejected one. Per token: its average token is."
    return _preference_table(result, numbers, rows, caption)


def _ratings(result: EvaluationResult) -> str:
    """Return rewards of labelled completions by branch; the reference has none and is left out."""
    ratings = result.ratings
    if ratings is None:
        return ""
    rows = []
    for branch, rating in ratings.branches.items():
        accuracy, *rewards = rating_cells(rating, ratings)
        if branch == "tuned":
            accuracy = f"{accuracy} {_interval(ratings.right, ratings.completions)}"
        rows.append((escape(_names(result)[branch]), accuracy, *rewards))
    caption = "Mean rewards of the completions; TRL logs them as rewards/chosen, rewards/rejected and rewards/margins."
    return _preference_table(result, RATING_COLUMNS, rows, caption)


def _interval(right: int, total: int) -> str:
    low, high = interval(right, total)
    return f"({low:.0%}–{high:.0%})"


def _preference_table(
    result: EvaluationResult, numbers: Sequence[str], rows: Sequence[Sequence[str]], caption: str
) -> str:
    columns = [html.Column("Model"), *map(html.Column.of_numbers, numbers)]
    sentences = "".join(html.small(sentence) for sentence in preference_sentences(result))
    return f"<h3>Preferences</h3>{html.table(columns, rows, css='preferences', caption=caption)}{sentences}"


def _forgetting(result: EvaluationResult) -> str:
    if result.forgetting is None:
        return ""
    base, tuned = result.general_losses["base"], result.general_losses["tuned"]
    interval = result.forgetting_interval
    return html.small(
        f"Forgot: how far the tuned model's loss on {html.plural(tuned.tokens, 'token')} of general text (articles, dialogue, "
        f"code, arithmetic; 14 languages) is above the base model's: {base.loss:.4f} → {tuned.loss:.4f}"
        f"{f', 95% interval of the rise {interval[0]:.1%} to {interval[1]:.1%}' if interval else ''}."
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
    rows, names = result.answered_rows[page.start : page.end], _names(result)
    pager = page.pager("answered row", "the worst first", "Worse", "Better")
    return f'{pager}<div class="answered">{"".join(_answer_row(row, names) for row in rows)}</div>' if rows else ""


def question_of(prompt: str) -> str:
    """Return the last message of a rendered prompt, without the control tokens and roles of its template."""
    parts = (part.strip() for part in _CONTROL.split(prompt))
    texts = [text for part in parts if (text := _ROLE.sub("", part).strip())]
    return texts[-1] if texts else prompt


def _answer_row(row: AnsweredRow, names: Mapping[Branch, str]) -> str:
    answers = answer_box("reference", "Reference", answer_html(row.reference)) + "".join(
        answer_box(branch, names[branch], answer_html(answer.text), _figures(answer.scores, answer.tokens))
        for branch, answer in row.answers.items()
    )
    summary = html.shorten(question_of(row.prompt), LONGEST_SUMMARY)
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
    lines = (_across(row, chosen, with_preferences=with_preferences) for row in rows)
    note = html.small("Comparable only on the same held-out rows.")
    return f"<h3>All evaluations</h3>{note}{html.table(columns, lines, css='across')}"


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


VOTES_PER_PAGE = 5
_LONGEST_ANSWER = 3_000  # characters of an answer that are shown
_CLEAR_WINS = 6  # of as many decided pairs: the first result below 5%
_QUESTION = '<div class="question"><h3>Question</h3><div>{}</div></div>'
_VERDICTS = {"equal": "Equally good", "neither": "Neither is good"}

NO_VOTES = html.empty(
    "No votes yet",
    "Press “This is better” under an answer in Chat, or judge pairs in the blind test. Each vote becomes a training pair.",
)


def render_counts(votes: Sequence[Vote], pairs: PairsOfVotes) -> str:
    """Return the number of votes and of training pairs."""
    if not votes:
        return NO_VOTES
    pair_count = html.count_fact(len(pairs.rows), "pair to train on", "pairs to train on")
    facts = html.facts((html.count_fact(len(votes), "vote"), pair_count))
    return f"{facts}{html.small(pairs.summary) if pairs.left_out else ''}"


def render_votes(votes: Sequence[Vote], page: html.ListPage, asked_id: str = "") -> str:
    """Return one page of votes; the one with `asked_id` waits for a confirmation to delete it."""
    sections = "".join(_vote(vote, asked_id == vote.id) for vote in votes[page.start : page.end])
    return f'{page.pager("vote", "the newest first")}<div class="answered">{sections}</div>' if sections else ""


def _vote(vote: Vote, is_asked: bool) -> str:
    better, worse = vote.sides
    names = (_VERDICTS[vote.verdict],) * 2 if vote.is_tie else ("Better", "Worse")
    boxes = _box("" if vote.is_tie else "chosen", names[0], better) + _box("", names[1], worse)
    summary = html.shorten(vote.question, LONGEST_SUMMARY)
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
    text = _shorten("\n\n".join(turn.content for turn in answer.turns))
    title = ", ".join(filter(None, (f"{name}: {answer.model.name}", answer.model.checkpoint)))
    figures = "cut off at the token limit" if answer.is_cut_off else ""
    return answer_box(css, title, escape(text) if text.strip() else NO_ANSWER, figures)


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
    answers = ""
    for name, side in (("Left", pair.left), ("Right", pair.right)):
        answers += answer_box("", name, f'<div class="scrolls" tabindex="0">{answer_html(pair.answers[side])}</div>')
    return _pair(pair.prompt, answers)


def render_generating(prompt: str, tokens: int, most: int) -> str:
    """Return the progress of the answers, of `most` tokens in all; they appear together, for the quicker one gives itself away."""
    count = f"{tokens:,} tokens so far" if tokens else "reading the question"
    waiting = f'<div class="answers waiting" role="status"><p>Generating two answers, {count}. They appear together.</p></div>'
    bar = html.progress_bar("Answers", min(1.0, tokens / most) if tokens else None)
    return f'<div class="talk blind">{_QUESTION.format(escape(prompt))}{waiting}{bar}</div>'


def choice_words(judgement: Judgement, names: Mapping[Branch, str]) -> str:
    """Return the choice as plain text."""
    if judgement.winner is not None:
        return f"You preferred {names[judgement.winner]}."
    return "You found them equally good." if judgement.verdict == "equal" else "You found neither good."


def render_revealed(judgement: Judgement, names: Mapping[Branch, str]) -> str:
    """Return the choice and the names of both models."""
    pair, answers = judgement.pair, ""
    for side, branch in (("Left", pair.left), ("Right", pair.right)):
        css = "chosen" if branch == judgement.winner else ""
        answers += answer_box(css, f"{side}: {names[branch]}", answer_html(pair.answers[branch]))
    if pair.reference:
        answers += answer_box("reference wide", "Reference", answer_html(pair.reference))
    return _pair(pair.prompt, answers, escape(choice_words(judgement, names)))


def render_identical_answers(pair: Pair) -> str:
    """Return a pair of identical answers."""
    answer = answer_box("", "Both", answer_html(pair.answers[pair.left]))
    return _pair(pair.prompt, answer, "Both answers are identical; this counts as equal.")


def _pair(prompt: str, answers: str, sentence: str = "") -> str:
    verdict = f'<p class="sentence" role="status">{sentence}</p>' if sentence else ""
    question = _QUESTION.format(escape(prompt))
    return f'<div class="talk blind">{question}<div class="answers">{answers}</div></div>{verdict}'


def render_tally(tally: BlindCounts, names: Mapping[Branch, str], votes: int) -> str:
    """Return the win rate with its interval, the counts and whether they are significant; empty before the first pair.

    The bar of the decided pairs is distinguished by position as well as by colour.
    """
    if not tally.total:
        return ""
    figures = (
        (f"{tally.second_preferred:,}", f"preferred {escape(names[tally.second])}"),
        (f"{tally.first_preferred:,}", f"preferred {escape(names[tally.first])}"),
        (f"{tally.equal:,}", "equally good"),
        (f"{tally.neither:,}", "neither good"),
    )
    bar = rate = ""
    if tally.decisive:
        share = tally.second_preferred / tally.decisive
        bar = f'<div class="split" aria-hidden="true"><span class="won" style="width:{share:.1%}"></span><span class="lost"></span></div>'
        rate = f"{names[tally.second]} wins {share:.0%} {_interval(tally.second_preferred, tally.decisive)} · "
    counts = f"{html.plural(tally.total, 'pair')} judged · {html.plural(votes, 'vote')} in all"
    note = html.small("Win rate of the decided pairs, with its 95% interval (Wilson); ties are left out.")
    content = f'{html.facts(figures)}{bar}{note}<p class="sentence">{_significance(tally, names)}</p>'
    return html.fold("Tally", f"{rate}{counts}", content)


def _significance(tally: BlindCounts, names: Mapping[Branch, str]) -> str:
    """Return the result of the sign test as HTML."""
    if not tally.decisive:
        return f"Of {html.plural(tally.total, 'pair')} none was decided: no result yet."
    wins = max(tally.first_preferred, tally.second_preferred)
    decided_pairs = html.plural(tally.decisive, "decided pair")
    if 2 * wins == tally.decisive:
        return f"Of {decided_pairs}, each side won {wins:,}: no difference."
    name = names[tally.second if tally.second_preferred == wins else tally.first]
    chance = "less than 0.1%" if tally.p_value < 0.001 else f"{tally.p_value:.{1 if tally.p_value < 0.1 else 0}%}"
    if tally.p_value < SIGNIFICANCE_LEVEL:
        verdict = "That is clear."
    elif wins == tally.decisive and tally.decisive < _CLEAR_WINS:
        verdict = f"That may be chance. At least {_CLEAR_WINS} decided pairs are needed for a clear result."
    else:
        verdict = "That may be chance. Judge more pairs for a clearer result."
    return (
        f"<b>{escape(name[:1].upper() + name[1:])}</b> won {wins:,} of {decided_pairs}. If both were equally good, a result at "
        f"least this one-sided would come in {chance} of all tests (exact sign test, two-sided). {verdict}"
    )
