"""`loratory estimate`: what a run needs, whether it fits, and what would make it fit."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

from loratory.engine.commands.configs import load_config_argument
from loratory.engine.commands.output import AsJson, ConfigName, Overrides, ProgressLine, print_json, with_progress
from loratory.engine.config.run import RunConfig
from loratory.engine.data.contract import RowLengths
from loratory.engine.data.hub import reads_from_hub
from loratory.engine.errors import EngineError
from loratory.engine.hardware.device import THIS_MACHINE, Device, known_device
from loratory.engine.hardware.devices import device_options, device_problems, list_devices
from loratory.engine.inspector.session import Inspector
from loratory.engine.memory.advice import Advice, advise
from loratory.engine.memory.compare import DeviceShare, MethodNeed, compare_methods, recommend, share_among
from loratory.engine.memory.estimate import GIB, Estimator, MemoryEstimate
from loratory.engine.paths import LoratoryHome
from loratory.engine.runs.prediction import expected_judging, most_likely
from loratory.engine.supervision.memory_measurement import MeasuredStep, MeasurementJob, config_of_rows

_VERDICTS = {"fits": "Fits.", "tight": "Tight.", "does_not_fit": "Does not fit."}


def estimate(
    config: ConfigName,
    memory_gib: Annotated[
        float | None,
        typer.Option("--memory-gib", help="Estimate for a CUDA device with this much free memory.", min=0.1, max=1e6),
    ] = None,
    device_name: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Estimate for a GPU that is not here, such as RTX-4090; an unknown name lists all.",
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option("--devices", help="Report also what each of several equal devices needs.", min=1, max=100_000)
    ] = 1,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run the largest step once; report its measured peak.")
    ] = False,
    data: Annotated[
        bool | None,
        typer.Option(
            "--data/--no-data",
            help="Estimate from the dataset's row lengths, or for rows as long as max_length. A dataset on the Hub is read with "
            "--data alone.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Report how much memory a run needs, in which phase, and what would make it fit."""
    home = LoratoryHome.from_environment()
    run_config = load_config_argument(config, overrides, home)
    if memory_gib is not None and device_name is not None:
        raise typer.BadParameter("name a device, or give its free memory; leave out --device or --memory-gib.")
    elsewhere = _device_elsewhere(device_name, memory_gib)
    if measure and elsewhere is not None:
        raise typer.BadParameter(
            "a step can be measured on a device that is here only; leave out --device and --memory-gib."
        )
    options = device_options(list_devices(), run_config.run) if elsewhere is None else ((elsewhere,),)
    with contextlib.closing(Inspector(home)) as inspector:
        shape = inspector.module_inventory(run_config.model)
        lengths, unread = _lengths(inspector, run_config, data)
    device = most_likely(shape, run_config, options, lengths)[0]
    estimator = Estimator(shape, device, lengths)
    result = estimator.estimate(run_config)
    # A start refuses these, however much memory is free.
    problems = device_problems(run_config, device)
    refusals = [*unread, *(f"This device cannot run it: {problem.message}" for problem in problems)]
    shares = share_among(estimator, run_config, devices) if devices > 1 else ()
    measured = None
    if measure:
        of_rows = config_of_rows(estimator, run_config)
        measured = with_progress(MeasurementJob(home, of_rows, Estimator(shape, device).estimate_step(of_rows)).run)
    advice = advise(shape, run_config, device, lengths)
    methods = compare_methods(shape, run_config, device, lengths)
    rows = _rows(lengths, result, Estimator(shape, device).estimate(run_config), run_config)
    judging = expected_judging(run_config, lengths)
    if as_json:
        shared = {"several_devices": shares, "recommended": recommend(shares, device.free_bytes)} if shares else {}
        more = {"measured": measured} if measured is not None else {}
        values = {"rows": rows, "judging": judging}
        print_json(_as_json(result, advice, methods, refusals) | values | shared | more)
    else:
        lines = [*refusals, *_text(result, advice, methods, rows)]
        if judging:
            lines.append(judging)
        if shares:
            lines += _shares_text(shares, device.free_bytes)
        if measured is not None:
            lines.append(_measured_text(measured))
        typer.echo("\n".join(lines))


