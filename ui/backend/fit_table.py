"""Which catalogue models fit the device of this machine, per method; estimated once, in the background."""

import logging
import threading
from collections.abc import Callable

from engine.config.methods.registry import DEFAULT_METHOD, FULL_FINE_TUNING
from engine.config.run import DatasetConfig, ModelConfig, RunConfig
from engine.errors import EngineError
from engine.hardware.device import Device
from engine.hardware.devices import list_devices
from engine.memory.compare import compare_rows
from engine.memory.result import Verdict
from engine.models.catalog import list_catalog
from engine.models.shape import ModelShape
from ui.backend.background import explained

_log = logging.getLogger(__name__)
_METHODS = (DEFAULT_METHOD.label, DEFAULT_METHOD.four_bit_label, FULL_FINE_TUNING.label)


class FitTable:
    """Verdicts for each catalogue model at the default settings on the best device of this machine.

    Args:
        shape_of: Returns a model's modules; called from a background thread.
        devices: Lists the devices; the one with the most memory of the best kind counts.
    """

    def __init__(
        self,
        shape_of: Callable[[ModelConfig], ModelShape],
        devices: Callable[[], tuple[Device, ...]] = list_devices,
    ) -> None:
        self._shape_of = shape_of
        self._devices = devices
        self._verdicts: dict[str, tuple[Verdict | None, ...]] = {}
        self._worker: threading.Thread | None = None
        self._is_done = False
        self._lock = threading.Lock()  # guards the three above: handlers of several pages, and the worker

    @property
    def methods(self) -> tuple[str, ...]:
        return _METHODS

    @property
    def device_name(self) -> str:
        device = self._device()
        return device.name if device is not None else "this computer"

    def verdicts(self, model_id: str) -> tuple[Verdict | None, ...]:
        """Return one verdict per method; None while it is not known, or cannot be. The first call starts the work."""
        with self._lock:
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="fit-table", daemon=True)
                self._worker.start()
            return self._verdicts.get(model_id, (None,) * len(_METHODS))

    def is_pending(self, model_id: str) -> bool:
        """Return whether the verdicts of a model are still to come."""
        with self._lock:
            return not self._is_done and model_id not in self._verdicts

    @property
    def progress(self) -> tuple[int, bool]:
        """How many models have verdicts, and whether these are all."""
        with self._lock:
            return len(self._verdicts), self._is_done

    def _device(self) -> Device | None:
        devices = [device for device in self._devices() if device.obstacle is None]
        return max(devices, key=lambda device: (device.kind == "cuda", device.total_bytes), default=None)

    def _work(self) -> None:
        try:
            device = self._device()
            if device is None:
                return
            for entry in sorted(list_catalog(), key=lambda entry: entry.parameters):
                verdicts = self._judge(ModelConfig(id=entry.id), device)
                with self._lock:
                    self._verdicts[entry.id] = verdicts
        except Exception as error:
            explained(error)
        finally:
            with self._lock:
                self._is_done = True

    def _judge(self, model: ModelConfig, device: Device) -> tuple[Verdict | None, ...]:
        try:
            config = RunConfig(model=model, dataset=DatasetConfig(source="-"))
            needs = compare_rows(self._shape_of(model), config, device, _METHODS)
        except EngineError as error:
            _log.warning("%s is left out of the fit table: %s", model.id, error.what)
            return (None,) * len(_METHODS)
        known = {need.method: need.verdict for need in needs}
        return tuple(known.get(method) for method in _METHODS)
