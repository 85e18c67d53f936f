"""Where a process trains: its device, its rank among several processes, and the precision that suits the device."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, get_args

import torch
import torch.distributed as distributed
from torch.nn import functional
from transformers import BitsAndBytesConfig

from loratory.engine.config.rules import DtypeName, choose_compute_dtype
from loratory.engine.config.run import ModelConfig, RunConfig
from loratory.engine.errors import DeviceError
from loratory.engine.hardware.cuda import driver_version, list_cuda_devices, load_nvml, query_driver
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import list_devices
from loratory.engine.hardware.libraries import TorchBuild, installed_torch
from loratory.engine.hardware.processor import list_apple_gpus, memory_now
from loratory.engine.models.families.base import ImageFamily
from loratory.engine.paths import LoratoryHome

_Result = TypeVar("_Result")
_DECIDED, _FAILED = b"+", b"-"


class MainProcessFailedError(Exception):
    """The first process failed while this one waited for it, and reports the cause for the whole run."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among those, one for each device, that a launcher (Accelerate, torchrun, Slurm) started.

    Only the first reads requests and writes files and events; all make the same decisions.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "ProcessGroup":
        """Read what launchers set."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have come this far."""
        if self.world_size > 1:
            distributed.barrier()

    def broadcast_from_main(self, decide: Callable[[], str]) -> str:
        """Return in every process what `decide` returns in the first, which alone calls it.

        Raises:
            MainProcessFailedError: In other processes, if `decide` failed in the first, where its own error continues.
        """
        if self.world_size == 1:
            return decide()
        if not self.is_main:
            outcome = self.gather(_FAILED)[0]  # what other processes give is not read
            if not outcome.startswith(_DECIDED):
                raise MainProcessFailedError
            return outcome.removeprefix(_DECIDED).decode()
        try:
            value = decide()
        except BaseException:
            with contextlib.suppress(Exception):  # the cause is what counts; a process may have ended
                self.gather(_FAILED)
            raise
        self.gather(_DECIDED + value.encode())
        return value

    def main_process_first(self, act: Callable[[], _Result]) -> _Result:
        """Call a function that makes files in the first process, then in the other ones, which find the files.

        Raises:
            MainProcessFailedError: In the other ones, if it failed in the first.
        """
        results: list[_Result] = []

        def decide() -> str:
            results.append(act())
            return ""

        self.broadcast_from_main(decide)
        return results[0] if results else act()

    def largest(self, count: int) -> int:
        """Return the largest count of any process; all must call this at the same point."""
        if self.world_size == 1:
            return count
        votes = torch.tensor(count, device=self._device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
        return int(votes)

    def gather(self, value: bytes) -> list[bytes]:
        """Return the value of each process, by rank. As bytes: torch's way to gather objects would unpickle them."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(value), dtype=torch.uint8).to(self._device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.world_size)]
        distributed.all_gather(sizes, torch.tensor([own.numel()], device=self._device))
        lengths = [int(size) for size in sizes]
        padded = functional.pad(own, (0, max(lengths) - own.numel()))
        buffers = [torch.empty_like(padded) for _ in lengths]
        distributed.all_gather(buffers, padded)
        return [entry[:length].cpu().numpy().tobytes() for entry, length in zip(buffers, lengths, strict=True)]

    @property
    def _device(self) -> str:
        return "cuda" if distributed.get_backend() == "nccl" else "cpu"


SINGLE_PROCESS = ProcessGroup()


@dataclass(frozen=True)
class Placement:
    """Where this process trains, and as which of how many."""

    device: Device  # the first of `spread`, where layers are spread
    torch_device: torch.device
    group: ProcessGroup = SINGLE_PROCESS
    layer_devices: tuple[Device, ...] = ()  # devices that one model's layers are divided among, as torch numbers them
    sharded: bool = False  # the processes of the group have a share of each weight

    @property
    def devices(self) -> tuple[Device, ...]:
        """Return the devices that hold the model."""
        return self.layer_devices or (self.device,)

    @property
    def torch_indexes(self) -> tuple[int, ...]:
        """Return the numbers of its CUDA devices as torch has them; none on other devices."""
        if self.torch_device.type != "cuda":
            return ()
        return tuple(range(len(self.layer_devices))) or (self.torch_device.index or 0,)

    @property
    def device_name(self) -> str:
        """Return the names of its devices, for people."""
        return " + ".join(device.name for device in self.devices)


def choose_placement(config: RunConfig) -> Placement:
    """Return the device that this process sees, and its rank where a launcher started several.

    Raises:
        DeviceError: If torch cannot use the GPU that the run has, if layers are to be spread over more GPUs than this process
            sees, or by several processes.
    """
    group = ProcessGroup.from_environment()
    sharded = config.run.fsdp != "none" and group.world_size > 1
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    devices = list_devices()
    processor = next(device for device in devices if device.kind == "cpu")
    gpus = in_torch_order([device for device in devices if device.kind == "cuda"])
    if config.run.devices != "cpu":
        require_usable(gpus, names_gpus=config.run.devices != "auto")
    if torch.cuda.is_available() and config.run.devices != "cpu":
        if config.run.spread_over > 1:
            return _split_layers(gpus, config.run.spread_over, group)
        # The supervisor hides every GPU but ours, so torch's first is the first that is listed.
        device = gpus[local_rank] if local_rank < len(gpus) else _unlisted_gpu(local_rank)
        return Placement(device, torch.device("cuda", local_rank), group, sharded=sharded)
    if torch.backends.mps.is_available() and config.run.devices != "cpu":
        # The memory that Metal recommends for one program; not every torch has it.
        recommended_max = getattr(torch.mps, "recommended_max_memory", None)
        most = int(recommended_max()) if recommended_max is not None else None
        (apple,) = list_apple_gpus(memory_now(), most) or (processor,)
        return Placement(apple, torch.device("mps"), group)
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", group.world_size))  # on this machine
    torch.set_num_threads(max(1, min(torch.get_num_threads(), processor.cores // neighbours)))
    return Placement(processor, torch.device("cpu"), group, sharded=sharded)


def skipped_device_notes(config: RunConfig, placement: Placement, home: LoratoryHome) -> tuple[str, ...]:
    """Return why `auto` skipped each GPU that torch cannot use, where it chose the processor."""
    if config.run.devices != "auto" or placement.torch_device.type != "cpu":
        return ()
    gpus = list_cuda_devices(load_nvml(), memory_now(), installed_torch(home), hidden_too=True)
    return tuple(f"{gpu.obstacle.what} {gpu.obstacle.fix}" for gpu in gpus if gpu.obstacle is not None)


def in_torch_order(gpus: Sequence[Device]) -> list[Device]:
    """Return GPUs as torch numbers them: in the order of CUDA_VISIBLE_DEVICES where it is set, not that of `nvidia-smi`."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]

    def position(gpu: Device) -> int:
        matches = (name == str(gpu.index) or (name and gpu.uuid.startswith(name)) for name in names)
        return next((position for position, is_match in enumerate(matches) if is_match), gpu.index)

    return sorted(gpus, key=position)


def require_usable(gpus: Sequence[Device], *, names_gpus: bool) -> None:
    """Refuse to train on the processor where there is a GPU, which torch would do silently.

    `gpus` are those that the driver lists and CUDA_VISIBLE_DEVICES includes; `names_gpus` requires at least one.

    Raises:
        DeviceError: If torch cannot use them.
    """
    version, cuda, visible = str(torch.__version__), torch.version.cuda, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if torch.cuda.is_available():
        build = TorchBuild(version, cuda, tuple(torch.cuda.get_arch_list()))
        for gpu in gpus:
            obstacle = build.obstacle(gpu.name, gpu.capability, None) if cuda and gpu.capability is not None else None
            if obstacle is not None:
                raise DeviceError(obstacle.what, obstacle.fix)
        return
    nvml = load_nvml()
    if gpus:
        known = gpus[0].obstacle
        if known is not None:
            raise DeviceError(known.what, known.fix)
        driver = query_driver(nvml, lambda: driver_version(nvml))
        raise DeviceError(
            f"PyTorch {version} (CUDA {cuda or 'none'}) cannot use {gpus[0].name}, which NVIDIA's driver "
            f"{driver.version if driver is not None else '(version unknown)'} lists.",
            f"Run `nvidia-smi` here, and check that CUDA_VISIBLE_DEVICES ({visible or 'not set'}) is right; then restart or "
            "reinstall the driver, or set run.devices to cpu.",
        )
    # An empty CUDA_VISIBLE_DEVICES, -1 or NoDevFiles hides all GPUs on purpose.
    is_named = visible[:1].isdigit() or visible.startswith(("GPU-", "MIG-"))
    count = query_driver(nvml, nvml.nvmlDeviceGetCount) if nvml is not None and is_named else 0
    if names_gpus or count:
        what = f"This process was given a GPU and sees none: CUDA_VISIBLE_DEVICES is {visible or 'not set'}."
        raise DeviceError(what, "Correct CUDA_VISIBLE_DEVICES, or set run.devices to cpu.")


def _split_layers(gpus: Sequence[Device], count: int, group: ProcessGroup) -> Placement:
    if group.world_size > 1:
        what = f"run.device_map divides layers within one process, and a launcher started {group.world_size} of them."
        raise DeviceError(what, "Start one process, or set run.device_map to none, so each process has a whole model.")
    if len(gpus) < count:
        what = f"run.devices names {count} GPUs to divide the layers among; this process sees {len(gpus)}."
        raise DeviceError(what, "Name fewer GPUs, or let this process see all of them (CUDA_VISIBLE_DEVICES).")
    layer_devices = tuple(gpus[:count])
    # A dtype that one of them lacks is used on none.
    first = replace(layer_devices[0], has_fast_bfloat16=all(gpu.has_fast_bfloat16 for gpu in layer_devices))
    return Placement(first, torch.device("cuda", 0), group, layer_devices)


def _unlisted_gpu(index: int) -> Device:
    name = torch.cuda.get_device_properties(index).name
    free, total = torch.cuda.mem_get_info(index)
    return Device("cuda", index, name, total, free, torch.cuda.is_bf16_supported(including_emulation=False))


_DTYPES: Mapping[DtypeName, torch.dtype] = {name: getattr(torch, name) for name in get_args(DtypeName)}


@dataclass(frozen=True)
class TrainingDtypes:
    """Dtypes of weights and computation. Trained weights are always float32, and so is the optimizer's state."""

    compute: torch.dtype  # of matrix products and of what passes between layers
    frozen: torch.dtype  # of weights that are not trained and not quantized

    @property
    def needs_loss_scaling(self) -> bool:
        """Return whether gradients underflow unless the loss is scaled up."""
        return self.compute is torch.float16

    @property
    def compute_name(self) -> DtypeName:
        """Return the dtype of computation as settings and events name it."""
        return next(name for name, dtype in _DTYPES.items() if dtype is self.compute)


def choose_precision(config: RunConfig, device: Device, checkpoint_dtype: str | None = None) -> TrainingDtypes:
    """Choose the precision of a run by its settings and device.

    A resumed run continues in `checkpoint_dtype` wherever the device computes in it: another rounding is another
    trajectory.
    """
    setting = config.model.compute_dtype
    if setting == "auto":
        setting = next((name for name in _DTYPES if name == checkpoint_dtype and _trains_in(name, device)), setting)
    compute = _DTYPES[choose_compute_dtype(setting, device.kind, has_fast_bfloat16=device.has_fast_bfloat16)]
    return TrainingDtypes(compute, torch.float32 if config.adapter.traits.trains_all else compute)


def _trains_in(name: DtypeName, device: Device) -> bool:
    """Return whether a device computes in a dtype at all, even if slowly."""
    if name == "bfloat16":
        return device.has_fast_bfloat16 or device.kind == "cpu"
    return name == "float32" or device.kind != "cpu"


def resumed_notes(config: RunConfig, device: Device, checkpoint_dtype: str | None) -> tuple[str, ...]:
    """Return notes for a person where a resumed run cannot continue in its precision."""
    now = choose_precision(config, device, checkpoint_dtype).compute_name
    if config.model.compute_dtype != "auto" or checkpoint_dtype in (None, now):
        return ()
    return (
        f"This run began in {checkpoint_dtype}, which this device does not train in; it continues in {now}, and its losses "
        "may differ slightly.",
    )


def apple_notes(config: RunConfig, device: Device) -> tuple[str, ...]:
    """Return notes for a person about a run on Apple's GPU; none on other devices."""
    if device.kind != "mps" or device.has_fast_bfloat16 or config.model.compute_dtype != "auto":
        return ()
    return (
        "bfloat16 on Apple's GPU needs macOS 14, so this run computes in float32, which takes twice the memory; "
        "model.compute_dtype float16 takes half of it and is less exact.",
    )


def quantization_of(
    model: ModelConfig, compute: torch.dtype, family: ImageFamily | None = None, *, sharded: bool = False
) -> BitsAndBytesConfig | None:
    """Return what `from_pretrained` takes as `quantization_config`; None for weights that are not quantized.

    4-bit weights are unpacked into the dtype `compute` of matrix products. To be sharded, they are packed into numbers of
    that dtype, for FSDP2 divides floating-point numbers alone. What sees images is not quantized.
    """
    if model.quantization == "none":
        return None
    unquantized = None if family is None else ["lm_head", family.tower, *family.projectors]
    if model.quantization == "int8":
        # It logs that inputs are cast to float16, in each layer of each pass: 200 lines a step.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantized)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute if sharded else None,
        llm_int8_skip_modules=unquantized,  # for 4 bits as well
    )
