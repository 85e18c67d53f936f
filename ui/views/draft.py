"""A draft before it starts: its steps, tokens and time, the presets, and the bar with the next step."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from loratory.engine.config.methods.registry import METHODS
from loratory.engine.config.presets import Preset, find_preset
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport
from loratory.engine.runs.prediction import RunPlan, expected_judging, plan_run
from loratory.engine.runs.summary import RunSummary
from loratory.ui.backend.run_reader import RunSnapshot
from loratory.ui.draft import Draft
from loratory.ui.views import html
from loratory.ui.views.dataset import render_truncation
from loratory.ui.views.memory import VERDICTS, alarms, chosen_name
from loratory.ui.views.run_line import next_of

OPENING_BAR = html.small("Restoring draft …", role="status")
_FIELD = "field:"
# Where the tab that a step leads to is in front already.
_IN_FRONT = {
    "model": "Pick a model in the list.", "data": "Pick a sample, open a file, or name a dataset of the Hub.",
    "method": "Take an advice of the panel.", "train": "The panel has the reason.",
}  # fmt: skip


class NextStep(NamedTuple):
    """The next action, and where a click on it leads."""

    label: str
    # A tab, `field:` and a setting, what to do with a run and its id, or a selector to press; empty for the start itself.
    target: str

    @property
    def starts(self) -> bool:
        """Whether the action is the start itself."""
        return not self.target


# Of a first visit: the card with the quick start has a button that this one presses.
QUICK_START_STEP = NextStep("Load quick start", "#start-here button")


def next_step(draft: Draft, run: RunSnapshot | None, *, can_start: bool) -> NextStep:
    """Return the next step of a draft; `run` is the newest run with its settings."""
    if not draft.mapping["model"].get("id"):
        return NextStep("Choose a model", "model")
    if not draft.mapping["dataset"].get("source"):
        return NextStep("Choose a dataset", "data")
    if draft.problems:
        label = f"Correct {html.plural(len(draft.problems), 'setting')}"
        return NextStep(label, f"{_FIELD}{draft.problems[0].field}")
    if run is not None and run.is_live:
        return NextStep("Follow", f"follow:{run.run.id}")
    if run is not None and run.state.state == "completed":
        return NextStep(*next_of(run.run))
    if run is not None and run.state.resumable_step:
        return NextStep("Resume", f"resume:{run.run.id}")
    if can_start:
        return NextStep("Start training", "")
    if draft.estimate is not None:
        return NextStep("Make it fit", "method")
    return NextStep("See what is missing", "train")


def render_bar(draft: Draft, step: NextStep, outlook: Sequence[str] = (), *, lands: str = "", dataset: str = "") -> str:
    """Return the choices as links, outlook and verdict, and the next step; the script `access` reads the addresses."""
    chosen = (
        ("model", f"Model{_unusable(draft, 'model.id')}", chosen_name(draft, "model.id")),
        ("data", f"Data{_unusable(draft, 'dataset.source')}", chosen_name(draft, "dataset.source")),
        ("method", "Method", _method(draft)),
    )
    links = "".join(_link(*link) for link in chosen)
    action = "" if step.starts else html.pick_button(step.target, step.label, css="go")
    if step.target.startswith(_FIELD):
        action = html.field_link(step.target.removeprefix(_FIELD), step.label, css="go")
    if step == QUICK_START_STEP:
        action = html.press_button(step.target, step.label, css="go")
    action += f'<span class="hint">{_IN_FRONT[step.target]}</span>' if step.target in _IN_FRONT else ""
    verdict = " · ".join(filter(None, [*map(escape, outlook), _verdict(draft)]))
    addresses = f'data-lands="{escape(lands, quote=True)}" data-name="{escape(dataset, quote=True)}"'
    return f'<div class="chosen" {addresses}>{links}</div><p class="verdict" role="status">{verdict}</p>{action}'


def _method(draft: Draft) -> str:
    model, adapter = draft.mapping["model"], draft.mapping["adapter"]
    traits, objective = METHODS.get(str(adapter.get("method"))), draft.objective
    method = traits.display_name(model.get("quantization", "none")) if traits is not None else ""
    return f"{method}, {objective.label}" if method and not objective.learns_answers else method


def _unusable(draft: Draft, setting: str) -> str:
    return ", cannot be used" if draft.is_unusable(setting) else ""


def _link(tab: str, name: str, value: str) -> str:
    value_html = escape(value) if value else "not chosen"
    css = "" if value else ' class="missing"'
    return f'<button type="button" data-pick="{tab}"{css}><span>{name}</span> {value_html}</button>'


def _verdict(draft: Draft) -> str:
    estimate = draft.estimate
    alarm_links = "".join(f" {html.field_link(alarm.field, alarm.short, css='alarm')}" for alarm in alarms(draft))
    if estimate is not None:
        here = " here" if draft.memory_elsewhere is not None else ""  # if the panel is about another device
        word = "" if estimate.verdict == "fits" else f'<b class="{estimate.verdict}">{VERDICTS[estimate.verdict]}</b> '
        return f"{word}{html.gib(estimate.needed_bytes)} of {html.gib(estimate.free_bytes)} GiB{here}{alarm_links}"
    if draft.estimate_error is not None:
        return f"Memory unknown{alarm_links}"
    if draft.mapping["model"].get("id") and draft.shape is None:
        return "Looking up the model …"
    return alarm_links


def render_start_here(preset_name: str) -> str:
    """Return the card of a first visit: one click fills the form with a preset that trains on any machine."""
    preset = find_preset(preset_name)
    lead = f"<div><h2>Start here</h2><p>{escape(preset.about)}</p></div>"
    button = html.pick_button(preset.name, "Load quick start", css="go")
    return f'<section class="start-here" aria-label="Start here">{lead}{button}</section>'


def render_plan(
    config: RunConfig | None,
    report: DatasetReport | None,
    similar: RunSummary | None,
    around_seconds: float | None = None,
) -> str:
    """Return steps, tokens and time in figures; unknown ones are marked as unknown.

    The speed is that of a similar, earlier run, which took `around_seconds` besides its steps.
    """
    if config is None:
        return ""
    training = config.training
    judging = html.small(expected_judging(config, report.row_lengths if report is not None else None))
    plan = plan_run(training, report) if report is not None else None
    if plan is None:
        steps = f"{training.max_steps:,}" if training.max_steps > 0 else "?"
        per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
        unknown = (
            "Tokens and time are unknown until the rows are counted: open the Data tab with a model chosen, or start."
        )
        return html.facts([(steps, "steps"), (f"{per_step:,}", "rows per step")]) + html.small(unknown) + judging
    about = "≈ " if plan.is_estimate else ""
    figures = [
        (f"{about}{plan.steps:,}", "step" if plan.steps == 1 else "steps"),
        (f"{plan.sequences_per_step:,}", f"{'packed rows' if training.packing else 'rows'} per step"),
        (f"{about}{html.count(plan.trained_tokens)}", "trained tokens"),
        (f"{about}{html.count(plan.seen_tokens)}", "tokens in all"),
    ]
    note = ""
    seconds = _seconds(plan, similar, around_seconds)
    if similar is None or seconds is None:
        figures.append(("?", "time, unknown until the first steps"))
    else:
        figures.append((f"≈ {html.duration(seconds)}", "in all" if around_seconds else "of training"))
        without = "without loading and evaluation"
        if around_seconds:
            without = f"with {html.duration(around_seconds)} for loading, evaluation and saving"
        note = html.small(
            f"Estimated from {similar.tokens_per_second:,.0f} tokens/s in “{similar.name}”, a run with the same model, method "
            f"and device, {without}."
        )
    packed = html.small("≈: packing sets the number of rows at the start.") if about else ""
    return html.facts(figures) + _data(report) + judging + note + packed


def outlook(config: RunConfig | None, report: DatasetReport | None, *speed: Any) -> list[str]:
    """Return steps and time as `render_plan` does, in a few words; nothing while they are unknown."""
    plan = plan_run(config.training, report) if config is not None and report is not None else None
    if plan is None:
        return []
    steps, seconds = f"{'≈ ' if plan.is_estimate else ''}{html.plural(plan.steps, 'step')}", _seconds(plan, *speed)
    return [steps] if seconds is None else [steps, f"≈ {html.duration(seconds)}"]


def _seconds(plan: RunPlan, similar: RunSummary | None, around_seconds: float | None) -> float | None:
    if similar is None or not similar.tokens_per_second:
        return None
    return plan.seen_tokens / similar.tokens_per_second + (around_seconds or 0)


def _data(report: DatasetReport | None) -> str:
    if report is None:
        return ""
    held_out = f", {html.plural(report.held_out_rows, 'row')} held out" if report.held_out_rows else ", none held out"
    cut_alarm = render_truncation(report)
    cut = report.token_lengths.over_max_length if report.token_lengths is not None and not cut_alarm else 0
    cut_words = (
        f"; {html.plural(cut, 'row is', 'rows are')} truncated at {report.max_length or 0:,} tokens" if cut else ""
    )
    why = html.notices((report.why_none_held_out,) if report.why_none_held_out else ())
    return cut_alarm + html.small(f"{html.plural(report.train_rows, 'row')} to train on{held_out}{cut_words}.") + why


_ABOUT_PRESETS = (
    '<h2>Training</h2><p class="lead">The defaults suit most datasets. A preset changes the settings that it names, on '
    "all tabs, and replaces another preset; your own dataset stays. "
    '<button class="link" popovertarget="yaml-drawer">Save the draft as preset</button></p>'
)


def render_presets(presets: Sequence[Preset]) -> str:
    """Return a button per preset: title, device and description; one that a person saved can be deleted after a question."""
    items = questions = ""
    for preset in presets:
        name, about = escape(preset.name, quote=True), escape(preset.about, quote=True)
        button = f'<button type="button" data-pick="{name}" title="{about}"><b>{escape(preset.title)}</b>'
        button += f"<span>{escape(preset.device)}</span></button>"
        if preset.is_own:
            button += f'<button type="button" popovertarget="delete-{name}" aria-label="Delete {name}">✕</button>'
            button = f'<div class="own">{button}</div>'
            questions += f"""<div popover id="delete-{name}" role="dialog" aria-label="Delete {name}">
<p>Delete the preset {name}?</p><button type="button" class="link" data-pick="{name}" data-event="delete">Delete</button>
<button type="button" class="link" autofocus popovertarget="delete-{name}" popovertargetaction="hide">Cancel</button></div>"""
        items += button
    return _ABOUT_PRESETS + html.toolbar("Presets", items, "presets") + questions
