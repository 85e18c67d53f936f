"""The line of a run in the bar: how far it is while it works, then what to do with its result."""

import time
from collections.abc import Collection
from html import escape

from loratory.engine.runs.history.steps import StepSeries
from loratory.engine.runs.run import Run
from loratory.ui.backend.results import steps_done
from loratory.ui.backend.run_reader import RunSnapshot, can_chat
from loratory.ui.views.html import duration, pick_button, press_button
from loratory.ui.views.run_view import STATE_WORDS, state_mark, time_left

# The steps of a result, in order: target, name, and where it is in front already, what the bar's button says and presses.
_TYPED = "#composer:has(textarea:not(:placeholder-shown))"
STEPS = (
    ("chat", "Chat", "Ask", f"{_TYPED} #chat-send, #suggestions [data-pick='0'], #chat-question textarea, #chat-load"),
    ("blind", "Blind test", "Judge a pair", "#blind-verdict .verdict, #blind-next, #chat-load"),
    ("measure", "Measure", "Measure now", "#measure-start"),
    ("export", "Export", "Export now", "#export-start"),
)
_TREND_STEPS, _STEADY = 10, 0.002


def next_of(run: Run) -> tuple[str, str]:
    """Return name and target of the first step of a result that is not done; of the last one once all are."""
    done = steps_done(run.folder)
    target, name, *_ = next((step for step in STEPS if step[0] not in done), STEPS[-1])
    return name, f"{target}:{run.id}"


def render_run_line(snapshot: RunSnapshot, now: float | None = None, *, under_way: Collection[str] = ()) -> str:
    """Return the line of the run in hand, with its next step; steps that are `under_way` are not offered."""
    run_id, state = snapshot.run.id, snapshot.state
    # With a checkpoint, even while it trains.
    more = pick_button(f"chat:{run_id}", "Chat") if can_chat(snapshot.run) else ""
    action = pick_button(f"follow:{run_id}", "Open", css="go", label=f"Open {snapshot.title}")
    text = state_mark(state.state)
    if snapshot.is_live:
        text = progress(snapshot, now) + _loss(snapshot.history.steps)
        if state.state in ("queued", "submitted", "starting", "running") and not snapshot.stop_requested:
            more += pick_button(f"stop:{run_id}", "Remove from queue" if state.state == "queued" else "Stop and save")
    elif state.state in ("failed", "interrupted") and state.resumable_step:
        action = pick_button(f"resume:{run_id}", "Resume", css="go", label=f"Resume {snapshot.title}")
    elif more:
        done, upcoming, more = steps_done(snapshot.run.folder), next_of(snapshot.run)[0], ""
        for target, name, action_name, presses in STEPS:
            is_next = name == upcoming and target not in done
            mark = '<span role="img" aria-label="done">✓</span> ' if target in done else ""
            button = pick_button(f"{target}:{run_id}", name, css="go" if is_next else "link")
            in_front = f'<span class="hint">{name}</span>'
            if target in under_way:
                in_front += " <span>under way</span>"
            elif is_next:
                in_front = press_button(presses, action_name)
            more += f"<li>{mark}{button}{in_front}</li>"
        more, action = f'<ol class="path" aria-label="Steps of its result">{more}</ol>', ""
    name = f'<b class="name">{escape(snapshot.title)}</b>'
    return f'<div class="in-hand" data-run="{run_id}"><p>{name} <span>{text}</span></p>{more}{action}</div>'


def render_active(snapshot: RunSnapshot, now: float | None = None) -> str:
    """Return the short piece of an active run, next to the draft."""
    text = progress(snapshot, now)
    link = pick_button(f"follow:{snapshot.run.id}", text, css="inline", label=f"{text}: open {snapshot.title}")
    return f'<div class="active" title="{escape(snapshot.title, quote=True)}">{link}</div>'


def progress(snapshot: RunSnapshot, now: float | None = None) -> str:
    """Return how far a run is: its share of the steps, and the time left; in another state than running, that state."""
    total = snapshot.history.total_steps
    if snapshot.state.state != "running" or not total:
        return "resuming" if snapshot.state.is_final else STATE_WORDS[snapshot.state.state]
    share = f"{min(1.0, snapshot.history.last_step / total):.0%}"
    left = time_left(snapshot, time.time() if now is None else now)
    return share if left is None else f"{share} · {duration(left)} left"


def _loss(steps: StepSeries) -> str:
    """Return the newest loss and its trend: the mean of ten steps, compared with that of the ten before."""
    loss, losses = steps.last("loss"), steps.column("loss")[-2 * _TREND_STEPS :]
    if loss is None:
        return ""
    change = losses[-_TREND_STEPS:].mean() / losses[:_TREND_STEPS].mean() - 1
    mark, word = ("↓", "falling") if change < -_STEADY else ("↑", "rising") if change > _STEADY else ("→", "steady")
    return f' · loss {loss:.2f} <span role="img" aria-label="{word}" title="{word}">{mark}</span>'
