"""Several runs from one configuration: every combination of a few settings."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from loratory.engine.config.load import UNREADABLE_YAML, StrictLoader, config_from_mapping, with_overrides
from loratory.engine.config.run import RunConfig
from loratory.engine.errors import ConfigError, Problem, shorten

MAX_RUNS = 200

_YAML_NULL = "tag:yaml.org,2002:null"


def sweep_configs(values: Mapping[str, Any], axes: Sequence[str]) -> list[RunConfig]:
    """Make one configuration for each combination; their names differ by its values.

    Args:
        values: Plain values of the common configuration.
        axes: `section.field=value,value,…` each; values are read as overrides are.

    Raises:
        ConfigError: If an axis is not of that form or repeats a value, there are too many combinations, or one of them
            cannot work; lists every problem.
    """
    parsed_axes = [_parse_axis(axis) for axis in axes]
    problems = [problem for _, _, problem in parsed_axes if problem is not None]
    if problems:
        raise ConfigError(problems)
    names = [name for name, _, _ in parsed_axes]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ConfigError(
            [Problem(name, "it is swept over twice; put all its values into one list.") for name in duplicates]
        )
    count = math.prod(len(choices) for _, choices, _ in parsed_axes)
    if count > MAX_RUNS:
        raise ConfigError(
            [Problem("", f"the sweep has {count:,} combinations; at most {MAX_RUNS} are queued at once.")]
        )
    return _combine(values, names, [choices for _, choices, _ in parsed_axes])


def keep_alpha_ratio(configs: Sequence[RunConfig], base: RunConfig) -> list[RunConfig]:
    """Let `lora_alpha` follow the rank, so a sweep over ranks compares capacity and not the update's strength.

    Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685): the update is scaled by alpha / r.
    """
    ratio = base.adapter.lora_alpha / base.adapter.r
    results = []
    for config in configs:
        adapter = config.adapter.model_copy(update={"lora_alpha": max(1, round(ratio * config.adapter.r))})
        results.append(config.model_copy(update={"adapter": adapter}))
    return results


def _combine(values: Mapping[str, Any], names: Sequence[str], choices: Sequence[Sequence[str]]) -> list[RunConfig]:
    configs: list[RunConfig] = []
    problems: dict[Problem, None] = {}
    earlier: dict[str, tuple[str, ...]] = {}
    for combination in itertools.product(*choices):
        settings = [f"{name}={text}" for name, text in zip(names, combination, strict=True)]
        try:
            config = config_from_mapping(with_overrides(values, settings))
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        same = earlier.setdefault(config.model_dump_json(), combination)
        for name, first, second in zip(names, same, combination, strict=True):
            if first != second:  # however they are written
                problem = Problem(name, f"{second} is the same value as {first}; leave one of them out.")
                problems[problem] = None
        values_by_name = zip(names, combination, strict=True)
        label = ", ".join(f"{name.rpartition('.')[2]} {' '.join(text.split())}" for name, text in values_by_name)
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
