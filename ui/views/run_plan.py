"""Steps, tokens and time of a draft, before it starts; and the presets."""

from collections.abc import Sequence
from html import escape

from engine.config.load import Preset
from engine.config.run import RunConfig
from engine.data.contract import DatasetReport
from engine.runs.prediction import plan_run
from engine.runs.summary import RunSummary
from ui.views.dataset import render_truncation
from ui.views.html import count, duration, facts, notices, plural, small, toolbar


def render_plan(
    config: RunConfig | None,
    report: DatasetReport | None,
    similar: RunSummary | None,
    around_seconds: float | None = None,
) -> str:
    """Return steps, tokens and time in figures; unknown ones are marked as unknown.

    Args:
        similar: An earlier run, whose speed is taken.
        around_seconds: Seconds of that run besides its steps; None if unknown.
    """
    if config is None:
        return ""
    training = config.training
    plan = plan_run(training, report) if report is not None else None
    if plan is None:
        steps = f"{training.max_steps:,}" if training.max_steps > 0 else "?"
        per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return facts([(steps, "steps"), (f"{per_step:,}", "rows per step")]) + small(
            "Tokens and time are unknown until the rows are counted: open the Data tab with a model chosen, or start."
        )
    about = "≈ " if plan.is_estimate else ""
    figures = [
        (f"{about}{plan.steps:,}", "step" if plan.steps == 1 else "steps"),
        (f"{plan.sequences_per_step:,}", f"{'packed rows' if training.packing else 'rows'} per step"),
        (f"{about}{count(plan.trained_tokens)}", "trained tokens"),
        (f"{about}{count(plan.seen_tokens)}", "tokens in all"),
    ]
    note = ""
    if similar is None or not similar.tokens_per_second:
        figures.append(("?", "time, unknown until the first steps"))
    else:
        stepping = plan.seen_tokens / similar.tokens_per_second
        figures.append(
            (f"≈ {duration(stepping + (around_seconds or 0))}", "in all" if around_seconds else "of training")
        )
        without = "without loading and evaluation"
        if around_seconds:
            without = f"with {duration(around_seconds)} for loading, evaluation and saving"
        note = small(
            f"Estimated from {similar.tokens_per_second:,.0f} tokens/s in “{similar.name}”, a run with the same model, method "
            f"and device, {without}."
        )
    packed = small("≈: packing sets the number of rows at the start.") if about else ""
    return facts(figures) + _data(report) + note + packed


def _data(report: DatasetReport | None) -> str:
    if report is None:
        return ""
    held_out = f", {plural(report.held_out_rows, 'row')} held out" if report.held_out_rows else ", none held out"
    cut_alarm = render_truncation(report)
    cut = report.token_lengths.over_max_length if report.token_lengths is not None and not cut_alarm else 0
    cut_words = f"; {plural(cut, 'row is', 'rows are')} truncated at {report.max_length or 0:,} tokens" if cut else ""
    why = notices((report.why_none_held_out,) if report.why_none_held_out else ())
    return cut_alarm + small(f"{plural(report.train_rows, 'row')} to train on{held_out}{cut_words}.") + why


def render_presets(presets: Sequence[Preset]) -> str:
    """Return a button per preset: title, device and description."""
    if not presets:
        return ""
    items = "".join(
        f'<button type="button" data-pick="{escape(preset.name, quote=True)}" title="{escape(preset.about, quote=True)}">'
        f"<b>{escape(preset.title)}</b><span>{escape(preset.device)}</span></button>"
        for preset in presets
    )
    return toolbar("Presets", items, "presets")
