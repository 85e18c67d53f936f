"""Regular expressions that strangers or a person wrote, matched against names of modules within a limit on time."""

import re
import time
from collections.abc import Iterable

import regex

PLAIN_NAME = re.compile(r"[\w.-]+")  # matches itself alone, save that a dot stands for any character

_MAX_CHARACTERS = 2_000


class PatternError(Exception):
    """A pattern is not a regular expression, is too long, or takes too long; says which, to stand behind the pattern."""


class PatternMatcher:
    """Matches any number of patterns, all together within a limit: each may be harmless, and their number not.

    Args:
        seconds: Of computing, for all of them.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._ends = time.process_time() + seconds  # the clock of `regex` as well

    def matching(self, pattern: str, names: Iterable[str], *, whole: bool = True) -> list[str]:
        """Return the names that match.

        Args:
            pattern: A regular expression.
            names: Of modules.
            whole: Off where it is enough that the beginning of a name matches.

        Raises:
            PatternError: If the pattern is unusable.
        """
        if len(pattern) > _MAX_CHARACTERS:
            raise PatternError(f"has {len(pattern):,} characters; {_MAX_CHARACTERS:,} are the most")
        try:
            compiled = regex.compile(pattern)
            match = compiled.fullmatch if whole else compiled.match
            return [name for name in names if match(name, timeout=max(self._ends - time.process_time(), 0.001))]
        except regex.error as error:
            raise PatternError(f"is not a regular expression ({error})") from error
        except TimeoutError as error:
            raise PatternError("takes too long to match") from error
        except (RecursionError, MemoryError, OverflowError) as error:
            raise PatternError("is too deeply nested") from error


def shortened(pattern: str) -> str:
    """A pattern for a message."""
    return repr(pattern if len(pattern) <= 100 else f"{pattern[:99]}…")
