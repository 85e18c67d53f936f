"""Starting a run: checked first, made once, and left to the supervisor."""

from collections.abc import Sequence

from engine.config.run import RunConfig
from engine.runs.preflight import CheckedRun, OnProgress, Preflight
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

    def start_all(
        self,
        configs: Sequence[RunConfig],
        key: str,
        *,
        copied_from: str | None = None,
        on_progress: OnProgress = lambda _: None,
    ) -> list[Run]:
        """File several runs at once: all of them are checked before the first one is filed.

        Args:
            configs: In the order in which they shall run.
            key: Names this request, as for `start`.
            copied_from: Id of the run whose configuration they began as.
            on_progress: Told in words what is being checked.

        Raises:
            EngineError: As `start` does; then none of them was filed.
        """
        keys = [f"{key}/{number}" for number in range(len(configs))]
        known = {name: run for name in keys if (run := self._store.find_by_key(name)) is not None}
        checked: dict[str, CheckedRun] = {}
        for number, (name, config) in enumerate(zip(keys, configs, strict=True), start=1):
            if name not in known:
                checked[name] = self._preflight.check(config, _numbered(on_progress, number, len(configs)))
        for name, passed in checked.items():
            provenance = passed.provenance.model_copy(update={"copied_from": copied_from})
            known[name] = self._store.create(passed.config, provenance, name, passed.report)
        return [known[name] for name in keys]


def _numbered(on_progress: OnProgress, number: int, count: int) -> OnProgress:
    return lambda words: on_progress(f"Run {number} of {count}: {words}")
