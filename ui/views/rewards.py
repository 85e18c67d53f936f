"""Rewards as cards that can be edited, and what a try of them found."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from loratory.engine.config.run import RunConfig, field_of
from loratory.engine.evaluation.samples import AnswerSample, PromptSamples
from loratory.engine.evaluation.try_reward import TryRewardResult, judge
from loratory.engine.runs.history.events import RolloutSample
from loratory.engine.runs.history.run_history import RunHistory
from loratory.engine.scoring.base import Scorer
from loratory.engine.scoring.registry import SCORERS
from loratory.ui.views.html import Column, alarm, duration, facts, pick_button, plural, small, table, toolbar

_BEHIND = frozenset({"ignore_reasoning", "seconds", "memory_mib"})  # settings that are folded in
_LONG = 400  # characters; a setting that takes more gets a larger box
_MOST_CHARACTERS = 600  # of an answer in the table
_MOST_PROMPTS = 200  # of a try, in the page


def render_rewards(rewards: Sequence[Any], setting: str = "training.rewards") -> str:
    """Return the scorers of a setting, which a client may have forged, and a list to add one from."""
    known = [reward for reward in rewards if isinstance(reward, Mapping) and reward.get("scorer") in SCORERS]
    cards = "".join(_card(number, SCORERS[reward["scorer"]], reward) for number, reward in enumerate(known, 1))
    options = "".join(
        f'<option value="{name}" title="{escape(kind.sentence, quote=True)}">{escape(kind.label)}</option>'
        for name, kind in SCORERS.items()
    )
    field = field_of(setting)
    help_text = f'<p class="small info-text">{escape(field.description or "")}</p>'
    add = f'<label class="add-scorer">Add a scorer <select class="add"><option value="">Choose …</option>{options}</select></label>'
    return f'<div class="rewards"><h3>{field.title}</h3>{help_text}{cards}{add}</div>'


def _card(number: int, kind: type[Scorer], values: Mapping[str, Any]) -> str:
    names = [name for name in kind.model_fields if name != "scorer"]
    front, behind = (
        "".join(_field(kind.model_fields[n], n, values.get(n)) for n in names if (n in _BEHIND) == is_behind)
        for is_behind in (False, True)
    )
    more = f'<details><summary>More</summary><div class="line">{behind}</div></details>' if behind else ""
    remove = f'<button type="button" class="link remove" aria-label="Remove {escape(kind.label)}, scorer {number}">Remove</button>'
    head = f"<legend>{escape(kind.label)}</legend><p>{escape(kind.sentence)} {remove}</p>"
    scorer = next(name for name, other in SCORERS.items() if other is kind)
    return f'<fieldset data-scorer="{scorer}">{head}<div class="line">{front}</div>{more}</fieldset>'


def _field(field: FieldInfo, name: str, value: Any) -> str:
    """Return the control of a setting, with its value or its default."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        kinds = [Literal]
    value = field.get_default(call_default_factory=True) if value is None and not field.is_required() else value
    help_text = escape(field.description or "", quote=True)
    attributes = f'data-field="{name}" title="{help_text}"'
    if kinds == [bool]:
        box = f'<input type="checkbox" data-type="boolean" {attributes}{" checked" * bool(value)}>'
        return f"<label>{box} {escape(field.title or name)}</label>"
    if kinds == [Literal]:
        choices = (
            f"<option{' selected' * (choice == value)}>{escape(str(choice))}</option>"
            for choice in get_args(field.annotation)
        )
        box = f'<select data-type="text" {attributes}>{"".join(choices)}</select>'
    elif kinds in ([int], [float]):
        box = (
            f'<input type="number" step="any" data-type="number" {attributes} value="{"" if value is None else value}">'
        )
    else:
        is_list = get_origin(field.annotation) is tuple
        lines = [str(entry) for entry in value or ()] if is_list else []
        plain = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        text = "\n".join(lines) if is_list else plain
        is_long = is_list or any(getattr(rule, "max_length", 0) > _LONG for rule in field.metadata)
        kind = f'data-type="{"list" if is_list else "text"}" {attributes}'
        quoted = escape(str(text), quote=True)
        short, long = f'<input type="text" {kind} value="{quoted}">', f"<textarea {kind} rows=3>{quoted}</textarea>"
        box = long if is_long else short
    return f"<label>{escape(field.title or name)} {box}</label>"


def render_actions(result: TryRewardResult | None, *, right: int, is_under_way: bool) -> str:
    """Return the buttons of a try, the last one of which keeps the prompts that were sometimes right, if any."""
    buttons = [pick_button("stop", "Stop") if is_under_way else pick_button("try", "Try reward", css="go")]
    if result is not None and not is_under_way:
        count, total = len(result.prompts), result.train_prompts
        seconds = (result.generation_seconds + result.scoring_seconds) * total / count
        if total > count:
            buttons.append(pick_button("all", f"Try all {total:,} prompts, about {duration(seconds)}"))
        text = f"Keep the {plural(right, 'prompt')} that {'was' if right == 1 else 'were'} sometimes right"
        rest = f"Excludes the other {total - right:,} training rows from the set, or from a new one; held-out rows stay"
        button = pick_button("keep", text).replace("data-pick", f'data-event="submit" title="{rest}" data-pick')
        buttons += [button] if right else []
    return toolbar("Try reward", " ".join(buttons), "line")


