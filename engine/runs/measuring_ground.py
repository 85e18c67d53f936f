"""Where measured steps are taken: run folders that no supervisor looks after, and that are gone when nobody measures."""

import secrets
import shutil
from dataclasses import dataclass

from engine.errors import StorageError
from engine.paths import LoratoryHome
from engine.processes.identity import end_group
from engine.processes.lock import FileLock
from engine.runs.run import RUN_VARIABLE, Run, RunFolder

_OWNER = "measurements"
_LOCK = "measuring.lock"  # beside the worker's own


@dataclass(frozen=True)
class MeasuringPlace:
    """A run folder for one measurement; whoever measures holds its lock for life."""

    run: Run
    lock: FileLock

    def clear(self) -> None:
        """Remove everything."""
        self.lock.release()
        shutil.rmtree(self.run.folder.path, ignore_errors=True)


class MeasuringGround:
    """The run folders of measurements: as deep below the home as those of runs, and not among them.

    Args:
        home: The Loratory home.
    """

    def __init__(self, home: LoratoryHome) -> None:
        self._folder = home.cache / _OWNER
        self._guard_path = home.server / "measurements.lock"  # nothing is swept between being made and being locked

    def make(self) -> MeasuringPlace:
        """Make an empty run folder that stays until it is cleared, or until the process that asks has ended.

        Raises:
            StorageError: If the home cannot be written.
        """
        run_id = f"measurement-{secrets.token_hex(6)}"
        folder = RunFolder(self._folder / run_id)
        with FileLock(self._guard_path):
            lock = FileLock(folder.path / _LOCK)
            lock.acquire()  # makes the folder as well
            try:
                folder.control.mkdir(mode=0o700)
            except OSError as error:
                lock.release()
                raise StorageError(
                    f"A folder for the measurement cannot be made ({error.strerror}).",
                    "Free some space, or check LORATORY_HOME.",
                ) from error
        return MeasuringPlace(Run(id=run_id, owner=_OWNER, folder=folder), lock)

    def sweep(self) -> None:
        """End and remove what measurements left whose process is gone.

        Raises:
            StorageError: If the home cannot be written.
        """
        if not self._folder.is_dir():
            return
        with FileLock(self._guard_path):
            for path in list(self._folder.iterdir()):
                if not FileLock(path / _LOCK).is_held_by_another():
                    _end_worker(RunFolder(path))
                    shutil.rmtree(path, ignore_errors=True)


def _end_worker(folder: RunFolder) -> None:
    worker = folder.read_worker()
    if worker is not None and worker.is_of_this_boot():
        worker.kill()
        end_group(worker.process_group, (RUN_VARIABLE, folder.path.name))
