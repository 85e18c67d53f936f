"""Several runs from one configuration: every combination of a few settings."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from loratory.engine.config.load import UNREADABLE_YAML, StrictLoader, config_from_mapping, with_overrides
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem, shorten
from loratory.engine.runs.summary import differing_settings

MAX_RUNS = 200

_YAML_NULL = "tag:yaml.org,2002:null"


def sweep_configs(values: Mapping[str, Any], axes: Sequence[str]) -> list[RunConfig]:
    """Make one configuration for each combination; their names differ by its values.

    An axis is `section.field=value,value,…`; values are read as overrides are.

    Raises:
        ConfigError: If an axis is not of that form or repeats a value, there are too many combinations, or one of them
            cannot work; lists every problem.
    """
    parsed_axes = [_parse_axis(axis) for axis in axes]
    problems = [problem for _, _, problem in parsed_axes if problem is not None]
    names = [name for name, _, _ in parsed_axes]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(name, "it is swept over twice; put all its values into one list."))
    count = math.prod(len(choices) for _, choices, _ in parsed_axes)
    if count > MAX_RUNS:
        problems.append(Problem("", f"the sweep has {count:,} combinations; at most {MAX_RUNS} are queued at once."))
    if problems:
        raise ConfigError(problems)
    return _combine(values, {name: choices for name, choices, _ in parsed_axes})


def keep_alpha_ratio(configs: Sequence[RunConfig], base: RunConfig) -> list[RunConfig]:
    """Let `lora_alpha` follow the rank, so a sweep over ranks compares capacity and not the update's strength.

    Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685): the update is scaled by alpha / r.
    """
    ratio = base.adapter.lora_alpha / base.adapter.r
    changes = [{"lora_alpha": max(1, round(ratio * config.adapter.r))} for config in configs]
    adapters = [config.adapter.model_copy(update=change) for config, change in zip(configs, changes, strict=True)]
    return [config.model_copy(update={"adapter": adapter}) for config, adapter in zip(configs, adapters, strict=True)]


def sweep_origins(configs: Sequence[RunConfig], key: str) -> list[dict[str, Any]]:
    """Return what the runs of a sweep note about it: its id, and settings that differ and follow from no other."""
    sweep = hashlib.sha256(key.encode()).hexdigest()[:8]
    swept: dict[str, list[str]] = {}
    for name, values in differing_settings({str(number): config for number, config in enumerate(configs)}).items():
        texts = list(map(str, values.values()))
        if not any(len({*zip(other, texts, strict=True)}) == len({*other}) for other in swept.values()):
            swept[name] = texts
    return [{"sweep": sweep, "swept": {name: texts[n] for name, texts in swept.items()}} for n in range(len(configs))]


def _combine(values: Mapping[str, Any], choices: Mapping[str, Sequence[str]]) -> list[RunConfig]:
    configs: list[RunConfig] = []
    problems: dict[Problem, None] = {}
    earlier: dict[str, dict[str, str]] = {}
    for texts in itertools.product(*choices.values()):
        combination = dict(zip(choices, texts, strict=True))
        settings = [f"{name}={text}" for name, text in combination.items()]
        try:
            config = config_from_mapping(with_overrides(values, settings))
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        same = earlier.setdefault(config.model_dump_json(), combination)
        for name, text in combination.items():
            if same[name] != text:  # however they are written
                problems[Problem(name, f"{text} is the same value as {same[name]}; leave one of them out.")] = None
        label = ", ".join(f"{name.rpartition('.')[2]} {' '.join(text.split())}" for name, text in combination.items())
        title = f"{config.run.name}: {label}" if config.run.name else label
        configs.append(config.model_copy(update={"run": config.run.model_copy(update={"name": title[:120]})}))
    if problems:
        raise ConfigError(list(problems))
    return configs


def _parse_axis(axis: str) -> tuple[str, list[str], Problem | None]:
    name, equals, text = axis.partition("=")
    name = name.strip()
    wrong = Problem(name, f"{shorten(axis)!r} is not of the form section.field=value,value.")
    if not equals or "." not in name:
        return name, [], wrong
    sequence = f"[{text}]"
    try:
        node = yaml.compose(sequence, Loader=StrictLoader)
    except ConfigError as error:
        return name, [], Problem(name, error.problems[0].message)
    except UNREADABLE_YAML:
        return name, [], wrong
    if not isinstance(node, yaml.SequenceNode) or not node.value or any(item.tag == _YAML_NULL for item in node.value):
        return name, [], wrong
    # As they were typed: what a value is depends on its setting, and overrides decide that.
    texts = [sequence[item.start_mark.index : item.end_mark.index] for item in node.value]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    return name, texts, None if twice is None else Problem(name, f"{twice} is given twice; leave one of them out.")