def render_try(result: TryRewardResult, config: RunConfig, steps: int | None) -> str:
    """Return the verdict of a try, its figures, what bad answers earn, and the answers."""
    verdict, highest = judge(result), result.highest
    cures = "".join(f"<li>{escape(cure)}</li>" for cure in verdict.cures)
    css = "yes" if verdict.kind == "can_learn" else "tight"
    head = (
        f'<p class="verdict-of-try"><b class="{css}">{verdict.title}</b> {escape(verdict.reason)}</p><ul>{cures}</ul>'
    )
    generations, step = config.training.num_generations, result.step_seconds(config)
    figures = [
        (f"{result.pass_at_1:.0%}", "pass@1: one answer passes"),
        (f"{result.pass_at_all:.0%}", f"pass@{generations}: one of {generations} passes"),
        (f"{result.tied} of {len(result.prompts)}", "groups without a difference"),
        (f"{result.cut_share:.0%}", "cut at the limit"), (f"{result.mean_tokens:.0f}", "tokens an answer"),
        (duration(step), "a step, about"),
    ]  # fmt: skip
    figures += [(duration(steps * step), f"for {plural(steps, 'step')}, about")] if steps else []
    cost = result.judging_cost(config, steps or 1)
    judging = small(f"{cost} in {plural(steps, 'step') if steps else 'a step'}.") if cost is not None else ""
    bad = [(escape(answer.name.capitalize()), _reward(answer.reward, highest)) for answer in result.bad_answers]
    bad_table = table(["Deliberately bad answers", Column.of_numbers("Earn")], bad)
    return f"{head}{facts(figures)}{judging}{''.join(map(alarm, map(escape, result.notes)))}{bad_table}{render_tried(result.prompts[:_MOST_PROMPTS], result.scorers)}"


def render_rollout(history: RunHistory, rewards: Sequence[Scorer]) -> str:
    """Return some of the answers that the newest logged step was trained on, with their scores and advantages."""
    if not history.rollouts:
        return ""
    newest, prompts = history.rollouts[-1], dict[str, list[RolloutSample]]()
    for sample in newest.samples:
        prompts.setdefault(sample.prompt, []).append(sample)
    count = len(newest.samples[0].scores) if newest.samples else 0
    # The configuration may be one that this version cannot read.
    labels = (
        [scorer.label for scorer in rewards] if len(rewards) == count else [f"Scorer {n + 1}" for n in range(count)]
    )
    columns: list[Column | str] = ["Answer", *map(Column.of_numbers, map(escape, [*labels, "Advantage"]))]
    html = ""
    for prompt, samples in prompts.items():
        rows = []
        for sample in samples:
            verdicts = zip(sample.scores, sample.reasons or [""] * len(sample.scores), strict=False)
            text = escape(sample.answer[:_MOST_CHARACTERS]) or "<i>empty</i>"
            rows.append((text, *(_verdict(*verdict) for verdict in verdicts), f"{sample.advantage:+.2f}"))
        html += f"{small(prompt[-_MOST_CHARACTERS:])}{table(columns, rows)}"
    return f'<section aria-label="Answers of a step"><h3>Answers of step {newest.step:,}</h3>{html}</section>'


def render_tried(prompts: Sequence[PromptSamples], scorers: Sequence[str]) -> str:
    """Return prompts with their answers, each with the verdicts of the scorers; the first is open."""
    columns: list[Column | str] = ["Answer", *map(Column.of_numbers, [*map(escape, scorers), "Reward"])]
    return "".join(_prompt(prompt, columns, is_first=not number) for number, prompt in enumerate(prompts))


def _prompt(prompt: PromptSamples, columns: Sequence[Column | str], *, is_first: bool) -> str:
    answers = sorted(prompt.answers, key=lambda answer: -(answer.reward or 0.0))
    rows = [(_text(a), *(_verdict(*verdict) for verdict in a.verdicts), _reward(a.reward)) for a in answers]
    tied = ", no difference" if prompt.is_tied else ""
    rewards = prompt.rewards
    mean = f"{sum(rewards) / len(rewards):.2f}" if rewards else "–"
    summary = f"<summary>Row {prompt.row + 1:,}: mean {mean}{tied} · {escape(prompt.prompt[-120:])}</summary>"
    text = escape(prompt.reference[:_MOST_CHARACTERS])
    reference = f'<p class="soft">Reference: {text}</p>' if text else ""
    return f"<details{' open' * is_first}>{summary}{reference}{table(columns, rows)}</details>"


def _text(answer: AnswerSample) -> str:
    cut = ' <span class="tight">cut</span>' if answer.is_cut else ""
    return f"{escape(answer.text[:_MOST_CHARACTERS]) or '<i>empty</i>'}{cut}"


def _verdict(score: float | None, reason: str) -> str:
    text = "–" if score is None else f"{score:.2f}"
    return f'<span title="{escape(reason, quote=True)}">{text}</span>' if reason else text


def _reward(reward: float | None, highest: float | None = None) -> str:
    most = f" of {highest:.2f}" if highest is not None else ""
    return "–" if reward is None else f"{reward:.2f}{most}"
