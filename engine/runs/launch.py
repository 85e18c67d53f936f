"""Starting a run: checked first, made once, and left to the supervisor."""

from engine.config.run import RunConfig
from engine.runs.preflight import OnProgress, Preflight
from engine.runs.run import Run
from engine.runs.store import RunStore


class Launcher:
    """Files runs into the queue.

    Args:
        store: Where the run is made.
        preflight: What is checked before.
    """

    def __init__(self, store: RunStore, preflight: Preflight) -> None:
        self._store = store
        self._preflight = preflight

    def start(
        self,
        config: RunConfig,
        key: str | None = None,
        *,
        copied_from: str | None = None,
        on_progress: OnProgress = lambda _: None,
    ) -> Run:
        """Check a configuration and put it into the queue; its supervisor starts it when its device is free.

        Args:
            config: What to train.
            key: Names this request. A request that comes twice, by a double click, from two tabs or after a lost
                connection, starts one run; the later calls return it.
            copied_from: Id of the run whose configuration this one began as.
            on_progress: Told in words what is being checked.

        Raises:
            ConfigError: Lists every setting that cannot work.
            DeviceError: If the device is not there, or too small by any estimate.
            ModelError: If the model cannot be found, reached or read.
            DatasetError: If the dataset cannot be read, or teaches nothing.
            StorageError: If the run's folder cannot be made.
        """
        existing = None if key is None else self._store.find_by_key(key)
        if existing is not None:
            return existing
        checked = self._preflight.check(config, on_progress)
        provenance = checked.provenance.model_copy(update={"copied_from": copied_from})
        return self._store.create(checked.config, provenance, key, checked.report)
