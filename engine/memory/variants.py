"""Settings changed on a configuration, for the questions that begin with "what if"."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from engine.config.run import RunConfig


class Changed(NamedTuple):
    """One setting and its new value, which is taken to be valid."""

    section: Literal["model", "adapter", "training"]
    field: str
    value: str | int | bool


def with_changes(config: RunConfig, changes: Iterable[Changed]) -> RunConfig:
    """Copy a configuration with some settings changed; later changes win."""
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
