"""The bar at the bottom of every tab: choices, missing parts, fit, and the next step."""

from dataclasses import dataclass
from html import escape

from engine.config.load import find_preset
from engine.config.methods.registry import METHODS
from engine.runs.run import FINAL_STATES
from engine.runs.summary import RunSummary
from ui.draft import Draft
from ui.views.html import field_link, gib, pick_button, plural, small
from ui.views.memory import VERDICTS, alarms, chosen_name

OPENING_BAR = small("Restoring draft …", role="status")
_FIELD = "field:"


@dataclass(frozen=True)
class NextStep:
    """The next action, and where a click on it leads."""

    words: str
    place: (
        str  # a tab, `field:` and a setting, `follow:`, `resume:` or `chat:` and a run's id; empty for the start itself
    )

    @property
    def starts(self) -> bool:
        """Whether the action is the start itself."""
        return not self.place


def next_step(draft: Draft, run: RunSummary | None, *, can_start: bool, resumes: bool = False) -> NextStep:
    """Return the next step of a draft; `run` is the newest run with its settings, `resumes` if that was requested.

    Before anything is chosen, `run` is the newest active one.
    """
    if draft.is_empty and run is not None:
        return NextStep("Follow", f"follow:{run.id}")
    if not draft.mapping["model"].get("id"):
        return NextStep("Choose a model", "model")
    if not draft.mapping["dataset"].get("source"):
        return NextStep("Choose a dataset", "data")
    if draft.problems:
        words = f"Correct {plural(len(draft.problems), 'setting')}"
        return NextStep(words, f"{_FIELD}{draft.problems[0].field}")
    if run is not None and (resumes or run.state not in FINAL_STATES):
        return NextStep("Follow", f"follow:{run.id}")
    if run is not None and run.state == "completed":
        return NextStep("Open in Chat", f"chat:{run.id}")
    if run is not None and run.resumable_step:
        return NextStep("Resume", f"resume:{run.id}")
    if can_start:
        return NextStep("Start training", "")
    if draft.estimate is not None:
        return NextStep("Make it fit", "method")
    return NextStep("See what is missing", "train")


def render_bar(draft: Draft, step: NextStep) -> str:
    """Return the choices as links to their tabs, the verdict, and the next step."""
    chosen = (
        ("model", f"Model{_unusable(draft, 'model.id')}", chosen_name(draft, "model.id")),
        ("data", f"Data{_unusable(draft, 'dataset.source')}", chosen_name(draft, "dataset.source")),
        ("method", "Method", _method(draft)),
    )
    links = "".join(_link(*link) for link in chosen)
    action = "" if step.starts else pick_button(step.place, step.words, css="go")
    if step.place.startswith(_FIELD):
        action = field_link(step.place.removeprefix(_FIELD), step.words, css="go")
    return f'<div class="chosen">{links}</div><p class="verdict" role="status">{_verdict(draft)}</p>{action}'


def _method(draft: Draft) -> str:
    model, adapter = draft.mapping["model"], draft.mapping["adapter"]
    traits, objective = METHODS.get(str(adapter.get("method"))), draft.objective
    method = traits.display_name(model.get("quantization", "none")) if traits is not None else ""
    return f"{method}, {objective.label}" if method and objective.learns_preferences else method


def _unusable(draft: Draft, setting: str) -> str:
    return ", cannot be used" if draft.is_unusable(setting) else ""


def _link(tab: str, name: str, value: str) -> str:
    value_html = escape(value) if value else "not chosen"
    css = "" if value else ' class="missing"'
    return f'<button type="button" data-pick="{tab}"{css}><span>{name}</span> {value_html}</button>'


def _verdict(draft: Draft) -> str:
    estimate = draft.estimate
    beside = "".join(f" {field_link(alarm.field, alarm.short, css='alarm')}" for alarm in alarms(draft))
    if estimate is not None:
        here = " here" if draft.memory_elsewhere is not None else ""  # if the panel is about another device
        return (
            f'<b class="{estimate.verdict}">{VERDICTS[estimate.verdict]}</b> '
            f"{gib(estimate.needed_bytes)} of {gib(estimate.free_bytes)} GiB free{here}{beside}"
        )
    if draft.estimate_error is not None:
        return f"Memory unknown{beside}"
    if draft.mapping["model"].get("id") and draft.shape is None:
        return "Looking up the model …"
    return beside


def render_start_here(preset_name: str) -> str:
    """Return the card of a first visit: one click fills the form with a preset that trains on any machine."""
    preset = find_preset(preset_name)
    return (
        '<section class="start-here" aria-label="Start here"><div><h2>Start here</h2>'
        f"<p>{escape(preset.about)}</p></div>"
        f"{pick_button(preset.name, 'Load quick start', css='go')}</section>"
    )
