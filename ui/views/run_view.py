"""One run: title, state, errors, messages and log."""

import math
import time
from collections.abc import Iterable
from html import escape

from loratory.engine.config.objectives import objective_of
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.evaluation.job import read_forgetting
from loratory.engine.places.huggingface_jobs.layout import JobRecord
from loratory.engine.quantities import ago
from loratory.engine.runs.history.reward_health import health_findings
from loratory.engine.runs.history.run_history import seconds_left
from loratory.engine.runs.history.verdict import Verdict, judge
from loratory.engine.runs.provenance import PeakKind, compare_peaks
from loratory.engine.runs.run import RunState, State
from loratory.engine.runs.summary import RunSummary
from loratory.ui.backend.run_reader import RunSnapshot
from loratory.ui.views import html
from loratory.ui.views.memory import COMPONENT_COLOURS
from loratory.ui.views.rows import render_problems

# A shape and a word for each state; the colour only helps.
STATE_MARKS: dict[State, str] = {
    "queued": "○", "submitted": "◌", "starting": "◔", "running": "●", "stopping": "◕",
    "completed": "✓", "stopped": "■", "failed": "✗", "interrupted": "◐",
}  # fmt: skip
STATE_WORDS: dict[State, str] = {
    "queued": "waiting", "submitted": "submitted", "starting": "starting", "running": "running",
    "stopping": "saving and stopping", "completed": "completed", "stopped": "stopped", "failed": "failed", "interrupted": "interrupted",
}  # fmt: skip

_PEAK_WORDS: dict[PeakKind, str] = {
    "allocated": "Tensors", "reserved": "Reserved by PyTorch", "process": "Whole process, in RAM",
}  # fmt: skip
_PHASE_WORDS = {
    "loading_model": "loading the model", "reading_data": "reading the data", "preparing": "preparing",
    "training": "", "evaluating": "measuring the held-out loss", "saving": "saving", "finished": "", "stopped": "",
}  # fmt: skip

NO_RUN = html.empty(
    "No active run",
    "Set up and start a run: it appears here and continues when you close the page. Choose earlier runs above, or in the "
    "Runs tab.",
)


def run_choices(rows: Iterable[RunSummary]) -> list[tuple[str, str]]:
    """Return label and id of each run for a dropdown: its name, method, state, age and loss, newest first."""
    choices = []
    for row in rows:
        method = row.method if row.method.lower() not in row.name.lower() else ""
        loss = ", ".join(filter(None, loss_words(row))).removesuffix(f" {row.base_eval_loss or 0:.2f}")
        loss = f"loss {loss}" if loss and not row.is_rewarded else loss
        parts = [row.label, method, STATE_WORDS[row.state], ago(row.created), loss]
        choices.append((f"{STATE_MARKS[row.state]} {'★ ' if row.star else ''}{_join(parts)}", row.id))
    return choices


def loss_words(row: RunSummary) -> tuple[str, str]:
    """Return the loss that matters, and what it compares with: held out and the base model's, else the final one."""
    loss, base = row.best_eval_loss, row.base_eval_loss
    if loss is None:
        return ("", "") if row.final_loss is None else (f"{row.final_loss:.3f}", "not held out")
    if row.is_rewarded:
        return f"reward {-loss:.3f}", "" if base is None else f"{-base:.2f} before training"
    if not base:
        return f"{loss:.3f}", ""
    if row.preference_accuracy is not None:
        return f"{loss:.3f}", f"{row.preference_accuracy:.0%} preferred correctly"
    change = 1 - loss / base
    return f"{loss:.3f}", f"{abs(change):.0%} {'below' if change >= 0 else 'above'} base {base:.2f}"


def star_button(run_id: str, label: str, star: bool) -> str:
    """Return the button that gives a run a star or removes it."""
    return html.pick_button(f"star:{run_id}", "★" if star else "☆", css="star", label=f"Star {label}", is_on=star)


def _join(parts: Iterable[str]) -> str:
    return " · ".join(filter(None, parts))


def state_mark(state: State, *, never_started: bool = False) -> str:
    """Return shape and word of a state; one that ended before it started was removed from the queue."""
    label = "removed from the queue" if state == "stopped" and never_started else STATE_WORDS[state]
    return f'<span class="state {state}"><i aria-hidden="true">{STATE_MARKS[state]}</i> {label}</span>'


