"""Several runs from one configuration: every combination of a few settings."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from engine.config.load import config_from_mapping, with_overrides
from engine.config.run import RunConfig
from engine.errors import ConfigError, Problem

MAX_RUNS = 200


def sweep_configs(values: Mapping[str, Any], axes: Sequence[str]) -> list[RunConfig]:
    """Make one configuration for each combination; their names tell the combinations apart.

    Args:
        values: Plain values of the common configuration.
        axes: `section.field=value,value,…` each; values are read as YAML, as overrides are.

    Raises:
        ConfigError: If an axis is not of that form, there are too many combinations, or one of them cannot work; lists
            every problem.
    """
    parsed = [_parse_axis(axis) for axis in axes]
    problems = [problem for _, _, problem in parsed if problem is not None]
    if problems:
        raise ConfigError(problems)
    names = [name for name, _, _ in parsed]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            [Problem(name, "it is swept over twice; put all its values into one list.") for name in repeated]
        )
    count = math.prod(len(choices) for _, choices, _ in parsed)
    if count > MAX_RUNS:
        raise ConfigError([Problem("", f"the sweep has {count:,} combinations; at most {MAX_RUNS} are filed at once.")])
    return _combined(values, names, [choices for _, choices, _ in parsed])


def keep_alpha_ratio(configs: Sequence[RunConfig], base: RunConfig) -> list[RunConfig]:
    """Let `lora_alpha` follow the rank, so that a sweep over ranks compares capacity and not the update's strength.

    Source: Hu et al. 2021, section 4.1 (arXiv:2106.09685): the update is scaled by alpha / r.
    """
    ratio = base.adapter.lora_alpha / base.adapter.r
    return [
        config.model_copy(
            update={
                "adapter": config.adapter.model_copy(update={"lora_alpha": max(1, round(ratio * config.adapter.r))})
            }
        )
        for config in configs
    ]


def _combined(values: Mapping[str, Any], names: Sequence[str], choices: Sequence[Sequence[str]]) -> list[RunConfig]:
    configs: list[RunConfig] = []
    problems: dict[Problem, None] = {}
    for combination in itertools.product(*choices):
        settings = [f"{name}={choice}" for name, choice in zip(names, combination, strict=True)]
        try:
            config = config_from_mapping(with_overrides(values, settings))
        except ConfigError as error:
            problems.update(dict.fromkeys(error.problems))
            continue
        label = ", ".join(
            f"{name.rpartition('.')[2]} {choice}" for name, choice in zip(names, combination, strict=True)
        )
        title = f"{config.run.name}: {label}" if config.run.name else label
        configs.append(config.model_copy(update={"run": config.run.model_copy(update={"name": title[:120]})}))
    if problems:
        raise ConfigError(list(problems))
    return configs


def _parse_axis(axis: str) -> tuple[str, list[str], Problem | None]:
    name, equals, text = axis.partition("=")
    name = name.strip()
    wrong = Problem(name, f"{axis!r} is not of the form section.field=value,value.")
    if not equals or "." not in name:
        return name, [], wrong
    try:
        choices = yaml.safe_load(f"[{text}]")
    except yaml.YAMLError:
        return name, [], wrong
    if not isinstance(choices, list) or not choices or any(choice is None for choice in choices):
        return name, [], wrong
    return (
        name,
        [yaml.safe_dump(choice, default_flow_style=True, width=10_000).split("\n")[0] for choice in choices],
        None,
    )
