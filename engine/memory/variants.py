"""Settings changed on a configuration, for the questions that begin with "what if"."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from engine.config.pairs import pair_problems
from engine.config.run import RunConfig
from engine.errors import Problem
from engine.hardware.device import Device
from engine.hardware.device_problems import device_problems


class Changed(NamedTuple):
    """One setting and its new value, which lies within the bounds of its field."""

    section: Literal["model", "adapter", "training"]
    field: str
    value: str | int | bool


def with_changes(config: RunConfig, changes: Iterable[Changed]) -> RunConfig:
    """Copy a configuration with some settings changed; later changes win.

    What the new values make of the others is not checked: `new_problems` tells.
    """
    sections: dict[str, dict[str, str | int | bool]] = {}
    for change in changes:
        sections.setdefault(change.section, {})[change.field] = change.value
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
    )


def as_overrides(changes: Iterable[Changed]) -> tuple[str, ...]:
    """The same as a form and the command line take them: `section.field=value`."""
    values = {(change.section, change.field): change.value for change in changes}
    return tuple(
        f"{section}.{field}={str(value).lower() if isinstance(value, bool) else value}"
        for (section, field), value in values.items()
    )


def new_problems(config: RunConfig, changed: RunConfig, device: Device) -> list[Problem]:
    """Why `changed` would be refused on this device, beyond what `config` is refused for already."""
    known = {problem.field for problem in _problems(config, device)}
    return [problem for problem in _problems(changed, device) if problem.field not in known]


def _problems(config: RunConfig, device: Device) -> list[Problem]:
    return [*pair_problems(config), *device_problems(config, device)]