def render_heading(snapshot: RunSnapshot, now: float | None = None, *, can_change: bool = False) -> str:
    """Return title, status line, progress and what is being trained; its owner can change name and star."""
    state, total = snapshot.state.state, snapshot.history.total_steps
    fraction = min(1.0, snapshot.history.last_step / total) if total else 0.0
    working = state in ("running", "stopping", "starting")
    mark = state_mark(state, never_started=snapshot.state.started is None)
    run_id, title = snapshot.run.id, escape(snapshot.title, quote=True)
    data = f'data-run="{run_id}" data-name="{title}"'
    rename = f'<button type="button" class="rename" aria-label="Rename" {data}>✎</button>'
    buttons = star_button(run_id, snapshot.title, snapshot.notes.star) + rename if can_change else ""
    return (
        f'{tab_title(snapshot)}<div class="run-title"><h2>{title}</h2>{buttons}</div>'
        f'<p class="status" role="status" aria-live="polite">{_join([mark, status_line(snapshot, now)])}</p>'
        f"{html.progress_bar('Progress of the run', fraction) if working else ''}"
        f'<p class="small">{_ingredients(snapshot)}</p>'
    )


def verdict_of(snapshot: RunSnapshot) -> Verdict | None:
    """Return the verdict on a run; None while nothing is certain."""
    forgetting = read_forgetting(snapshot.run.folder.path)
    return judge(snapshot.history, snapshot.config, forgetting) if snapshot.config is not None else None


def render_verdict(snapshot: RunSnapshot) -> str:
    """Return the verdict in a sentence, with the button that does what helps; empty where there is none."""
    verdict = verdict_of(snapshot)
    if verdict is None:
        return ""
    label = "" if verdict.step is None else f"Use checkpoint of step {verdict.step:,}"
    for name, value in verdict.settings.items():
        number = f" {value:g}" if isinstance(value, float | int) and value is not True else ""
        title = "general rows mixed in" if name == "dataset.mix" else html.setting_title(name).lower()
        label = f"Copy settings with {title}{number}"
    remedy = html.pick_button("advice", label) if label else escape(verdict.fix)
    title = f'<b class="{"alarm" if verdict.fix else "yes"}">{escape(verdict.name)}.</b>'  # each class has a mark
    return f'<p class="verdict" role="status">{title} {escape(verdict.fact)} {remedy}</p>'


def render_time(snapshot: RunSnapshot) -> str:
    """Return how long each phase of a run took, as a bar with seconds and shares; empty before its worker starts."""
    times = {phase: seconds for phase, seconds in snapshot.history.phase_seconds.items() if seconds > 0}
    spans = legend = ""
    for (phase, seconds), colour in zip(times.items(), COMPONENT_COLOURS, strict=False):
        title, share = phase.replace("_", " ").capitalize(), f"{seconds:,.1f} s, {seconds / sum(times.values()):.0%}"
        spans += f'<span style="flex-grow:{seconds:.3f};background:{colour}"></span>'
        legend += f'<i style="background:{colour}"></i><span>{title}</span><span class="v">{share}</span>'
    bar = f'<div class="bar" aria-hidden="true">{spans}</div><div class="legend">{legend}</div>'
    return html.section("Time", bar) if times else ""


def tab_title(snapshot: RunSnapshot) -> str:
    """Return the hidden title for the browser's tab, which the script `access` reads; it notifies at the end."""
    state, total = snapshot.state.state, snapshot.history.total_steps
    title = STATE_WORDS[state].capitalize()
    if state == "running" and total:
        title = f"{min(1.0, snapshot.history.last_step / total):.0%}"
    kind = "ended" if snapshot.state.is_final else "active"
    values = {"title": title, "run": snapshot.run.id, "at": f"{snapshot.state.ended or 0:.3f}", "name": snapshot.title}
    data = "".join(f' data-{name}="{escape(value, quote=True)}"' for name, value in values.items())
    return f'<i hidden class="tab-title {kind}"{data}></i>'


def status_line(snapshot: RunSnapshot, now: float | None = None) -> str:
    """Return the state of a run in one line of HTML."""
    state = snapshot.state
    now = time.time() if now is None else now
    if snapshot.resume_requested and state.is_final:
        return "resuming"
    if state.state in ("queued", "submitted"):
        return _queue_status(snapshot)
    cause = escape(state.cause.rstrip(".")) if state.reason == "executor_unreachable" else ""
    speed = snapshot.history.mean_tokens_per_second()
    speed_text = "" if speed is None else f"{speed:,.0f} tokens/s"
    times = _elapsed(snapshot, now), _silence(state, now)
    return _join((_step(snapshot), _phase(snapshot), cause, *times, speed_text, _held_out(snapshot)))


def _queue_status(snapshot: RunSnapshot) -> str:
    if snapshot.stop_requested or snapshot.cancel_requested:
        return "leaving the queue"
    return escape(snapshot.state.cause.rstrip(".")) or "starts when the device is free"


def _step(snapshot: RunSnapshot) -> str:
    step, total = snapshot.history.last_step, snapshot.history.total_steps
    if not step and not (total and snapshot.state.state == "running"):
        return ""
    return f"Step {step:,} of {total:,}" if total else f"Step {step:,}"


