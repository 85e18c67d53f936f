"""One run in words: what it is, where it stands, what went wrong, what it said."""

import math
import time
from html import escape

from engine.config.run import RunConfig
from engine.data.contract import DatasetReport
from engine.runs.history.run_history import seconds_left
from engine.runs.peaks import PeakKind, compare_peaks
from engine.runs.run import RunState, State
from ui.backend.run_reader import ObservedRun
from ui.views.dataset import render_problems
from ui.views.quantities import GIB, count, duration, plural, size

# A shape and a word for each state; the colour only helps.
STATE_MARKS: dict[State, str] = {
    "queued": "○", "submitted": "◌", "starting": "◔", "running": "●", "stopping": "◕",
    "completed": "✓", "stopped": "■", "failed": "✗", "interrupted": "◐",
}  # fmt: skip
STATE_WORDS: dict[State, str] = {
    "queued": "waiting", "submitted": "submitted", "starting": "starting", "running": "running", "stopping": "saving and stopping",
    "completed": "completed", "stopped": "stopped", "failed": "failed", "interrupted": "interrupted",
}  # fmt: skip

_PEAK_WORDS: dict[PeakKind, str] = {
    "allocated": "Tensors", "reserved": "Held by PyTorch", "process": "The whole process, in RAM",
}  # fmt: skip
_GPU_PEAK_WORDS = _PEAK_WORDS | {"process": "The whole process, on the GPU"}

NO_RUN = (
    '<div class="empty"><b>No run is under way</b>Set one up and start it: it appears here, and goes on when you close '
    "the page. Earlier runs can be chosen above; all of them are in the Runs tab.</div>"
)


def state_mark(state: State) -> str:
    """Shape and word of a state."""
    return f'<span class="state {state}"><i aria-hidden="true">{STATE_MARKS[state]}</i> {STATE_WORDS[state]}</span>'


def render_heading(observed: ObservedRun, now: float | None = None) -> str:
    """Title, status line, progress hairline and what is being trained."""
    share = _share_done(observed)
    progress = ""
    if observed.state.state in ("running", "stopping", "starting"):
        progress = (
            f'<div class="progress" role="progressbar" aria-label="Progress of the run" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{100 * share:.0f}"><span style="width:{100 * share:.2f}%"></span></div>'
        )
    return (
        f"<h2>{escape(observed.title)}</h2>"
        f'<p class="status" role="status" aria-live="polite">{state_mark(observed.state.state)} · '
        f"{status_line(observed, now)}</p>{progress}"
        f'<p class="small">{render_ingredients(observed)}</p>'
    )


def status_line(observed: ObservedRun, now: float | None = None) -> str:
    """HTML: where the run stands, in one line."""
    state, history = observed.state, observed.history
    now = time.time() if now is None else now
    if observed.resume_requested and state.is_final:
        return "is being taken up again"
    if state.state in ("queued", "submitted"):
        if observed.stop_requested or observed.cancel_requested:
            return "is being taken out of the queue"
        return escape(state.cause.rstrip(".")) or "starts as soon as the device is free"
    parts = []
    total = history.total_steps
    if history.last_step or (total and state.state == "running"):
        parts.append(f"Step {history.last_step:,}" + (f" of {total:,}" if total else ""))
    if state.state in ("starting", "running") and not observed.stop_requested and not observed.cancel_requested:
        words = _phase_words(observed)
        if words:
            parts.append(escape(words))
    elif state.state in ("starting", "running"):
        parts.append("ends at once" if observed.cancel_requested else "saves at the end of this step, then stops")
    parts += [_elapsed(observed, now), _silence_words(state, now)]
    speed = history.mean_tokens_per_second()
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    parts.append(_held_out_words(observed))
    return " · ".join(part for part in parts if part)


def render_ingredients(observed: ObservedRun) -> str:
    """What the run is made of: always its saved configuration, never the form's."""
    config = observed.config
    if config is None:
        return "Its config.yaml cannot be read."
    parts = [
        escape(short_name(config.model.id)),
        escape(method_words(config)),
        escape(short_name(config.dataset.source)),
    ]
    report = observed.history.data_report
    if report is not None:
        parts[-1] += f" ({plural(report.train_rows, 'row')}, {count(report.trained_tokens)} trained tokens)"
    parameters = observed.history.parameters
    if parameters is not None:
        parts.append(f"trains {count(parameters.trainable)} of {count(parameters.total)} parameters")
        parts.append(f"{escape(parameters.compute_dtype)} on {escape(parameters.device)}")
    elif observed.state.device:
        parts.append(escape(observed.state.device))
    return " · ".join(parts)


def render_trouble(observed: ObservedRun) -> str:
    """Cause and advice, where a run did not end well; a note, where it can go on."""
    state, failed = observed.state, observed.history.failed
    if state.state == "failed":
        what = failed.what if failed is not None else state.cause or "The run failed."
        fix = failed.fix if failed is not None else state.advice or "Its log below says more."
        return f'<div class="trouble" role="alert"><b>{escape(what)}</b>{escape(fix)}{_resumable(observed)}</div>'
    if state.state == "interrupted":
        what = state.cause or "The run was interrupted."
        return (
            f'<div class="trouble" role="alert"><b>{escape(what)}</b>{escape(state.advice)}{_resumable(observed)}</div>'
        )
    if state.state == "stopped" and (state.cause or state.advice):
        return f'<p class="notice">{escape(" ".join(part for part in (state.cause, state.advice) if part))}</p>'
    return ""


