"""One worst step, measured: beside what was predicted for it."""

from html import escape

from engine.runs.memory_measurement import MeasuredStep
from ui.backend.background import Work
from ui.errors import trouble
from ui.views.quantities import gib


def render_measured_step(work: Work[MeasuredStep] | None) -> str:
    """How the measurement of this draft stands; empty where there is none."""
    if work is None:
        return ""
    if work.is_under_way:
        message = "Stopping." if work.stopping else work.message
        return f'<p class="small" aria-live="polite"><span class="working"></span>{escape(message)}</p>'
    if work.was_stopped:
        return ""
    if work.error is not None:
        return trouble(work.error)
    return _figures(work.result) if work.result is not None else ""


def _figures(step: MeasuredStep) -> str:
    what = "process" if step.measures_process else "allocator"
    within = "within" if step.measured_bytes <= step.bound_bytes else "beyond"
    tensors = (
        f"<dt>Tensors alone</dt><dd>{gib(step.allocated_bytes)} GiB</dd>" if step.allocated_bytes is not None else ""
    )
    return (
        f'<div class="section"><h3>One step, measured on {escape(step.device_name)}</h3><dl>'
        f'<dt>Measured</dt><dd title="Peak of the {what}: {step.measured_bytes:,} bytes">'
        f"<b>{gib(step.measured_bytes)} GiB</b></dd>"
        f"<dt>Predicted</dt><dd>{gib(step.predicted_bytes)} GiB ({step.error:+.1%}), {within} the "
        f"{gib(step.bound_bytes)} at most</dd>{tensors}"
        f"<dt>Took</dt><dd>{step.step_seconds:,.2f} s a step, rows of {step.tokens:,} tokens</dd></dl></div>"
    )
