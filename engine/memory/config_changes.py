"""Change settings of a configuration, and search for the largest value of one that fits."""

from collections.abc import Callable, Mapping

from engine.config.pairs import pair_problems
from engine.config.run import RunConfig
from engine.errors import Problem
from engine.hardware.device import Device
from engine.hardware.devices import device_problems

_MOST_ESTIMATES = 12
_CLOSE_ENOUGH = 128  # a limit is found when it is known to one part in so many


Value = str | int | float | bool
Changes = Mapping[str, Value]  # new values, each within the bounds of its field, by section.field


def with_changes(config: RunConfig, changes: Changes) -> RunConfig:
    """Copy a configuration with some settings changed.

    Whether the new values suit the other settings is not checked: see `new_problems`.
    """
    sections: dict[str, dict[str, Value]] = {}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = value
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
    )


def as_overrides(changes: Changes) -> tuple[str, ...]:
    """The same as a form and the command line take them: `section.field=value`."""
    lower = {name: str(value).lower() if isinstance(value, bool) else value for name, value in changes.items()}
    return tuple(f"{name}={value}" for name, value in lower.items())


def new_problems(config: RunConfig, changed_config: RunConfig, device: Device) -> list[Problem]:
    """Why `changed_config` would be refused on this device, beyond what `config` is refused for already."""
    before = {problem.field for problem in _problems(config, device)}
    return [problem for problem in _problems(changed_config, device) if problem.field not in before]


def _problems(config: RunConfig, device: Device) -> list[Problem]:
    return [*pair_problems(config), *device_problems(config, device)]


def largest_that_fits(need: Callable[[int], int], free_bytes: int, start: int, upper: int) -> int | None:
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
        here = need(value)
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
