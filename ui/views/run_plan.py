"""What a draft will come to: steps, tokens and time, before anything starts."""

import math
from html import escape
from typing import NamedTuple

from engine.config.run import RunConfig
from engine.config.training import TrainingConfig
from engine.data.contract import DatasetReport
from ui.views.quantities import count, duration, plural


class RunPlan(NamedTuple):
    """Figures of a run that has not started."""

    steps: int
    sequences_per_step: int
    seen_tokens: int  # trained and masked, over all epochs
    trained_tokens: int
    is_estimate: bool  # packing decides at the start how many rows there are


class KnownSpeed(NamedTuple):
    """Throughput of an earlier run like this one."""

    tokens_per_second: float
    run_title: str


def plan_run(training: TrainingConfig, report: DatasetReport) -> RunPlan | None:
    """Work out steps and tokens as the trainer will count them; None where no tokens were counted.

    Source: transformers' `Trainer.set_initial_training_values`: batches are cut into whole steps, the last one may be
    smaller, and `max_steps` wins over the epochs.
    """
    if report.total_tokens is None or report.trained_tokens is None or not report.train_rows:
        return None
    share = report.train_rows / max(1, report.train_rows + report.held_out_rows)
    sequences = round((report.sequences or report.kept) * share)
    tokens = report.total_tokens * share
    if training.packing:
        sequences = max(1, math.ceil(tokens / training.max_length))
    batches = math.ceil(sequences / training.per_device_train_batch_size)
    per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    steps = math.ceil(training.num_train_epochs * per_epoch)
    if training.max_steps > 0:
        steps = training.max_steps
    epochs = steps / per_epoch
    return RunPlan(
        steps=steps,
        sequences_per_step=training.per_device_train_batch_size * training.gradient_accumulation_steps,
        seen_tokens=round(tokens * epochs),
        trained_tokens=round(report.trained_tokens * share * epochs),
        is_estimate=training.packing,
    )


def render_plan(config: RunConfig | None, report: DatasetReport | None, speed: KnownSpeed | None) -> str:
    """Steps, tokens and time in figures; what is not known is said to be unknown."""
    if config is None:
        return ""
    training = config.training
    plan = plan_run(training, report) if report is not None else None
    per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    if plan is None:
        known = f"<b>{training.max_steps:,}</b>" if training.max_steps > 0 else "<b>?</b>"
        return (
            f'<div class="facts"><div>{known}steps</div><div><b>{per_step:,}</b>rows in each step</div></div>'
            '<p class="small">Tokens and time are unknown until the rows are counted: look at the dataset in the Data '
            "tab with a model chosen, or start and see.</p>"
        )
    about = "≈ " if plan.is_estimate else ""
    if speed is None:
        time_figure = "<b>?</b>time, unknown until the first steps"
        note = ""
    else:
        seconds = plan.seen_tokens / speed.tokens_per_second
        time_figure = f"<b>≈ {duration(seconds)}</b>of training"
        note = (
            f'<p class="small">The time follows from {speed.tokens_per_second:,.0f} tokens/s in '
            f"“{escape(speed.run_title)}”, which had the same model, method and device. Loading and held-out "
            "measurements come on top.</p>"
        )
    packed = '<p class="small">Packing decides at the start how many rows there are; hence ≈.</p>' if about else ""
    return (
        f'<div class="facts"><div><b>{about}{plan.steps:,}</b>{"step" if plan.steps == 1 else "steps"}</div>'
        f"<div><b>{plan.sequences_per_step:,}</b>{'packed rows' if training.packing else 'rows'} in each step</div>"
        f"<div><b>{about}{count(plan.trained_tokens)}</b>tokens learned from</div>"
        f"<div><b>{about}{count(plan.seen_tokens)}</b>tokens read</div><div>{time_figure}</div></div>"
        f"{_data_words(report)}{note}{packed}"
    )


def _data_words(report: DatasetReport | None) -> str:
    if report is None:
        return ""
    held_out = f", {plural(report.held_out_rows, 'row')} held out" if report.held_out_rows else ", none held out"
    cut = report.token_lengths.over_max_length if report.token_lengths is not None else 0
    lost = f"; {plural(cut, 'row is', 'rows are')} cut at {report.max_length or 0:,} tokens" if cut else ""
    return f'<p class="small">{plural(report.train_rows, "row")} to train on{held_out}{lost}.</p>'
