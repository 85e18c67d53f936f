"""What goes wrong with one run or one owner: said once, and keeping no other from its turn."""

import contextlib
import logging
from collections.abc import Iterator

from engine.errors import EngineError

_log = logging.getLogger(__name__)


class Complaints:
    """Remembers what was said about each run or owner, so that nothing is repeated twice a second."""

    def __init__(self) -> None:
        self._said: dict[str, dict[str, str]] = {}  # by whom it concerns, and by what was tried

    def say(self, about: str, text: str, tried: str = "") -> None:
        """Log what went wrong, unless it was the last thing that was said of the same attempt at the same thing."""
        said = self._said.setdefault(about, {})
        if said.get(tried) != text:
            _log.error(text)
        said[tried] = text

    @contextlib.contextmanager
    def noting(self, about: str, what: str) -> Iterator[None]:
        """Go on after the block whatever goes wrong in it; it is logged as `about what: why`."""
        try:
            yield
        except (EngineError, OSError) as error:
            self.say(about, f"{about} {what}: {error}", tried=what)

    def forget(self, about: str) -> None:
        """It is gone."""
        self._said.pop(about, None)