def _lengths(
    inspector: Inspector, config: RunConfig, read_rows: bool | None
) -> tuple[RowLengths | None, Sequence[str]]:
    """Return the lengths of the dataset's rows, or a note why the longest rows allowed are judged instead."""
    if read_rows is False:
        return None, ()
    if read_rows is None and reads_from_hub(config.dataset):
        return None, ["The dataset is on the Hub: figures are for rows as long as max_length; --data reads all rows."]
    training = config.training
    try:
        with ProgressLine() as line:
            report = inspector.check(
                config.dataset,
                config.model,
                training.max_length,
                seed=training.seed,
                vision=config.vision.pixels,
                on_progress=lambda step: line.show(f"{step.rows:,} rows", step.fraction),
            )
    except EngineError as error:
        if read_rows:
            raise
        return None, [f"Figures are for rows as long as max_length, because the data cannot be read: {error.what}"]
    return report.row_lengths, ()


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


def _device_elsewhere(name: str | None, memory_gib: float | None) -> Device | None:
    """Return the device to judge for where it is not one of this machine's."""
    if name is not None and name.strip().lower() != THIS_MACHINE:
        return known_device(name).device()
    if memory_gib is None:
        return None
    free = int(memory_gib * GIB)
    return Device("cuda", 0, f"a GPU with {memory_gib:g} GiB free", free, free, has_fast_bfloat16=True)


def _as_json(
    result: MemoryEstimate, advice: Advice, methods: Sequence[MethodNeed], refusals: Sequence[str]
) -> dict[str, Any]:
    figures = "components_bytes allocated_bytes reserved_bytes expected_bytes needed_bytes phase verdict".split()
    return {
        "parameters": result.parameters,
        **{name: getattr(result, name) for name in figures},
        "device": {"name": result.device_name, "free_bytes": result.free_bytes, "total_bytes": result.total_bytes},
        "advice": advice.changes,
        "longest_max_length": advice.longest_max_length,
        "largest_batch_size": advice.largest_batch_size,
        "methods": methods,
        "notes": [*result.notes, *refusals],
    }


def _text(
    result: MemoryEstimate, advice: Advice, methods: Sequence[MethodNeed], rows: dict[str, int] | None
) -> Iterator[str]:
    yield (
        f"{_VERDICTS[result.verdict]} {_gib(result.expected_bytes)} GiB expected, {_gib(result.needed_bytes)} at most, "
        f"{_gib(result.free_bytes)} free on {result.device_name}."
    )
    yield (
        f"Trains {result.parameters.trainable:,} of {result.parameters.total:,} parameters "
        f"({result.parameters.trainable_percent:.4f}%). Peak in the {result.phase_words}."
    )
    if rows is not None:
        yield (
            f"For the {rows['count']:,} rows to train on, the longest of {rows['longest']:,} tokens: {rows['at_once']:,} at once, "
            f"{rows['tokens_at_once']:,} tokens. With all as long as max_length: {_gib(rows['ceiling_bytes'])} GiB."
        )
    yield ""
    yield from (f"  {component.label:<32}{_gib(component.bytes):>8} GiB" for component in result.components)
    if advice.changes:
        yield "\nWhat would change it:"
    yield from (f"  {_gib(change.needed_bytes):>8} GiB  {change.change} ({change.cost})" for change in advice.changes)
    length, batch = advice.longest_max_length, advice.largest_batch_size
    if length and batch:
        yield f"\nRoom for rows of {length:,} tokens, or for a batch of {batch:,}."
    yield "\nOther methods with the same settings:"
    for method in methods:
        need = f"{_gib(method.needed_bytes):>8} GiB" if method.needed_bytes is not None else "       –    "
        verdict = _VERDICTS[method.verdict].rstrip(".").lower() if method.verdict else method.why_not
        yield f"  {need}  {method.method}: {verdict}"
    yield from (f"Note: {note}" for note in result.notes)


def _shares_text(shares: Sequence[DeviceShare], free_bytes: int) -> Iterator[str]:
    yield f"\nOn each of {shares[0].devices:,} such devices:"
    for share in shares:
        verdict = share.why_not or f"{_VERDICTS[share.verdict].lower()} {share.meaning}"
        yield f"  {_gib(share.needed_bytes):>8} GiB  {share.sharing}: {verdict}"
    yield recommend(shares, free_bytes)


def _measured_text(step: MeasuredStep) -> str:
    return (
        f"\nMeasured on {step.device_name}: {_gib(step.measured_bytes)} GiB, predicted {_gib(step.predicted_bytes)} "
        f"({step.error:+.1%}), at most {_gib(step.bound_bytes)}; {step.step_seconds:,.2f} s a step."
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"


COMMANDS = (estimate,)