def _phase(snapshot: RunSnapshot) -> str:
    """Return what the worker does; empty unless it starts or runs."""
    if snapshot.state.state not in ("starting", "running"):
        return ""
    if snapshot.cancel_requested:
        return "stops now"
    if snapshot.stop_requested:
        return "saves after this step, then stops"
    status = snapshot.history.status
    return "starting the worker" if status is None else _PHASE_WORDS[status.phase]


def render_run_settings(snapshot: RunSnapshot) -> str:
    """Return the run's settings for the side panel; empty if its configuration cannot be read."""
    config = snapshot.config
    if config is None:
        return ""
    training = config.training
    rows, passes = training.per_device_train_batch_size, training.gradient_accumulation_steps
    entries = [
        ("Model", escape(html.short_name(config.model.id))),
        ("Data", escape(html.short_name(config.dataset.source))),
        ("Method", escape(method_words(config))),
        *objective_entries(config),
        ("Length", f"{training.max_length:,} tokens"),
        ("Batch", f"{rows} × {passes} = {html.plural(rows * passes, 'row')} a step"),
        ("Learning rate", f"{training.learning_rate:g}"),
    ]
    return html.section("This run", html.definitions(entries))


def objective_entries(config: RunConfig) -> list[tuple[str, str]]:
    """Return the preference objective as a definition entry; empty for supervised fine-tuning."""
    objective = objective_of(config)
    return [("Objective", escape(objective.summary(config.training)))] if not objective.learns_answers else []


def _ingredients(snapshot: RunSnapshot) -> str:
    """Return model, data and method of the run's saved configuration."""
    config = snapshot.config
    if config is None:
        return "Its config.yaml cannot be read."
    data = escape(html.short_name(config.dataset.source))
    report = snapshot.history.data_report
    if report is not None:
        data += f" ({html.plural(report.train_rows, 'row')}, {html.count(report.trained_tokens)} trained tokens)"
    objective = [text for _, text in objective_entries(config)]
    parts = [escape(html.short_name(config.model.id)), escape(method_words(config)), *objective, data]
    parameters = snapshot.history.parameters
    if parameters is not None:
        parts.append(f"trains {html.count(parameters.trainable)} of {html.count(parameters.total)} parameters")
        parts.append(f"{escape(parameters.compute_dtype)} on {escape(parameters.device)}")
    elif snapshot.state.device:
        parts.append(escape(snapshot.state.device))
    device = escape(snapshot.state.device) if parameters is not None and snapshot.state.job_id else ""
    return _join([*parts, device, _job(snapshot)])


def _job(snapshot: RunSnapshot) -> str:
    """Return the job at Hugging Face with its cost; empty for other runs."""
    record = JobRecord.read(snapshot.run.folder)
    if record is None:
        return ""
    label, url = "job at Hugging Face", escape(record.url, quote=True)
    if record.url.startswith("https://"):
        label = f'<a href="{url}" target="_blank" rel="noopener noreferrer">{label}</a>'
    if record.cost_usd is None or record.most_usd is None:
        return label
    return f"{label}, {html.dollars(record.cost_usd)} of at most {html.dollars(record.most_usd)}"


def render_trouble(snapshot: RunSnapshot) -> str:
    """Return cause and advice of a failed or interrupted run, or a notice for a stopped one."""
    state, failure = snapshot.state, snapshot.history.failed
    resumable = f" It can resume from step {state.resumable_step:,}." if state.resumable_step else ""
    if state.state == "failed":
        what = failure.what if failure is not None else state.cause or "The run failed."
        fix = failure.fix if failure is not None else state.advice or "See its log below."
        return html.alert(what, f"{html.with_code(fix)}{resumable}")
    if state.state == "interrupted":
        return html.alert(state.cause or "The run was interrupted.", f"{html.with_code(state.advice)}{resumable}")
    if state.reason == "executor_unreachable" and state.advice:  # the cause is in the sentence above
        return html.notices([state.advice])
    if state.state == "stopped" and (state.cause or state.advice):
        return html.notices([" ".join(filter(None, (state.cause, state.advice)))])
    return ""


def render_warnings(snapshot: RunSnapshot) -> str:
    """Return problems in the training curves, then warnings of the worker, each once."""
    findings_html = ""
    if snapshot.config is not None:
        for finding in health_findings(snapshot.history, snapshot.config.training):
            findings_html += f'<div class="trouble finding" role="status"><b>{escape(finding.name)}</b>{escape(finding.fact)} {html.with_code(finding.fix)}</div>'
    texts = dict.fromkeys(message.text for message in snapshot.history.messages if message.kind == "warning")
    if not texts:
        return findings_html
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'{findings_html}<div class="warned"><h3>{html.plural(len(texts), "warning")}</h3><ul>{items}</ul></div>'


