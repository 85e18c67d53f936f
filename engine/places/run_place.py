"""The places where a run may train: their devices, and the settings that a place fills in before the start."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import DatasetReport, RowLengths
from loratory.engine.errors import DeviceError, MemoryUnknownError
from loratory.engine.hardware.device import Device
from loratory.engine.hardware.devices import device_options
from loratory.engine.memory.estimate import GIB
from loratory.engine.models.shape import ModelShape
from loratory.engine.places.huggingface_jobs import account as hub_account
from loratory.engine.places.slurm.place import ClusterPlace, JobResources
from loratory.engine.runs import prediction
from loratory.engine.runs.summary import RunSummary

Flavors = Callable[[], Sequence[hub_account.Flavor]]  # asks for the hardware that Hugging Face rents
Options = tuple[tuple[Device, ...], ...]  # every set of devices that a run may get, the best first


class RunPlace(ABC):
    """One value of `run.where`."""

    name: ClassVar[str]
    label: ClassVar[str]  # for people
    starts: ClassVar[str]  # where a run starts, in a sentence
    how_to_choose: ClassVar[str] = ""  # the device, where the place cannot

    @abstractmethod
    def options(self, config: RunConfig) -> Options:
        """Return the devices that a run may get there.

        Raises:
            EngineError: If it can get none, or the place cannot be asked.
        """

    def is_chosen(self, config: RunConfig) -> bool:  # noqa: ARG002
        """Return whether a run names its device, or gets the first one."""
        return True

    def suitable(
        self, options: Options, config: RunConfig, shape: ModelShape, rows: RowLengths | None = None
    ) -> Options:
        """Return those that the place would give a run of this model on these rows.

        Where it names none, that is the first one whose memory covers the 90% upper bound.

        Raises:
            DeviceError: If none is large enough.
        """
        if self.is_chosen(config):
            return options
        try:
            needs = [(option, prediction.needs_of(shape, config, option, rows)[0].needed_bytes) for option in options]
        except MemoryUnknownError as error:
            what = "The memory that this model needs is not known, so its hardware cannot be chosen."
            raise DeviceError(what, self.how_to_choose) from error
        fits = [option for option, need in needs if need <= option[0].total_bytes]
        if not fits:
            ((largest,), need) = max(needs, key=lambda option_need: option_need[0][0].total_bytes)
            raise DeviceError(
                f"This run may need {need / GIB:.1f} GiB, and {largest.name}, the largest GPU of one job, has "
                f"{largest.total_bytes / GIB:.1f}.",
                "See `loratory estimate` for what would make it fit: often nf4, shorter rows or checkpointing.",
            )
        return (fits[0],)

    def complete(self, config: RunConfig, device: Device, shape: ModelShape, report: DatasetReport) -> RunConfig:  # noqa: ARG002
        """Return the configuration with the settings that the place fills in."""
        return config


class ThisMachine(RunPlace):
    """The devices of this machine, shared by its queue."""

    name = "local"
    label = "This machine"
    starts = "on this machine"

    def __init__(self, devices: Callable[[], Sequence[Device]]) -> None:
        self._devices = devices

    def options(self, config: RunConfig) -> Options:
        return device_options(tuple(self._devices()), config.run)


class HuggingFaceJobs(RunPlace):
    """Machines of Hugging Face, one device each."""

    name = "jobs"
    label = "Hugging Face Jobs"
    starts = "on Hugging Face Jobs"
    how_to_choose = "Name it in jobs.flavor, such as l4x1."

    def __init__(self, flavors: Flavors) -> None:
        self._flavors = flavors

    def options(self, config: RunConfig) -> Options:
        flavors = self._flavors()
        if not config.jobs.flavor:
            kind = "cpu" if config.run.devices == "cpu" else "cuda"
            return tuple((flavor.device,) for flavor in flavors if flavor.device.kind == kind)
        choice = hub_account.flavor_named(flavors, config.jobs.flavor)
        if choice is None:
            there = ", ".join(flavor.name for flavor in flavors)
            raise DeviceError(
                f"Hugging Face has no hardware {config.jobs.flavor} with one GPU.",
                f"Set jobs.flavor to one of {there}.",
            )
        return ((choice.device,),)

    def is_chosen(self, config: RunConfig) -> bool:
        return bool(config.jobs.flavor)

    def complete(self, config: RunConfig, device: Device, shape: ModelShape, report: DatasetReport) -> RunConfig:
        flavor = next(flavor for flavor in self._flavors() if flavor.device == device)
        plan, hours = prediction.plan_run(config.training, report), config.jobs.limit_hours
        if hours is None and plan is not None:
            hours = hub_account.estimate_limit_hours(flavor, shape.num_parameters, plan.seen_tokens)
        jobs = config.jobs.model_copy(
            update={"flavor": flavor.name, "limit_hours": hours or hub_account.DEFAULT_LIMIT_HOURS}
        )
        return config.model_copy(update={"jobs": jobs})


class SlurmCluster(RunPlace):
    """The nodes of a cluster that shares the home, as its admin described them."""

    name = "slurm"
    label = "Slurm cluster"
    starts = "on the Slurm cluster"
    how_to_choose = "Name its type in slurm.gpu_type."

    def __init__(self, cluster: Callable[[], ClusterPlace], earlier: Callable[[], Iterable[RunSummary]]) -> None:
        self._cluster = cluster
        self._earlier = earlier

    def options(self, config: RunConfig) -> Options:
        return tuple((device,) for device in self._cluster().devices_for(config))

    def is_chosen(self, config: RunConfig) -> bool:
        return bool(config.slurm.gpu_type) or config.run.devices == "cpu"

    def complete(self, config: RunConfig, device: Device, shape: ModelShape, report: DatasetReport) -> RunConfig:
        """Fill in the type of GPU, RAM and time limit from our own estimate.

        The time is that of an earlier run there, or else of the arithmetic. A run that needs longer than the cluster's own
        limit continues as another job.
        """
        cluster, settings = self._cluster(), config.slurm
        with_gpu_type = settings.model_copy(update={"gpu_type": device.name if device.kind == "cuda" else ""})
        job = JobResources.from_config(config.model_copy(update={"slurm": with_gpu_type}), cluster)
        processes, plan, hours = max(1, job.gpus), prediction.plan_run(config.training, report), settings.limit_hours
        if hours is None and plan is not None:
            tflops = prediction.tflops_of(device) * processes * job.nodes
            by_flops = prediction.estimated_hours(shape.num_parameters, plan.seen_tokens, tflops)
            by_history = prediction.measured_hours(config, plan, job.label, self._earlier())
            hours = prediction.in_half_hours(by_history or by_flops, cluster.limit_hours)
        memory_gib = settings.memory_gib
        if memory_gib is None:
            with contextlib.suppress(MemoryUnknownError):  # then it is the cluster's own figure
                memory_gib = prediction.host_memory_bytes(shape, config, device, processes, report.row_lengths) / GIB
        slurm = with_gpu_type.model_copy(update={"memory_gib": memory_gib, "limit_hours": hours})
        return config.model_copy(update={"slurm": slurm})
