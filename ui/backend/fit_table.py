"""Which catalogue models fit the device of this machine, per method; estimated once, in the background."""

import logging
from collections.abc import Callable

from engine.config.methods.registry import DEFAULT_METHOD, FULL_FINE_TUNING
from engine.config.run import DatasetConfig, ModelConfig, RunConfig
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.hardware.devices import list_devices
from engine.memory.compare import compare_rows
from engine.memory.estimate import Verdict
from engine.models.catalog import list_catalog
from engine.models.shape import ModelShape
from ui.backend.background import BackgroundWork, FunctionJob

_log = logging.getLogger(__name__)
_METHODS = (DEFAULT_METHOD.label, DEFAULT_METHOD.four_bit_label, FULL_FINE_TUNING.label)
_KEY = "fits"

Verdicts = tuple[Verdict | None, ...]  # one per method; None while it is not known, or cannot be
_UNKNOWN: Verdicts = (None,) * len(_METHODS)


class FitTable:
    """Verdicts for each catalogue model at the default settings, on the device with the most memory of the best kind."""

    methods = _METHODS

    def __init__(
        self, shape_of: Callable[[ModelConfig], ModelShape], devices: Callable[[], tuple[Device, ...]] = list_devices
    ) -> None:
        self._shape_of = shape_of
        self._devices = devices
        self._verdicts: dict[str, Verdicts] = {}
        self._works: BackgroundWork[None] = BackgroundWork()

    @property
    def device_name(self) -> str:
        device = self._device()
        return device.name if device is not None else "this computer"

    def verdicts(self, model_id: str) -> Verdicts:
        """Return the verdicts on a model; the first call starts the work."""
        self._works.start_once(_KEY, "The fit table", FunctionJob(lambda _: self._judge_all()))
        return self._verdicts.get(model_id, _UNKNOWN)

    def is_pending(self, model_id: str) -> bool:
        """Return whether the verdicts of a model are still to come."""
        _, is_done = self.progress
        return not is_done and model_id not in self._verdicts

    @property
    def progress(self) -> tuple[int, bool]:
        """How many models have verdicts, and whether these are all."""
        work = self._works.find(_KEY)
        is_done = work is not None and not work.is_under_way
        return len(self._verdicts), is_done

    def _device(self) -> Device | None:
        devices = [device for device in self._devices() if device.obstacle is None]
        return max(devices, key=lambda device: (device.kind == "cuda", device.total_bytes), default=None)

    def _judge_all(self) -> None:
        device = self._device()
        if device is not None:
            for entry in sorted(list_catalog(), key=lambda entry: entry.parameters):
                self._verdicts[entry.id] = self._judge(ModelConfig(id=entry.id), device)

    def _judge(self, model: ModelConfig, device: Device) -> Verdicts:
        try:
            config = RunConfig(model=model, dataset=DatasetConfig(source="-"))
            needs = compare_rows(self._shape_of(model), config, device, _METHODS)
        except EngineError as error:
            _log.warning("%s is left out of the fit table: %s", model.id, error.what)
            return _UNKNOWN
        known = {need.method: need.verdict for need in needs}
        return tuple(known.get(method) for method in _METHODS)
