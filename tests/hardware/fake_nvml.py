"""NVIDIA's driver library with GPUs that are made up."""

from types import SimpleNamespace
from typing import NamedTuple

GIB = 1024**3
RTX_4090 = ("NVIDIA GeForce RTX 4090", (8, 9), 24, 21)
T4 = ("Tesla T4", (7, 5), 16, 15)
GTX_1080 = ("NVIDIA GeForce GTX 1080", (6, 1), 8, 8)


class FakeNvmlError(Exception):
    pass


class FakeNotSupportedError(FakeNvmlError):
    pass


class Instance(NamedTuple):
    """A MIG instance, its memory in GiB."""

    total: int
    free: int


class FakeNvml:
    """A driver with the given GPUs: (name, compute capability, total GiB, free GiB); None for one that is lost.

    Args:
        cards: The GPUs; memory None is not told, and "?" fails.
        driver: Off where no driver is loaded.
        cuda: The newest CUDA that it runs, as NVML counts: 12040 is 12.4.
        instances: MIG instances by their number, of each GPU in MIG mode.
        processes: GPU, pid and bytes of those that compute; None where the driver does not list them.
        readings: Utilization in percent, milliwatts and temperature of each GPU; None where it has no such sensor.
    """

    NVMLError = FakeNvmlError
    NVMLError_NotSupported = FakeNotSupportedError

    def __init__(self, *cards, driver=True, cuda=13000, instances=None, processes=None, readings=()):
        self.cards, self.driver, self.cuda, self.instances = cards, driver, cuda, instances or {}
        self.processes, self.readings = processes, readings
        self.open = 0

    def nvmlInit(self):  # noqa: N802
        if not self.driver:
            raise FakeNvmlError("driver not loaded")
        self.open += 1

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        if self.processes is None:
            raise FakeNotSupportedError("not supported")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for gpu, pid, used in self.processes if gpu == handle]

    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=self._reading(handle, 0), memory=1)

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._reading(handle, 1)

    def nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._reading(handle, 2)

    def _reading(self, handle, position):
        if self.readings[handle][position] is None:
            raise FakeNotSupportedError("not supported")
        return self.readings[handle][position]

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "550.54.15"

    def nvmlSystemGetCudaDriverVersion(self):  # noqa: N802
        return self.cuda

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if self.cards[index] is None:
            raise FakeNvmlError("GPU is lost")
        return index

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        if self.cards[handle][1] < (8, 0):
            raise FakeNotSupportedError("not supported")
        return [int(handle in self.instances), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, number):  # noqa: N802
        if number not in self.instances[handle]:
            raise FakeNvmlError("not found")
        return (handle, number)

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        if isinstance(handle, tuple):
            return f"{self.cards[handle[0]][0]} MIG {self._memory(handle)[0]}gb"
        return self.cards[handle][0]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return f"MIG-{handle[0]}-{handle[1]}" if isinstance(handle, tuple) else f"GPU-{handle}a5e-77"

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return self.cards[handle][1]

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        total, free = self._memory(handle)
        if total == "?":
            raise FakeNvmlError("unknown error")
        if total is None:
            raise FakeNotSupportedError("not supported")
        return SimpleNamespace(total=total * GIB, free=free * GIB, used=(total - free) * GIB)

    def _memory(self, handle):
        return self.instances[handle[0]][handle[1]] if isinstance(handle, tuple) else self.cards[handle][2:]
