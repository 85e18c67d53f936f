"""The side panel: the draft, its problems, its memory on the device, and suggested changes."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from loratory.engine.config import derived_defaults
from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.run import AdapterConfig
from loratory.engine.config.training import ObjectiveSettings
from loratory.engine.memory.advice import Advice, AdvisedChange
from loratory.engine.memory.estimate import MemoryEstimate, Verdict
from loratory.engine.places import PLACES
from loratory.engine.places.run_place import ThisMachine
from loratory.engine.supervision.memory_measurement import MeasuredStep
from loratory.ui.backend.background import Work
from loratory.ui.draft import Draft
from loratory.ui.form import field_of
from loratory.ui.views import html

_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Okabe and Ito's palette, safe for any kind of colour vision; the legend gives names and figures too.
COMPONENT_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999", "#D55E00", "#F0E442")

MARKS: dict[Verdict, str] = {"fits": "yes", "tight": "tight", "does_not_fit": "no"}
VERDICTS = {"fits": "Fits in memory.", "tight": "Tight in memory.", "does_not_fit": "Does not fit in memory."}
# Shown until the browser's draft is restored.
OPENING_PANEL = f'<div class="section" role="status"><h3>Your draft</h3>{html.small("Restoring draft …")}</div>'


def render_side_panel(draft: Draft, start_label: str = "") -> str:
    """Return the panel for a draft; `start_label` describes the adapter that it continues from."""
    return _choices_row(draft, start_label) + _to_do(draft) + _memory(draft)


def _choices_row(draft: Draft, start_label: str) -> str:
    model, adapter = draft.mapping["model"], draft.mapping["adapter"]
    traits, method = METHODS.get(str(adapter.get("method"))), "not chosen"
    if traits is not None:
        summary = traits.summary(AdapterConfig.model_construct(**adapter))
        method = ", ".join(filter(None, (traits.display_name(model.get("quantization", "none")), summary)))
    rows_a_pass, passes = (_value(draft, f"training.{name}") for name in _BATCH)
    batch, rate = f"{rows_a_pass} × {passes}", _value(draft, "training.learning_rate")
    if isinstance(rows_a_pass, int) and isinstance(passes, int):
        batch += f" = {html.plural(rows_a_pass * passes, 'row')} a step"
    chosen = []
    for title, name in (("Model", "model.id"), ("Data", "dataset.source")):
        value = escape(chosen_name(draft, name)) + (" (cannot be used)" if draft.is_unusable(name) else "")
        chosen.append((title, value or '<span class="missing">not chosen yet</span>'))
    entries = [
        *chosen,
        ("Method", escape(method)),
        ("Objective", escape(_objective(draft))),
        ("Continues from", escape(start_label)),
        ("Learning rate", f"{rate:g}" if isinstance(rate, int | float) else escape(str(rate))),
        ("Length", f"{_value(draft, 'training.max_length'):,} tokens"),
        ("Batch", escape(batch)),
    ]
    button = '<button type="button" class="link" popovertarget="yaml-drawer">YAML</button>'
    return html.section(f"Your draft {button}", html.definitions(entries))


def _objective(draft: Draft) -> str:
    """Return the preference objective; empty for supervised fine-tuning."""
    training, objective = draft.mapping.get("training", {}), draft.objective
    if objective.learns_answers:
        return ""
    settings = {name: training[name] for name in ("beta", "loss_type") if training.get(name) is not None}
    try:
        return objective.summary(ObjectiveSettings.model_validate(settings))
    except ValueError:  # what is wrong is listed below
        return objective.label


def chosen_name(draft: Draft, setting: str) -> str:
    """Return the short name of the model or dataset; empty if none is chosen."""
    section, _, field = setting.partition(".")
    return html.short_name(str(draft.mapping[section].get(field) or ""))


def _value(draft: Draft, name: str) -> Any:
    """Return the value of a setting; an empty box means its default."""
    section, field = name.split(".")
    return draft.mapping[section].get(field, field_of(name).default)


def _to_do(draft: Draft) -> str:
    if not draft.missing and not draft.problems:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in draft.missing)
    items += "".join(map(html.problem_item, draft.problems))
    title = "Before it can start" if draft.missing and not draft.problems else "To correct"
    return f'<div class="section" aria-live="polite"><h3>{title}</h3><ul class="todo">{items}</ul></div>'


def _memory(draft: Draft) -> str:
    memory = draft.device_memory
    if memory.estimate is not None:
        rows = _alarms(draft) + _rows_words(draft, memory.estimate)
        return _estimate_notices(draft) + render_memory_bar(memory.estimate, rows)
    if memory.error is not None and draft.is_elsewhere and draft.memory_elsewhere is None:
        content = html.small("See the choice of hardware on the Train tab.")  # the error is there
    elif memory.error is not None:
        content = html.error_box(memory.error) + _alarms(draft)
    elif draft.shape is not None:
        content = html.small("Correct the settings above first.") + _alarms(draft)
    elif draft.mapping["model"].get("id"):
        content = html.small("Shown once the model has been looked up; see the Model tab.") + _alarms(draft)
    else:
        content = html.small("Choose a model to see its memory.") + _alarms(draft)
    return html.section("Memory", content)


class Alarm(NamedTuple):
    """A value that a run can start with, and that is rarely meant."""

    field: str
    short: str  # for the bar
    text: str
    better: str = ""  # value, as it is typed
    fix: str = ""  # label of the button that sets it


def alarms(draft: Draft) -> Iterator[Alarm]:
    """Yield what deserves attention in a draft apart from its memory."""
    config, rows = draft.memory_config, draft.rows
    if config is None:
        return
    factor = derived_defaults.learning_rate_factor(config)
    if factor > derived_defaults.HIGH_RATE_FACTOR:
        usual, rate = f"{derived_defaults.usual_learning_rate(config):g}", f"{config.training.learning_rate:g}"
        text = f"The learning rate {rate} is {factor:,.0f} times the usual {usual} of {derived_defaults.objective_and_method(config)}."
        yield Alarm("training.learning_rate", "high learning rate", text, usual, f"Use {usual}")
    most = config.training.max_length
    cut = rows.cut_rows(most) if rows is not None else 0
    if rows is not None and (text := html.truncation(cut, rows.count, most, rows.longest, "training row")):
        context = (draft.shape.max_position_embeddings if draft.shape is not None else None) or rows.longest
        length = min(rows.known.needed_max_length, context)
        short = f"{cut / rows.count:.0%} of rows cut"
        if length > most:
            yield Alarm("training.max_length", short, text, str(length), f"Raise Max length to {length:,}")
        else:
            yield Alarm("training.max_length", short, f"{text} The model's context is {context:,} tokens.")


def _alarms(draft: Draft) -> str:
    return "".join(
        html.alarm(escape(text) + (f" {html.pick_button(f'{field}={better}', fix)}" if better else ""))
        for field, _, text, better, fix in alarms(draft)
    )


def _estimate_notices(draft: Draft) -> str:
    """Return the device of the estimate and its obstacles, unless it is on this machine."""
    elsewhere = draft.memory_elsewhere
    if elsewhere is None or elsewhere.device is None:
        return ""
    obstacles = (f"It cannot run this draft: {problem.message}" for problem in elsewhere.problems)
    starts = PLACES.get(draft.where, ThisMachine).starts
    return html.notices([f"Estimate for {elsewhere.device.name}. A run still starts {starts}.", *obstacles])


def _rows_words(draft: Draft, estimate: MemoryEstimate) -> str:
    """Return which rows the estimate assumes; for the chosen rows, also the memory at max_length."""
    rows, most = draft.rows, _value(draft, "training.max_length")
    if rows is None:
        return html.small(f"For rows of {most:,} tokens; for your rows once all are read.")
    several = "one row" if estimate.pass_rows == 1 else f"{estimate.pass_rows:,} rows at once"
    if rows.per_row > 1:
        several = f"{html.plural(estimate.pass_rows // rows.per_row, 'pair')} at once, both answers through the model"
    longest = f"the longest of {min(rows.longest, most):,} tokens"
    sentence = f"For your rows, {longest}: {several}, {estimate.pass_tokens:,} tokens."
    ceiling = draft.device_memory.ceiling
    if ceiling is not None and ceiling.expected_bytes > estimate.expected_bytes:
        sentence += f" If all rows had {most:,} tokens: {html.gib(ceiling.expected_bytes)} GiB."
    return html.small(sentence)


def render_memory_bar(estimate: MemoryEstimate, rows: str = "") -> str:
    """Return the verdict, the stacked bar and the text `rows`; on demand its categories and the phase of the peak."""
    scale = max(estimate.total_bytes, estimate.needed_bytes)
    spans, legend = [], []
    certain = [component for component in estimate.components if component.key != "margin"]
    for component, colour in zip(certain, COMPONENT_COLOURS, strict=False):
        title = escape(f"{component.label}: {html.gib(component.bytes)} GiB. {component.depends_on}", quote=True)
        width = 100 * component.bytes / scale
        spans.append(f'<span title="{title}" style="width:{width:.2f}%;background:{colour}"></span>')
        legend.append(
            f'<i style="background:{colour}"></i><span title="{title}">{escape(component.label)}</span>'
            f'<span class="v" title="{component.bytes:,} bytes">{html.gib(component.bytes)}</span>'
        )
    expected, most, free = map(html.gib, (estimate.expected_bytes, estimate.needed_bytes, estimate.free_bytes))
    margin = max(0, estimate.needed_bytes - estimate.expected_bytes)
    style = f"left:{100 * estimate.expected_bytes / scale:.2f}%;width:{100 * margin / scale:.2f}%"
    bound = f'<em class="bound" title="90% upper bound: {most} GiB" style="{style}"></em>'
    style = f"left:{100 * min(estimate.free_bytes, scale) / scale:.2f}%"
    room = f'<em class="free" title="{free} GiB are free now" style="{style}"></em>'
    reading = f"{expected} GiB expected, {most} GiB at most, {free} of {html.gib(estimate.total_bytes)} GiB free"
    peak = f"Memory is highest in the {estimate.phase_words}."
    return (
        f'<div class="section"><h3>Memory on {escape(estimate.device_name)}, GiB</h3>'
        f'<p class="verdict"><b class="{estimate.verdict}">{VERDICTS[estimate.verdict]}</b> '
        f"{expected} expected, {most} at most, {free} free.</p>"
        f'<div class="bar" role="img" aria-label="{reading}">{"".join(spans)}{bound}{room}</div>{rows}'
        f'<details class="fold" id="memory-parts"><summary>What takes memory</summary><div class="legend">{"".join(legend)}</div>'
        f"{html.small(peak)}{''.join(map(html.small, estimate.notes))}</details></div>"
    )


def render_advice(advice: Advice, estimate: MemoryEstimate) -> str:
    """Return changes that make the draft fit, or that use the remaining memory."""
    if estimate.verdict == "fits":
        return _changes("Also fits", (*advice.changes, *advice.limits))
    changes = [change for change in (*advice.changes, *advice.limits) if change.needed_bytes < estimate.needed_bytes]
    return _changes("Suggested changes", changes) or html.small("No single change makes it fit; a smaller model would.")


def _changes(title: str, changes: Sequence[AdvisedChange]) -> str:
    if not changes:
        return ""
    rows = []
    for change in changes:
        needs = f'<span class="{MARKS[change.verdict]}">{html.gib(change.needed_bytes)}</span>'
        cells = html.under(escape(change.change), change.cost), needs
        rows.append(html.Row(cells, html.pickable(" ".join(change.overrides), chosen=None)))
    return html.section(title, html.table(["Change", html.Column.of_numbers("Needs, GiB")], rows, scrolls=""))


def render_grid(needs: Mapping[tuple[int, int], tuple[int, Verdict]], chosen: tuple[int, int], device_name: str) -> str:
    """Return the needed memory in bytes by `max_length` and `per_device_train_batch_size`; a cell sets both."""
    lengths, batches = (sorted({key[axis] for key in needs}) for axis in (0, 1))
    cells = {key: _grid_cell(need, key, chosen) for key, need in needs.items()}
    rows = [(f"{length:,}", *(cells[length, batch] for batch in batches)) for length in lengths]
    columns = [html.Column("Max length"), *(html.Column(f"batch {batch}", "r") for batch in batches)]
    caption = f"GiB if all rows are that long, on {device_name}. Pick a cell to use it."
    table = html.table(columns, rows, caption=caption, css="grid")
    return f'<details class="fold" id="memory-grid"><summary>Memory by length and batch</summary>{table}</details>'


def _grid_cell(need: tuple[int, Verdict], key: tuple[int, int], chosen: tuple[int, int]) -> str:
    needed_bytes, verdict = need
    overrides = f"training.max_length={key[0]} training.per_device_train_batch_size={key[1]}"
    fit = VERDICTS[verdict].rstrip(".").lower()
    label = f"{html.gib(needed_bytes)} GiB at length {key[0]:,} and batch {key[1]}: {fit}"
    css = f"{MARKS[verdict]}{' now' if key == chosen else ''}"
    return html.pick_button(overrides, html.gib(needed_bytes), css=css, label=label)


def render_measured_step(work: Work[MeasuredStep] | None) -> str:
    """Return the measurement of this draft's worst step; empty without one."""
    if work is None or work.was_stopped:
        return ""
    if work.is_under_way:
        return f'<p class="small" aria-live="polite"><span class="working"></span>{escape(work.progress_text)}</p>'
    if work.error is not None:
        return html.error_box(work.error)
    return _figures(work.result) if work.result is not None else ""


def _figures(step: MeasuredStep) -> str:
    what = "process" if step.measures_process else "allocator"
    within = "within" if step.measured_bytes <= step.bound_bytes else "above"
    title = f"Peak of the {what}: {step.measured_bytes:,} bytes"
    prediction = f"{html.gib(step.predicted_bytes)} GiB ({step.error:+.1%})"
    entries = [
        ("Measured", f'<span title="{title}"><b>{html.gib(step.measured_bytes)} GiB</b></span>'),
        ("Predicted", f"{prediction}, {within} the bound of {html.gib(step.bound_bytes)} GiB"),
        ("Tensors alone", f"{html.gib(step.allocated_bytes)} GiB" if step.allocated_bytes is not None else ""),
        ("Duration", f"{step.step_seconds:,.2f} s a step of {html.plural(step.rows, 'row')} of {step.tokens:,} tokens"),
    ]
    return html.section(f"One step, measured on {escape(step.device_name)}", html.definitions(entries))
