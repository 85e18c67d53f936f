"""Problems of single runs and owners: logged once, and kept from stopping the rest."""

import contextlib
import logging
from collections.abc import Iterator

from engine.errors import EngineError

_log = logging.getLogger(__name__)


class ProblemLog:
    """Logs what goes wrong with a run or an owner, each problem once, and keeps it from stopping the rest."""

    def __init__(self) -> None:
        self._logged: dict[str, dict[str, str]] = {}  # by run or owner, and by what was tried

    def report(self, about: str, text: str, tried: str = "") -> None:
        """Log what went wrong, unless it was the last problem with the same attempt at the same thing."""
        logged = self._logged.setdefault(about, {})
        if logged.get(tried) != text:
            _log.error(text)
        logged[tried] = text

    @contextlib.contextmanager
    def guard(self, about: str, what: str) -> Iterator[None]:
        """Continue after the block whatever goes wrong in it; it is logged as `about what: why`."""
        try:
            yield
        except (EngineError, OSError) as error:
            self.report(about, f"{about} {what}: {error}", tried=what)

    def forget(self, about: str) -> None:
        """Forget what was logged about a run that is gone."""
        self._logged.pop(about, None)
