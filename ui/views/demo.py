"""The demo of a Space, without JavaScript: about Loratory, a finished run, and a question to base and tuned model."""

from dataclasses import dataclass, field
from html import escape

from loratory.engine.runs.provenance import compare_peaks
from loratory.engine.space.demo import DemoSample
from loratory.engine.space.demo_chat import ANSWER_TOKENS, LONGEST_PROMPT, DemoAnswer, DemoAnswers
from loratory.ui.backend.background import stamp
from loratory.ui.backend.run_reader import RunSnapshot, has_adapter
from loratory.ui.views.html import count, duration, facts, gib, short_name, small
from loratory.ui.views.loss_chart import loss_words, render_loss_svg
from loratory.ui.views.rows import render_tokens
from loratory.ui.views.run_view import method_words, status_line

ASK = "/demo/ask"
_END_WORDS = {"length": "token limit", "context": "context limit", "stopped": "time limit", "eos": ""}


@dataclass(frozen=True)
class DemoView:
    """Content of the page at one moment."""

    run: RunSnapshot | None = None
    sample: DemoSample = field(default_factory=DemoSample)
    problem: str = ""  # why there is none, or why it failed

    @property
    def is_complete(self) -> bool:
        """Whether there is a result."""
        return self.run is not None and self.run.state.state == "completed"

    @property
    def can_ask(self) -> bool:
        """Whether there is a model to ask."""
        return self.is_complete and self.run is not None and has_adapter(self.run.run)

    @property
    def is_changing(self) -> bool:
        """Whether the content will change soon."""
        has_failed = self.run is not None and self.run.state.state == "failed"
        return not self.is_complete and not has_failed

    @property
    def stamp(self) -> str:
        """A stamp that changes with the page."""
        run = self.run.stamp if self.run is not None else ""
        return stamp(run, self.problem, self.sample.page is not None, len(self.sample.answers or ()), self.can_ask)


def render_masthead(duplicate_url: str, sign_in: str) -> str:
    """Return the introduction with links to sign in and to duplicate the Space, in new tabs because of frames."""
    return (
        '<header><h1 class="name">Lora<i>tory</i></h1>'
        '<p class="what">Fine-tune language models in the browser: see exactly what a dataset trains, know before the '
        "start whether it fits, and compare base and tuned model afterwards.</p>"
        f'<p class="ways">{_link(sign_in, "Sign in with Hugging Face", "button")}'
        f"{_link(duplicate_url, 'Duplicate this Space', 'button other')}</p></header>"
    )


def _link(address: str, label: str, css: str) -> str:
    return f'<a class="{css}" href="{escape(address, quote=True)}" target="_blank" rel="noopener">{label}</a>'


def render_demo(view: DemoView) -> str:
    """Return the run: its progress or its results."""
    snapshot = view.run
    if snapshot is None:
        text = view.problem or "A small model will be trained here in a moment. This page reloads automatically."
        title = "The demo cannot start" if view.problem else "The demo is being prepared"
        return f'<section><h2>{title}</h2><p class="lead">{escape(text)}</p></section>'
    figures, memory = (_figures(snapshot), _memory(snapshot)) if view.is_complete else ("", "")
    run = f"<section>{_heading(view, snapshot)}{figures}{_chart(snapshot)}{memory}</section>"
    return f"{run}{_rows(view.sample)}{_answers(view.sample)}"


_PAUSED = ("The demo run is paused", "It was paused for a member's run and will resume.")
_WAITS = ("The demo run waits", "It starts when the device is free.")
_HEADINGS = {"stopped": _PAUSED, "interrupted": _PAUSED, "queued": _WAITS, "submitted": _WAITS}


def _heading(view: DemoView, snapshot: RunSnapshot) -> str:
    state, history = snapshot.state.state, snapshot.history
    ingredients = f'<p class="lead">{_ingredients(snapshot)}</p>'
    if state == "completed":
        return f"<h2>A finished run</h2>{ingredients}"
    if state == "failed":
        return f'<h2>The demo run failed</h2><p class="problem" role="alert">{escape(view.problem)}</p>{ingredients}'
    title, text = _HEADINGS.get(state, ("Training now", status_line(snapshot) or "Starting"))
    heading = f'<h2>{title}</h2><p class="lead" role="status">{text}</p>'
    if state in _HEADINGS:
        return heading + ingredients
    done, total = history.last_step, history.total_steps
    bar = ""
    if total:
        bar = f'<progress aria-label="Progress of the run" max="{total}" value="{min(done, total)}">{done}</progress>'
    note = small("A small model is trained on this machine. This page reloads automatically.")
    return f"{heading}{bar}{ingredients}{note}"


def _ingredients(snapshot: RunSnapshot) -> str:
    config = snapshot.config
    if config is None:
        return ""
    sentence = (
        f"<b>{escape(short_name(config.model.id))}</b> trained with {escape(method_words(config))} on "
        f"{escape(short_name(config.dataset.source))}."
    )
    parameters = snapshot.history.parameters
    if parameters is None:
        return sentence
    trained = f"{count(parameters.trainable)} of {count(parameters.total)} parameters are trained"
    return f"{sentence} {trained}, on {escape(parameters.device)}."


