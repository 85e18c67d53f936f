"""What a run needs, whether it fits, and what would make it fit: one estimate, for commands, Python and agents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import CheckProgress, DatasetReport, RowLengths
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.errors import EngineError
from loratory.engine.hardware.device import THIS_MACHINE, Device, known_device
from loratory.engine.hardware.devices import device_options, device_problems, list_devices
from loratory.engine.inspector.session import Inspector
from loratory.engine.memory.advice import Advice, advise
from loratory.engine.memory.compare import DeviceShare, MethodNeed, compare_methods, recommend, share_among
from loratory.engine.memory.estimate import GIB, Estimator, MemoryEstimate
from loratory.engine.models.shape import ModelShape
from loratory.engine.runs.prediction import RunPlan, estimated_hours, expected_judging, most_likely, plan_run, tflops_of
from loratory.engine.supervision.memory_measurement import config_of_rows


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs on the device that it would get."""

    config: RunConfig
    memory: MemoryEstimate
    advice: Advice  # what would make it fit, or use the room that is left
    methods: Sequence[MethodNeed]  # with the same settings
    plan: RunPlan | None  # steps and tokens; None where no rows were read
    most_hours: float | None  # that it is unlikely to exceed; None where no rows were read
    rows: dict[str, int] | None  # that the figures are about; None where they are about rows as long as `max_length`
    judging: str  # what judges of answers cost; empty without one
    refusals: Sequence[
        str
    ]  # for which a start would be refused, however much memory is free, and what could not be read
    shares: Sequence[DeviceShare]  # what each of several such devices needs
    shape: ModelShape
    device: Device
    lengths: RowLengths | None  # of the rows, where they were read

    @property
    def fits(self) -> bool:
        """Whether the free memory covers what nine runs in ten stay below."""
        return self.memory.verdict == "fits"

    def largest_step(self) -> tuple[RunConfig, MemoryEstimate]:
        """Return the settings of the largest step, to measure it, and what it needs."""
        of_rows = config_of_rows(Estimator(self.shape, self.device, self.lengths), self.config)
        return of_rows, Estimator(self.shape, self.device).estimate_step(of_rows)

    def as_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        result = self.memory
        figures = "components_bytes allocated_bytes reserved_bytes expected_bytes needed_bytes phase verdict".split()
        return {
            "parameters": result.parameters,
            **{name: getattr(result, name) for name in figures},
            "device": {"name": result.device_name, "free_bytes": result.free_bytes, "total_bytes": result.total_bytes},
            "advice": self.advice.changes,
            "longest_max_length": self.advice.longest_max_length,
            "largest_batch_size": self.advice.largest_batch_size,
            "methods": self.methods,
            "notes": [*result.notes, *self.refusals],
            "plan": self.plan._asdict() if self.plan is not None else None,
            "most_hours": self.most_hours,
            "rows": self.rows,
            "judging": self.judging,
            **(
                {"several_devices": self.shares, "recommended": recommend(self.shares, result.free_bytes)}
                if self.shares
                else {}
            ),
        }


def estimate_run(
    config: RunConfig,
    inspector: Inspector,
    *,
    device: Device | None = None,
    devices: int = 1,
    read_rows: bool | None = None,
    on_progress: Callable[[CheckProgress], None] = lambda _: None,
) -> Estimate:
    """Estimate what a run needs.

    Args:
        device: To judge for; None for the one of this machine that the queue would give it.
        devices: Of several equal ones, what each needs is reported as well.
        read_rows: Whether figures are about the rows of the dataset, or about rows as long as `max_length`. By None, a
            dataset on the Hub is not read, and one that cannot be read is a note.

    Raises:
        ModelError: If the model cannot be found, reached or read.
        DatasetError: If rows must be read and cannot be.
        MemoryUnknownError: If the model has layers of which nothing is known.
    """
    options = device_options(list_devices(), config.run) if device is None else ((device,),)
    shape = inspector.module_inventory(config.model)
    report, unread = _report(inspector, config, read_rows, on_progress)
    lengths = report.row_lengths if report is not None else None
    device = most_likely(shape, config, options, lengths)[0]
    estimator = Estimator(shape, device, lengths)
    memory = estimator.estimate(config)
    plan = plan_run(config.training, report) if report is not None else None
    return Estimate(
        config=config,
        memory=memory,
        advice=advise(shape, config, device, lengths),
        methods=compare_methods(shape, config, device, lengths),
        plan=plan,
        most_hours=estimated_hours(shape.num_parameters, plan.seen_tokens, tflops_of(device)) if plan else None,
        rows=_rows(lengths, memory, Estimator(shape, device).estimate(config), config),
        judging=expected_judging(config, lengths),
        refusals=[*unread, *(f"This device cannot run it: {p.message}" for p in device_problems(config, device))],
        shares=share_among(estimator, config, devices) if devices > 1 else (),
        shape=shape,
        device=device,
        lengths=lengths,
    )


def read_rows_of(
    config: RunConfig, inspector: Inspector, on_progress: Callable[[CheckProgress], None]
) -> DatasetReport:
    """Read every row of a run's dataset; raises as `Inspector.check` does."""
    training = config.training
    return inspector.check(
        config.dataset, config.model, training.max_length,
        seed=training.seed, vision=config.vision.pixels, on_progress=on_progress,
    )  # fmt: skip


def _report(
    inspector: Inspector, config: RunConfig, read_rows: bool | None, on_progress: Callable[[CheckProgress], None]
) -> tuple[DatasetReport | None, Sequence[str]]:
    """Return the report of the dataset's rows, or a note why the longest rows allowed are judged instead."""
    if read_rows is False:
        return None, ()
    if read_rows is None and reads_from_hub(config.dataset):
        return None, ["The dataset is on the Hub: figures are for rows as long as max_length; --data reads all rows."]
    try:
        report = read_rows_of(config, inspector, on_progress)
    except EngineError as error:
        if read_rows:
            raise
        return None, [f"Figures are for rows as long as max_length, because the data cannot be read: {error.what}"]
    return report, ()


def _rows(
    lengths: RowLengths | None, result: MemoryEstimate, ceiling: MemoryEstimate, config: RunConfig
) -> dict[str, int] | None:
    """Return the rows that the figures are about; None where they are about rows as long as `max_length`."""
    if lengths is None:
        return None
    return {
        "count": lengths.count,
        "longest": min(lengths.longest, config.training.max_length),
        "at_once": result.pass_rows,  # that pass through the model together
        "tokens_at_once": result.pass_tokens,  # of them, padding included
        "ceiling_bytes": ceiling.expected_bytes,
    }


def device_elsewhere(choice: str | float | None) -> Device | None:
    """Return the device that a GPU's name, or its free memory in GiB, means; None for this machine's own."""
    if isinstance(choice, str):
        return None if choice.strip().lower() == THIS_MACHINE else known_device(choice).device()
    if choice is None:
        return None
    free = int(choice * GIB)
    return Device("cuda", 0, f"a GPU with {choice:g} GiB free", free, free, has_fast_bfloat16=True)