def render_left_out(report: DatasetReport | None) -> str:
    """Return the rows that the run skipped, with reasons; empty if it used all."""
    if report is None or not report.dropped:
        return ""
    return f'<div class="left-out">{render_problems(report)}</div>'


def render_memory(snapshot: RunSnapshot) -> str:
    """Return all figures of peak memory that the device has, predicted and measured.

    The prediction is for all steps, so a lower peak is compared with it only once all are done.
    """
    peaks = compare_peaks(snapshot.provenance.predicted_memory, snapshot.history)
    if not peaks:
        return ""
    titles = dict(_PEAK_WORDS)
    if len(peaks) > 1 or peaks[0].kind != "process":
        titles["process"] = "Whole process, on the GPU"
    rows = []
    for peak in peaks:
        difference, change = peak.difference, "–"
        if difference is not None and (snapshot.state.state == "completed" or difference > 0):
            change = f"{abs(difference):.0%} {'more' if difference > 0 else 'less'}" if round(difference, 2) else "none"
        rows.append((titles[peak.kind], _peak(peak.predicted_bytes), _peak(peak.measured_bytes), change))
    measured = "Measured" if snapshot.state.is_final else "Measured so far"
    columns = [html.Column("Peak memory, GiB"), *map(html.Column.of_numbers, ("Predicted", measured, "Difference"))]
    return f'<div class="section peaks">{html.table(columns, rows, scrolls="")}</div>'


def render_log(text: str) -> str:
    """Return the end of the worker's log."""
    return html.log(text, "Worker log") if text.strip() else html.small("The log is empty.")


def render_timeline(snapshot: RunSnapshot) -> str:
    """Return the messages of a run and its checkpoints, newest first."""
    rows = [
        (time.strftime("%H:%M:%S", time.localtime(message.time)), escape(message.text))
        for message in reversed(snapshot.history.messages)
    ]
    rows += [
        (f"step {point.step:,}", f"Checkpoint {escape(point.name)}, {html.size(point.size_bytes)}{', best so far' if point.best else ''}")
        for point in reversed(snapshot.history.checkpoints)
    ]  # fmt: skip
    if not rows:
        return html.small("No events yet.")
    return html.table([html.Column("", "soft"), ""], rows[:120], scrolls="scroll tall")


def method_words(config: RunConfig) -> str:
    """Return a method with its size, such as `QLoRA, r 16`."""
    return ", ".join(filter(None, (config.method_name, config.adapter.traits.summary(config.adapter))))


def _peak(size_bytes: int | None) -> str:
    return "–" if size_bytes is None else f'<span title="{size_bytes:,} bytes">{size_bytes / html.GIB:.2f}</span>'


def _elapsed(snapshot: RunSnapshot, now: float) -> str:
    state = snapshot.state
    if state.started is None:
        return ""
    if state.is_final:
        return f"took {html.duration((state.ended or now) - state.started)}"
    elapsed, left = html.duration(now - state.started), time_left(snapshot, now)
    return elapsed if left is None else f"{elapsed}, {html.duration(left)} left"


def time_left(snapshot: RunSnapshot, now: float) -> float | None:
    """Return the seconds until a run ends, with its evaluations and saves; None if unknown, or it was asked to stop."""
    if snapshot.state.state != "running" or snapshot.stop_requested or snapshot.cancel_requested:
        return None
    return seconds_left(snapshot.history, lambda: now)


def _silence(state: RunState, now: float) -> str:
    if state.silent_since is None or state.silence_limit_seconds is None or state.is_final:
        return ""
    silent, limit = html.duration(now - state.silent_since), html.duration(state.silence_limit_seconds)
    return f"<b>no output for {silent}; will be stopped after {limit}</b>"


def _held_out(snapshot: RunSnapshot) -> str:
    tuned, base, best = snapshot.history.tuned_evals, snapshot.history.base_eval, snapshot.history.best_eval
    base_loss = base.eval_loss if base is not None and math.isfinite(base.eval_loss) else None
    if not tuned:
        is_loss = base is not None and base.reward is None
        return f"base model's held-out loss {base_loss:.2f}" if base_loss is not None and is_loss else ""
    newest = tuned[-1]
    if newest.reward is not None:
        before = f", {base.reward:.2f} before training" if base is not None and base.reward is not None else ""
        return f"reward {newest.reward:.2f} on held-out prompts{before}"
    text = f"held-out loss {newest.eval_loss:.2f}"
    if base_loss is not None:
        text += f", {'before training' if base is not None and base.metrics else 'base'} {base_loss:.2f}"
    if best is not None and best.step != newest.step and best.eval_loss < newest.eval_loss:
        text += f", best {best.eval_loss:.2f} at step {best.step:,}"
    if newest.preference_accuracy is not None:
        text += f", prefers {newest.preference_accuracy:.0%} of held-out pairs correctly"
    return text
