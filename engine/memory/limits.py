"""The largest value of a setting whose need fits, found with few estimates."""

from collections.abc import Callable

_MOST_ESTIMATES = 12
_CLOSE_ENOUGH = 128  # a limit is found when it is known to one part in so many


def largest_that_fits(needed: Callable[[int], int], free_bytes: int, start: int, upper: int) -> int | None:
    """Search by interpolation; what is returned does fit, and one part in 128 more would not.

    Need grows steadily and the faster the larger the value, so the chord between a value that fits and one that does
    not lies above it: where the chord meets what is free, the value still fits.

    Args:
        needed: Bytes for a value.
        free_bytes: What there is.
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
            # A little further, so that the next value is on the other side and closes the gap.
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
