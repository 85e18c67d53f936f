"""How busy a worker is, in its own figures: for supervisors that cannot look at its process."""

import contextlib
import threading
from collections.abc import Iterator

from pydantic import BaseModel

from engine.files import read_model
from engine.processes.liveness import ProcessIdentity
from engine.runs.run import RunFolder

_REPORT_SECONDS = 30.0  # a tenth of the silence after which a worker that computes nothing counts as hung


class _Figures(BaseModel, frozen=True):
    attempt: int
    cpu_seconds: float


@contextlib.contextmanager
def reported_activity(folder: RunFolder, attempt: int, every_seconds: float = _REPORT_SECONDS) -> Iterator[None]:
    """Let a thread write the processor time of this process into the run's folder while the block runs."""
    is_over = threading.Event()

    def report() -> None:
        while not is_over.wait(every_seconds):
            seconds = ProcessIdentity.current().cpu_seconds()
            # In place and without fsync: twice a minute, and a figure that was torn is read again.
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
    """Of a worker on another machine: a pid there, or processor time here, means nothing."""

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