def _figures(snapshot: RunSnapshot) -> str:
    state, history = snapshot.state, snapshot.history
    figures = []
    base, tuned = history.base_eval, history.tuned_evals
    if base is not None and tuned:
        change = f'{base.eval_loss:.2f} <span aria-hidden="true">→</span><span class="sr"> to</span> {tuned[-1].eval_loss:.2f}'
        figures.append((change, "held-out loss, base to tuned"))
    if history.data_report is not None:
        figures.append((f"{history.data_report.train_rows:,}", "rows trained"))
        figures.append((count(history.data_report.trained_tokens), "trained tokens per epoch"))
    figures.append((f"{history.last_step:,}", "steps"))
    if state.started is not None and state.ended is not None:
        figures.append((duration(state.ended - state.started), "in total"))
    return facts(figures)


def _memory(snapshot: RunSnapshot) -> str:
    """Return how good the estimate was."""
    for peak in reversed(compare_peaks(snapshot.provenance.predicted_memory, snapshot.history)):
        if peak.predicted_bytes and peak.measured_bytes and peak.difference is not None:
            off = f"{abs(peak.difference):.0%} {'above' if peak.difference > 0 else 'below'} the estimate"
            comparison = off if round(peak.difference, 2) else "as estimated"
            figures = ((peak.predicted_bytes, "GiB predicted"), (peak.measured_bytes, "GiB measured"))
            return (
                f"<h3>Peak memory</h3>{facts((gib(size_bytes), label) for size_bytes, label in figures)}"
                f"{small(f'Estimated before the run started; the measured peak was {comparison}.')}"
            )
    return ""


def _chart(snapshot: RunSnapshot) -> str:
    history = snapshot.history
    wide, narrow = render_loss_svg(history, 760, 280), render_loss_svg(history, 340, 230)
    if not wide:
        return ""
    legend = "".join(
        f'<span><i class="{css}"></i>{label}</span>'
        for css, label in (("each", "each step"), ("smooth", "smoothed"), ("held", "held-out"))
    )
    return (
        f'<h3>Loss</h3><p class="legend" aria-hidden="true">{legend}</p><div class="wide">{wide}</div>'
        f'<div class="narrow">{narrow}</div>{small(loss_words(history))}'
    )


def _rows(sample: DemoSample) -> str:
    if sample.page is None:
        return ""
    rows = "".join(f"<h3>Row {row.row + 1:,}</h3>{render_tokens(row)}" for row in sample.page.rows if row.sequences)
    if not rows:
        return ""
    text = "Rows exactly as in training, token by token. Underlined tokens are trained; grey tokens are context."
    return f'<section><h2>What is trained</h2><p class="lead">{text}</p>{rows}</section>'


def _answers(sample: DemoSample) -> str:
    if not sample.answers:
        return ""
    text = "Questions from held-out rows, which were not used for training. Both models answer greedily."
    more = '<details><summary>Answer in the data</summary><p class="answer">{}</p></details>'
    answers = "".join(_exchange(exchange, more.format(escape(exchange.reference))) for exchange in sample.answers)
    return f'<section><h2>Before and after</h2><p class="lead">{text}</p>{answers}</section>'


def _exchange(answers: DemoAnswers, more: str = "", role: str = "") -> str:
    return (
        f'<article{role}><h3 class="question" dir="auto">{escape(answers.prompt)}</h3><div class="pair">'
        f"{_side('Base model', answers.base)}{_side('Tuned model', answers.tuned)}</div>{more}</article>"
    )


def _side(title: str, answer: DemoAnswer) -> str:
    reason = _END_WORDS[answer.finish_reason]
    end = f' <span class="small">({reason})</span>' if reason else ""
    text = escape(answer.text) if answer.text else '<span class="small">An empty answer.</span>'
    return f'<div><h4>{title}</h4><p class="answer" dir="auto">{text}{end}</p></div>'


def render_question_form(
    view: DemoView, *, prompt: str = "", problem: str = "", answers: DemoAnswers | None = None
) -> str:
    """Return the form for a question, and the answers to the last one or why it has none."""
    reply = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    if not view.can_ask:
        return f'<section id="ask">{reply}</section>' if reply else ""
    if answers is not None:
        reply = _exchange(answers, role=' role="status"')
    about = (
        f"At most {LONGEST_PROMPT} characters; answers end after {ANSWER_TOKENS} tokens. Visitors take turns, and the first "
        "answer takes some seconds longer. Nothing is saved."
    )
    return (
        f'<section id="ask"><h2>Ask both models</h2>{reply}<form method="post" action="{ASK}#ask">'
        f'<label for="prompt">Question</label><textarea id="prompt" name="prompt" rows="3" maxlength="{LONGEST_PROMPT}" '
        f'required autocomplete="off" aria-describedby="about">{escape(prompt)}</textarea>'
        f'<p class="small" id="about">{about}</p><button>Ask</button></form></section>'
    )
