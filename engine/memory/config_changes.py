"""Change settings of a configuration, and search for the largest value of one that fits."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from engine.config.pairs import pair_problems
from engine.config.run import RunConfig
from engine.errors import Problem
from engine.hardware.device import Device
from engine.hardware.devices import device_problems

_MOST_ESTIMATES = 12
_CLOSE_ENOUGH = 128  # a limit is found when it is known to one part in so many


class Changed(NamedTuple):
    """One setting and its new value, which lies within the bounds of its field."""

    section: Literal["model", "adapter", "training"]
    field: str
    value: str | int | float | bool


def with_changes(config: RunConfig, changes: Iterable[Changed]) -> RunConfig:
    """Copy a configuration with some settings changed; later changes win.

    Whether the new values suit the other settings is not checked: see `new_problems`.
    """
    sections: dict[str, dict[str, str | float | bool]] = {}
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


def largest_that_fits(needed: Callable[[int], int], free_bytes: int, start: int, upper: int) -> int | None:
    """Search by interpolation; what is returned does fit, and one part in 128 more would not.

    Need grows steadily and the faster the larger the value, so the chord between a value that fits and one that does
    not lies above it: where the chord meets what is free, the value still fits.

    Args:
        start: Tried first: the value of the draft.
        upper: Nothing above it is tried.

    Returns:
        The value; None where not even 1 fits.
    """
    fits, fits_bytes = 0, 0
    beyond, beyond_bytes = upper + 1, 0
    value = max(1, min(start, upper))
    for _ in range(_MOST_ESTIMATES):
        here = needed(value)
        if here <= free_bytes:
            last, last_bytes = fits, fits_bytes
            fits, fits_bytes = value, here
        else:
            beyond, beyond_bytes = value, here
        if beyond - fits <= 1 + fits // _CLOSE_ENOUGH:
            break
        if beyond_bytes and fits:
            guess = fits + round((free_bytes - fits_bytes) / (beyond_bytes - fits_bytes) * (beyond - fits))
            # A little further, so the next value is on the other side and closes the gap.
            guess += max(1, guess // (2 * _CLOSE_ENOUGH)) if here <= free_bytes else 0
        elif beyond_bytes:
            guess = 1 if value <= 8 else value // 4
        elif last:
            slope = (fits_bytes - last_bytes) / (fits - last)
            guess = fits + int((free_bytes - fits_bytes) / slope) + 1 if slope > 0 else upper
        else:
            guess = min(2 * value, upper)
        value = max(fits + 1, min(guess, beyond - 1))
    return fits or None
