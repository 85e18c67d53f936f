"""NVIDIA GPUs, asked of the driver's own library (NVML), which needs no torch and starts no CUDA context.

A GPU that is cut into MIG instances is listed as these: CUDA gives a process one instance, never the whole GPU. Instance 2 of
GPU 1 has the index 202, which stays its own when other instances come and go.
"""

import contextlib
import importlib
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import psutil

from loratory.engine.hardware.device import FIRST_WITH_BFLOAT16, Device, MemoryNow
from loratory.engine.hardware.libraries import Driver, TorchBuild

Answer = TypeVar("Answer")

GPU_READINGS = ("gpu_utilization", "gpu_watts", "gpu_celsius")  # percent of the time, power, temperature

_READ_SECONDS = 1.0  # at least between two readings of a meter
_READING_SHARE = 0.001  # of the time, at most
_MIG_INDEXES = 100  # indexes that each GPU has for its instances; NVIDIA's largest has seven

Nvml = Any  # the module pynvml, which has no types


class _DeviceEntry(NamedTuple):
    """A GPU or a MIG instance, and what the GPU itself is called."""

    gpu: int
    gpu_uuid: str
    device: Device


def load_nvml() -> Nvml:
    """Return NVML's Python binding."""
    return importlib.import_module("pynvml")


def query_driver(nvml: Nvml, query: Callable[[], Answer]) -> Answer | None:
    """Query the driver between `nvmlInit` and `nvmlShutdown`; None where there is none, or it does not know."""
    try:
        nvml.nvmlInit()
        try:
            return query()
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return None


def device_handle(nvml: Nvml, index: int) -> Any:
    """Return NVML's handle of the device that `list_cuda_devices` gives this index."""
    if index < _MIG_INDEXES:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    gpu = nvml.nvmlDeviceGetHandleByIndex(index // _MIG_INDEXES - 1)
    return nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, index % _MIG_INDEXES)


def list_cuda_devices(
    nvml: Nvml, shared_memory: MemoryNow, torch: TorchBuild | None = None, *, hidden_too: bool = False
) -> tuple[Device, ...]:
    """Return every GPU that this process may use, in the order of `nvidia-smi`; none where there is no driver.

    Args:
        shared_memory: RAM, for GPUs that have no memory of their own and share it with the processor.
        torch: Decides which of them have an obstacle; None where that is of no interest.
        hidden_too: List those as well that CUDA_VISIBLE_DEVICES hides.
    """

    def describe_all() -> tuple[Device, ...]:
        indexes = range(nvml.nvmlDeviceGetCount())
        entries = [entry for index in indexes for entry in _entries_of(nvml, index, shared_memory)]
        devices = tuple(entry.device for entry in (entries if hidden_too else _visible(entries)))
        driver = driver_version(nvml) if devices else None
        return tuple(
            device
            if torch is None or device.capability is None
            else replace(device, obstacle=torch.obstacle(device.name, device.capability, driver))
            for device in devices
        )

    return query_driver(nvml, describe_all) or ()


