"""`loratory data check`: what row checks find in a dataset, without a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loratory.engine.commands.data import DataArgument, MapOption, data_group, dataset_config
from loratory.engine.commands.output import AsJson, ProgressLine, print_result, setting_options
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.run import DatasetConfig
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.errors import DatasetError, shorten
from loratory.engine.files import write_atomically
from loratory.engine.paths import LoratoryHome
from loratory.engine.quantities import duration

if TYPE_CHECKING:
    from loratory.engine.data.workshop.checks.run import RowCheckReport

_SHOWN_FINDINGS = 10  # of a check, in the terminal; a Markdown report has all that are listed


@data_group.command()
@setting_options(DatasetConfig, "format", "subset", "split", "revision", "eval_fraction")
@setting_options(CheckSettings, group="thresholds")
def check(
    source: DataArgument,
    settings: dict[str, Any],
    thresholds: dict[str, Any],
    column_map: MapOption = None,
    only: Annotated[str, typer.Option(help="Checks to run, with commas between them. Empty runs all.")] = "",
    report: Annotated[Path | None, typer.Option(help="Also write a report in Markdown to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find duplicates, leaks, other languages, personal data, wrong encodings, refusals and mixed thinking."""
    from loratory.engine.data.passes.check import MAX_LISTED, finish
    from loratory.engine.data.workshop.checks.run import row_check_steps

    config = dataset_config(source, column_map, settings)
    steps = row_check_steps(
        config,
        SourceOptions(home=LoratoryHome.from_environment()),
        section_from_mapping(CheckSettings, thresholds),
        [name.strip() for name in only.split(",") if name.strip()],
        seed=TrainingConfig().seed,
    )
    with ProgressLine() as line:
        result = finish(steps, lambda step: line.show(f"{step.rows:,} rows", step.fraction))
    if report is not None:
        try:
            write_atomically(report, "\n".join(["# Row checks\n", *report_lines(result, MAX_LISTED), ""]))
        except OSError as error:
            raise DatasetError(f"{report} cannot be written: {error}.", "Choose another file.") from error
    print_result(result, "\n".join(report_lines(result, _SHOWN_FINDINGS)), as_json=as_json)


def report_lines(report: "RowCheckReport", most: int) -> Iterator[str]:
    """Yield a report with this many findings of each check, as Markdown that quotes rows as code."""
    cut = f" Of {report.cut_rows:,} long rows, the beginning is checked." if report.cut_rows else ""
    sides = f"{report.train_rows:,} to train on, {report.held_out_rows:,} held out"
    yield f"{report.source}: {report.rows:,} rows checked in {duration(report.seconds)}; {sides}.{cut}\n"
    table = [("check", "rows", "kinds", "example")]
    for check in report.checks:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in check.kinds.items())
        example = f"row {check.findings[0].row + 1:,}: {check.findings[0].why}" if check.findings else ""
        table.append((check.name, f"{check.rows:,}", kinds, shorten(example, 80)))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        yield "    " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
    for check in report.checks:
        if check.findings:
            yield f"\n## {check.name}\n\n{check.finds}\n"
            yield from (f"    row {row.row + 1:,}: {row.why} {row.sample}" for row in check.findings[:most])
        if (more := sum(check.kinds.values()) - most) > 0:
            yield f"    … and {more:,} more"


COMMANDS = ()  # all are in data_group
