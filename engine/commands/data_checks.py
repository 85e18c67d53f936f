"""`loratory data check`: what row checks find in a dataset, without a model."""

from typing import Annotated, Any

import typer

from loratory.engine.commands.data import DataArgument, data_group, dataset_config, dataset_options
from loratory.engine.commands.output import AsJson, ProgressLine, print_result, setting_options
from loratory.engine.config.load import section_from_mapping
from loratory.engine.config.training import TrainingConfig
from loratory.engine.data.source import SourceOptions
from loratory.engine.data.workshop.checks.settings import CheckSettings
from loratory.engine.paths import LoratoryHome


@data_group.command()
@dataset_options("eval_fraction")
@setting_options(CheckSettings, group="thresholds")
def check(
    source: DataArgument,
    settings: dict[str, Any],
    thresholds: dict[str, Any],
    only: Annotated[str, typer.Option(help="Checks to run, with commas between them. Empty runs all.")] = "",
    most: Annotated[int, typer.Option(min=0, help="Findings to print of each check.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find duplicates, leaks, other languages, personal data, wrong encodings, refusals and mixed thinking."""
    from loratory.engine.data.passes.check import finish
    from loratory.engine.data.workshop.checks.run import row_check_steps

    config = dataset_config(source, settings)
    options = SourceOptions(home=LoratoryHome.from_environment())
    checks = section_from_mapping(CheckSettings, thresholds)
    names = [name.strip() for name in only.split(",") if name.strip()]
    steps = row_check_steps(config, options, checks, names, seed=TrainingConfig().seed)
    with ProgressLine() as line:
        result = finish(steps, lambda step: line.show(f"{step.rows:,} rows", step.fraction))
    print_result(result, "\n".join(result.lines(most)), as_json=as_json)


COMMANDS = ()  # all are in data_group