def driver_version(nvml: Nvml) -> Driver | None:
    """Return the driver's version; None where it does not report it. Call it within `query_driver`."""
    try:
        version, cuda = nvml.nvmlSystemGetDriverVersion(), nvml.nvmlSystemGetCudaDriverVersion()
    except nvml.NVMLError:
        return None
    return Driver(version, (cuda // 1000, cuda % 1000 // 10))


def _entries_of(nvml: Nvml, index: int, shared_memory: MemoryNow) -> Iterator[_DeviceEntry]:
    """One GPU, or the MIG instances that it is cut into."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        most = nvml.nvmlDeviceGetMaxMigDeviceCount(handle) if _is_cut(nvml, handle) else 0
        if not most:
            yield _DeviceEntry(
                index, uuid, _describe(index, uuid, name, capability, _memory(nvml, handle, shared_memory))
            )
    except nvml.NVMLError:  # fallen off the bus, or not ours to see; the others still count
        return
    for number in range(most):
        with contextlib.suppress(nvml.NVMLError):  # numbers without an instance are usual
            instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            own, own_name = nvml.nvmlDeviceGetUUID(instance), nvml.nvmlDeviceGetName(instance)
            now = _memory(nvml, instance, shared_memory)
            own_index = (index + 1) * _MIG_INDEXES + number
            yield _DeviceEntry(index, uuid, _describe(own_index, own, own_name, capability, now))


def _is_cut(nvml: Nvml, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0])
    except nvml.NVMLError:  # most GPUs have no such mode
        return False


def _memory(nvml: Nvml, handle: Any, shared_memory: MemoryNow) -> MemoryNow:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return shared_memory
    return MemoryNow(int(memory.total), int(memory.free))


def _describe(index: int, uuid: str, name: str, capability: Sequence[int], now: MemoryNow) -> Device:
    major, minor = capability
    has_fast_bfloat16, name = (major, minor) >= FIRST_WITH_BFLOAT16, name.removeprefix("NVIDIA ")
    return Device("cuda", index, name, *now, has_fast_bfloat16, capability=(major, minor), uuid=uuid)


def _visible(entries: Sequence[_DeviceEntry]) -> Sequence[_DeviceEntry]:
    """Those that CUDA_VISIBLE_DEVICES lets programs use; CUDA reads it up to the first name that means nothing."""
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return entries
    indexes: set[int] = set()
    for name in setting.split(","):
        matches = {entry.device.index for entry in entries if _is_called(entry, name.strip())}
        if not matches:
            break
        indexes |= matches
    return [entry for entry in entries if entry.device.index in indexes]


def _is_called(entry: _DeviceEntry, name: str) -> bool:
    """Whether a name in CUDA_VISIBLE_DEVICES means this device: a GPU's number, or a UUID, which may be shortened.

    A GPU's own names mean its MIG instances as well. Old drivers called these MIG-GPU-<UUID>/<instance>/<instance>.

    Source: CUDA C++ Programming Guide, "CUDA Environment Variables"; NVIDIA MIG User Guide, "CUDA Device Enumeration".
    """
    if name.startswith("MIG-"):
        return entry.device.uuid.startswith(name)
    return name == str(entry.gpu) or (name.startswith("GPU-") and entry.gpu_uuid.startswith(name))


def energy_so_far_joules(devices: str, nvml: Nvml | None = None) -> float | None:
    """Joules that these GPUs have used since their driver was loaded; a run's share is the difference of two readings.

    GPUs are named as leases do: "cuda:0, cuda:1". None where there is no meter: for the processor, older GPUs, and slices
    of a shared one.

    Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption.
    """
    meter = nvml or load_nvml()
    indexes = [int(index) for index in re.findall(r"\bcuda:(\d+)\b", devices)]
    if not indexes:
        return None

    def joules() -> float:
        handles = [device_handle(meter, index) for index in indexes]
        millijoules = sum(meter.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles)
        return float(millijoules) / 1000

    return query_driver(meter, joules)


class GpuMeter:
    """Reads what GPUs, named as `list_cuda_devices` does, do and take, in less than a thousandth of the time."""

    def __init__(
        self, indexes: Sequence[int] = (), nvml: Nvml | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._indexes, self._nvml, self._clock = indexes, nvml or load_nvml(), clock
        self._due = -math.inf if indexes else math.inf  # by the clock

    def read(self) -> dict[str, float]:
        """Return mean utilization, power of all and highest temperature, as far as the driver reports them; {} until due.

        Source: NVML API reference, nvmlDeviceGetUtilizationRates, nvmlDeviceGetPowerUsage, nvmlDeviceGetTemperature.
        """
        nvml = self._nvml
        if self._clock() < self._due:
            return {}
        if self._due == -math.inf:
            query_driver(nvml, nvml.nvmlInit)  # once more, so the driver stays open
        began = self._clock()

        def query_all() -> dict[str, float]:
            handles = [device_handle(nvml, index) for index in self._indexes]
            queries: tuple[Callable[[], float], ...] = (
                lambda: statistics.fmean(nvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles),
                lambda: sum(map(nvml.nvmlDeviceGetPowerUsage, handles)) / 1000,
                lambda: max(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU) for handle in handles),
            )
            readings = {}
            for name, query in zip(GPU_READINGS, queries, strict=True):
                with contextlib.suppress(nvml.NVMLError):  # a MIG instance has no power of its own
                    readings[name] = float(query())
            return readings

        readings = query_driver(nvml, query_all) or {}
        self._due = began + max(_READ_SECONDS, (self._clock() - began) / _READING_SHARE)
        return readings


def gpu_process_bytes(index: int, nvml: Nvml | None = None) -> int | None:
    """Return the bytes that this process takes of a GPU that it has used; None where the driver does not report them.

    In a container the driver may count processes by numbers of the host. Where only one works on the GPU, it is this one.

    Source: NVML API reference, nvmlDeviceGetComputeRunningProcesses and nvmlProcessInfo_t.
    """
    programs = list_gpu_programs(index, nvml)
    ours = [program for program in programs if program.pid == os.getpid()] or (programs if len(programs) == 1 else ())
    return ours[0].bytes if ours else None


class GpuProgram(NamedTuple):
    """A process that computes on a GPU."""

    pid: int
    user: str  # empty where the system does not show it, as in a container
    bytes: int | None  # of the GPU's memory

    @property
    def description(self) -> str:
        """Such as `process 4711 of ada, 3.2 GiB`."""
        user = f" of {self.user}" if self.user else ""
        return f"process {self.pid}{user}" + (f", {self.bytes / 2**30:.1f} GiB" if self.bytes else "")


def list_gpu_programs(index: int, nvml: Nvml | None = None) -> tuple[GpuProgram, ...]:
    """Return the processes that compute on a GPU, those of other people and other programs included.

    Source: NVML API reference, nvmlDeviceGetComputeRunningProcesses: contexts for graphics do not count.
    """
    driver = nvml or load_nvml()
    processes = (
        query_driver(driver, lambda: driver.nvmlDeviceGetComputeRunningProcesses(device_handle(driver, index))) or ()
    )
    return tuple(
        GpuProgram(int(process.pid), _user_of(int(process.pid)), int(process.usedGpuMemory or 0) or None)
        for process in processes
    )


def _user_of(pid: int) -> str:
    try:
        return str(psutil.Process(pid).username())
    except (psutil.Error, KeyError, OSError):
        return ""
