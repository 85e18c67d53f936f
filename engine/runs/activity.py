"""The activity that a worker reports itself, for supervisors that cannot see its process."""

import contextlib
import threading
from collections.abc import Iterator

from pydantic import BaseModel

from engine.files import read_model
from engine.processes.liveness import ProcessIdentity
from engine.runs.run import RunFolder

_REPORT_SECONDS = 30.0  # a tenth of the silence after which an idle worker counts as hung


class _Figures(BaseModel, frozen=True):
    attempt: int
    cpu_seconds: float


@contextlib.contextmanager
def reported_activity(folder: RunFolder, attempt: int, every_seconds: float = _REPORT_SECONDS) -> Iterator[None]:
    """Report this process's CPU time in the run's folder from a thread while the block runs."""
    is_over = threading.Event()

    def report() -> None:
        while not is_over.wait(every_seconds):
            seconds = ProcessIdentity.current().cpu_seconds()
            # In place and without fsync: it is written twice a minute, and a torn figure is read again.
            with contextlib.suppress(OSError):
                folder.activity.write_text(_Figures(attempt=attempt, cpu_seconds=seconds or 0.0).model_dump_json())

    thread = threading.Thread(target=report, name="activity", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class ReportedActivity:
    """The activity of a worker on another machine, where pids and CPU time of this one mean nothing."""

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self._folder = folder
        self._attempt = attempt

    def is_suspended(self) -> bool:
        """Whether it is stopped; not seen from here, and then it uses no processor time."""
        return False

    def cpu_seconds(self) -> float | None:
        """Processor time that it reported last; None where it has not yet."""
        figures = read_model(self._folder.activity, _Figures)
        return figures.cpu_seconds if figures is not None and figures.attempt == self._attempt else None
