"""Answers to the same prompts at each evaluation: before training, at the one that the slider chooses, and in the data."""

import difflib
import re
from collections.abc import Iterable
from html import escape

from loratory.ui.backend.run_reader import RunSnapshot
from loratory.ui.views import html
from loratory.ui.views.chat import LONGEST_SUMMARY, NO_ANSWER, answer_box
from loratory.ui.views.evaluation import question_of


def render_answers(snapshot: RunSnapshot) -> str:
    """Return the answers with a slider over the evaluations, which the script `answers` follows.

    Before the first evaluation, when they come; empty for a run without them.
    """
    history, config = snapshot.history, snapshot.config
    if not history.answers:
        answers = config is not None and config.dataset.eval_fraction and config.training.eval_max_new_tokens != 0
        sentence = "A small model answers held-out prompts at each evaluation, first before training."
        return html.small(sentence) if answers and snapshot.is_live and not history.evals else ""
    losses = {
        point.step: f", held-out loss {point.eval_loss:.2f}" if point.reward is None else f", reward {point.reward:.2f}"
        for point in history.evals
    }
    first, newest, rows = history.answers[0], len(history.answers) - 1, ""
    labels = [f"Step {point.step:,}{losses.get(point.step, '')}" for point in history.answers]
    for number, (name, prompt, reference) in enumerate(zip(first.names, first.prompts, first.references, strict=True)):
        texts = [point.answers[number] for point in history.answers]
        chosen = _frames(map(mark_changes, [texts[0], *texts], texts))
        boxes = "" if first.step else answer_box("base", "Before training", escape(texts[0]) or NO_ANSWER)
        boxes += answer_box("tuned", "At this evaluation", chosen)
        boxes += answer_box("reference", "Reference", escape(reference)) if reference else ""
        question = html.small(html.shorten(question_of(prompt), LONGEST_SUMMARY))
        rows += f'<section><h3 class="num">{escape(name)}</h3>{question}<div class="answers">{boxes}</div></section>'
    return (
        f'<section class="answered" aria-label="Answers during training" data-run="{escape(snapshot.run.id, quote=True)}" '
        f'data-steps="{" ".join(str(point.step) for point in history.answers)}"><h3>Answers during training</h3>'
        f'<p class="evaluations"><input type="range" aria-label="Evaluation" max="{newest}" value="{newest}">'
        f"<output>{_frames(labels)}</output></p>{rows}</section>"
    )


def _frames(texts: Iterable[str]) -> str:
    """Return HTML for each evaluation, of which the slider shows one."""
    return "".join(f'<span data-frame="{number}">{text}</span>' for number, text in enumerate(texts))


def mark_changes(before: str, text: str) -> str:
    """Return an answer as HTML; words are marked that it does not share with the one before."""
    old, new = (re.split(r"(\s+)", each) for each in (before, text))
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        part = escape("".join(new[start:end]))
        parts.append(part if kind == "equal" or not part else f"<mark>{part}</mark>")
    return "".join(parts) or NO_ANSWER
