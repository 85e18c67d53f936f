"""Datasets of the Hub that were opened for a preview, kept for the next one: opening asks the Hub several times."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from engine.config.dataset import DatasetConfig
from engine.data.examine import DatasetReader, Renderer
from engine.data.source_name import is_on_hub

_KEPT = 4
_KEPT_SECONDS = 300.0  # a branch of a dataset may move; an address that the Hub signed is good for longer


class _Opened(NamedTuple):
    reader: DatasetReader
    since: float


class OpenReaders:
    """The last few readers whose rows all come from the Hub; what is here is opened each time, for it may change.

    Args:
        open_reader: Opens a dataset without a renderer.
        clock: Of seconds.
    """

    def __init__(
        self, open_reader: Callable[[DatasetConfig], DatasetReader], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._open = open_reader
        self._clock = clock
        self._opened: OrderedDict[str, _Opened] = OrderedDict()

    def get(self, config: DatasetConfig, renderer: Renderer | None) -> DatasetReader:
        """Return a reader for this dataset and renderer.

        Raises:
            DatasetError: If it has to be opened, and cannot be.
        """
        if not all(map(is_on_hub, (config.source, *config.mix))):
            return self._open(config).with_renderer(renderer)
        key = config.model_dump_json(exclude={"eval_fraction", "max_samples"})  # which say nothing of single rows
        known = self._opened.pop(key, None)
        if known is None or self._clock() - known.since > _KEPT_SECONDS:
            known = _Opened(self._open(config), self._clock())
        self._opened[key] = known
        while len(self._opened) > _KEPT:
            self._opened.popitem(last=False)
        return known.reader.with_renderer(renderer)
