"""`loratory estimate`: what a run needs, whether it fits, and what would make it fit."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from loratory.engine.commands.output import AsJson, ConfigName, Overrides, ProgressLine, print_json, with_progress
from loratory.engine.interface.estimate import Estimate, device_elsewhere
from loratory.engine.interface.workspace import Workspace
from loratory.engine.memory.compare import DeviceShare, recommend
from loratory.engine.memory.estimate import GIB
from loratory.engine.supervision.memory_measurement import MeasuredStep, MeasurementJob

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
    if memory_gib is not None and device_name is not None:
        raise typer.BadParameter("name a device, or give its free memory; leave out --device or --memory-gib.")
    workspace = Workspace.own()
    run_config = workspace.config(config, overrides)
    elsewhere = device_elsewhere(memory_gib if device_name is None else device_name)
    if measure and elsewhere is not None:
        raise typer.BadParameter(
            "a step can be measured on a device that is here only; leave out --device and --memory-gib."
        )
    with workspace, ProgressLine() as line:
        result = workspace.estimate(
            run_config, device=elsewhere, devices=devices, read_rows=data,
            on_progress=lambda step: line.show(f"{step.rows:,} rows", step.fraction),
        )  # fmt: skip
    measured = None
    if measure:
        of_rows, step = result.largest_step()
        measured = with_progress(MeasurementJob(workspace.home, of_rows, step).run)
    if as_json:
        more = {"measured": measured} if measured is not None else {}
        print_json(result.as_json() | more)
    else:
        typer.echo("\n".join([*_text(result), *([_measured_text(measured)] if measured is not None else [])]))


def _text(estimate: Estimate) -> Iterator[str]:
    result, rows, advice = estimate.memory, estimate.rows, estimate.advice
    yield from estimate.refusals
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
    for method in estimate.methods:
        need = f"{_gib(method.needed_bytes):>8} GiB" if method.needed_bytes is not None else "       –    "
        verdict = _VERDICTS[method.verdict].rstrip(".").lower() if method.verdict else method.why_not
        yield f"  {need}  {method.method}: {verdict}"
    yield from (f"Note: {note}" for note in result.notes)
    if estimate.judging:
        yield estimate.judging
    if estimate.shares:
        yield from _shares_text(estimate.shares, result.free_bytes)


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
