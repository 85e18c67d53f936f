"""Free resources of a cluster and the expected start of a run, queried in the background."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from loratory.engine.config.run import RunConfig
from loratory.engine.errors import EngineError
from loratory.engine.places.slurm.commands import Slurm
from loratory.engine.places.slurm.discovery import free_gpus
from loratory.engine.places.slurm.place import ClusterPlace, JobResources
from loratory.engine.places.slurm.script import expected_start
from loratory.ui.backend.background import as_engine_error

_FRESH_SECONDS = 30.0


class Forecast(NamedTuple):
    """Slurm's answer."""

    free: Mapping[str, int] = {}  # GPUs of each type that no job has
    start: float | None = None  # in seconds since the epoch; None where Slurm makes no promise
    trouble: EngineError | None = None  # why it is not known


QueryCluster = Callable[[ClusterPlace, RunConfig], Forecast]


def query_cluster(place: ClusterPlace, config: RunConfig) -> Forecast:
    """Query Slurm, which may take as long as two of its commands may."""
    slurm = Slurm(place.command_seconds)
    free: Mapping[str, int] = {}
    try:
        free = free_gpus(slurm, place)
        return Forecast(free, expected_start(slurm, place, JobResources.from_config(config, place)))
    except EngineError as error:
        return Forecast(free, trouble=error)


class ClusterForecast:
    """Queries Slurm in its own thread, one query at a time, for the newest job."""

    def __init__(self, query: QueryCluster = query_cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._clock = clock
        self._lock = threading.Lock()  # guards what is below
        self._question: tuple[ClusterPlace, RunConfig] | None = None  # that was answered, or is being queried
        self._answered_at = 0.0
        self.latest: Forecast | None = None  # the newest answer
        self.is_querying = False

    def find(self, place: ClusterPlace, config: RunConfig) -> Forecast | None:
        """Return the known forecast of a job, and refresh it if missing or old; None while unknown."""
        question = place, config
        with self._lock:
            is_same = self._question == question
            if not self.is_querying and not (is_same and self._clock() - self._answered_at < _FRESH_SECONDS):
                if not is_same and self.latest is not None:  # what is free does not depend on the job
                    self.latest = Forecast(self.latest.free)
                self._question, self.is_querying = question, True
                threading.Thread(target=self._work, args=question, name="cluster-forecast", daemon=True).start()
            return self.latest

    def _work(self, place: ClusterPlace, config: RunConfig) -> None:
        try:
            answer = self._query(place, config)
        except Exception as error:
            answer = Forecast(trouble=as_engine_error(error))
        with self._lock:
            self.latest, self._answered_at, self.is_querying = answer, self._clock(), False