def render_warnings(observed: ObservedRun) -> str:
    """What is odd about the run's state and what the worker warned of, each thing once."""
    warned = dict.fromkeys(message.text for message in observed.history.messages if message.kind == "warning")
    if observed.state.notice:
        warned = {observed.state.notice: None, **warned}
    if not warned:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in warned)
    head = plural(len(warned), "warning")
    return f'<div class="warned"><h3>{head}</h3><ul>{items}</ul></div>'


def render_left_out(report: DatasetReport | None) -> str:
    """Rows that the run never saw, with the reason; nothing where every row was used."""
    if report is None or not report.dropped:
        return ""
    return f'<div class="left-out">{render_problems(report, pickable_rows=False)}</div>'


def render_memory(observed: ObservedRun) -> str:
    """Memory at the peak, predicted beside measured: every figure that the device has, each against its like."""
    memory, provenance = observed.history.memory, observed.provenance
    peaks = compare_peaks(provenance.predicted_memory, memory, provenance.predicted_bytes)
    if not peaks:
        return ""
    words = _GPU_PEAK_WORDS if len(peaks) > 1 or peaks[0].kind != "process" else _PEAK_WORDS
    rows = "".join(
        f'<tr><td>{words[peak.kind]}</td><td class="r">{_peak(peak.predicted_bytes)}</td>'
        f'<td class="r">{_peak(peak.measured_bytes)}</td><td class="r">{_difference_words(peak.difference)}</td></tr>'
        for peak in peaks
    )
    return (
        '<div class="section peaks"><table class="plain"><thead><tr><th>Memory at the peak, GiB</th>'
        f'<th class="r">Predicted</th><th class="r">Measured</th><th class="r">Difference</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def render_log(text: str) -> str:
    """The end of the worker's log."""
    if not text.strip():
        return '<p class="small">The worker has not written anything yet.</p>'
    return f'<pre class="log" tabindex="0" aria-label="Log of the worker">{escape(text)}</pre>'


def render_timeline(observed: ObservedRun) -> str:
    """What the run said in words, newest first."""
    rows = [
        f'<tr><td class="soft">{_clock(message.time)}</td><td>{escape(message.text)}</td></tr>'
        for message in reversed(observed.history.messages)
    ]
    rows += [
        f'<tr><td class="soft">step {point.step:,}</td><td>Checkpoint {escape(point.name)}, {size(point.size_bytes)}'
        f"{', the best so far' if point.best else ''}</td></tr>"
        for point in reversed(observed.history.checkpoints)
    ]
    if not rows:
        return '<p class="small">Nothing has happened yet.</p>'
    return f'<div class="scroll tall"><table class="plain"><tbody>{"".join(rows[:120])}</tbody></table></div>'


def method_words(config: RunConfig) -> str:
    """`QLoRA, r 16` and its like."""
    return ", ".join(filter(None, (config.method_name, config.adapter.traits.summary(config.adapter))))


def short_name(identifier: str) -> str:
    """The telling end of a Hub id or a path."""
    return identifier.removeprefix("sample:").rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def _peak(size_bytes: int | None) -> str:
    return "–" if size_bytes is None else f'<span title="{size_bytes:,} bytes">{size_bytes / GIB:.2f}</span>'


def _difference_words(difference: float | None) -> str:
    if difference is None:
        return "–"
    return f"{abs(difference):.0%} {'more' if difference > 0 else 'less'}" if round(difference, 2) else "none"


def _share_done(observed: ObservedRun) -> float:
    total = observed.history.total_steps
    return min(1.0, observed.history.last_step / total) if total else 0.0


def _phase_words(observed: ObservedRun) -> str:
    status = observed.history.status
    if status is None:
        return "starting the worker"
    words = {
        "loading_model": "loading the model", "reading_data": "reading the data", "preparing": "preparing",
        "training": "", "evaluating": "measuring the held-out loss", "saving": "saving", "finished": "", "stopped": "",
    }  # fmt: skip
    return words[status.phase]


def _elapsed(observed: ObservedRun, now: float) -> str:
    state = observed.state
    if state.started is None:
        return ""
    if state.is_final:
        return f"took {duration((state.ended or now) - state.started)}"
    words = duration(now - state.started)
    left = seconds_left(observed.history, lambda: now)
    if left is None or state.state != "running" or observed.stop_requested or observed.cancel_requested:
        return words
    return f"{words}, {duration(left)} left"


def _silence_words(state: RunState, now: float) -> str:
    if state.silent_since is None or state.silence_limit_seconds is None or state.is_final:
        return ""
    silent, limit = duration(now - state.silent_since), duration(state.silence_limit_seconds)
    return f"<b>has said nothing for {silent}; it is ended after {limit}</b>"


def _held_out_words(observed: ObservedRun) -> str:
    tuned, base, best = (observed.history.tuned_evals, observed.history.base_eval, observed.history.best_eval)
    if not tuned:
        if base is not None and math.isfinite(base.eval_loss):
            return f"base model's held-out loss {base.eval_loss:.2f}"
        return ""
    newest = tuned[-1]
    words = f"held-out loss {newest.eval_loss:.2f}"
    if base is not None and math.isfinite(base.eval_loss):
        words += f", base {base.eval_loss:.2f}"
    if best is not None and best.step != newest.step and best.eval_loss < newest.eval_loss:
        words += f", best {best.eval_loss:.2f} at step {best.step:,}"
    return words


def _resumable(observed: ObservedRun) -> str:
    step = observed.state.resumable_step
    return f" It can go on from step {step:,}." if step else ""


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
